"""Failures of devices and of torch's compiler, recognised by what they say."""

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

# Libraries report a full device in these words, as errors that are no torch.OutOfMemoryError.
_OUT_OF_MEMORY = (
    "out of memory",
    "OutOfMemory",
    "ALLOC_FAILED",
    # cuBLAS and cuDNN create their handles in the memory that is left.
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "can't allocate memory",
    "cudaErrorMemoryAllocation",
)
# Header of a 64-bit ELF file: its section table is the last part that a linker writes.
_ELF = struct.Struct("<16s24xQ10x3H")


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if a device had too little memory, whichever library reports it."""
    return any(
        isinstance(each, torch.OutOfMemoryError)
        or (isinstance(each, RuntimeError) and any(words in str(each) for words in _OUT_OF_MEMORY))
        for each in _chain(error)
    )


def is_compiler_failure(error: BaseException) -> bool:
    """Return True if torch's compiler, or one that it calls, failed."""
    return any(
        type(each).__module__.partition(".")[0] == "triton"
        or type(each).__module__.startswith(("torch._inductor", "torch._dynamo"))
        for each in _chain(error)
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error, of at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def remove_damaged_code() -> list[Path]:
    """Remove compiled files that an interrupted compilation left incomplete in torch's cache, and return them.

    torch loads every file that is there. Files that another process is writing now are left alone: it holds their lock.
    """
    from filelock import FileLock, Timeout
    from torch._inductor.codecache import cache_dir, get_lock_dir

    removed = []
    for path in sorted(each for ending in ("so", "o", "gch") for each in Path(cache_dir()).rglob(f"*.{ending}")):
        if _is_complete(path):
            continue
        locks = [Path(get_lock_dir()) / f"{name}.lock" for name in {path.stem, path.name.partition(".")[0]}]
        with suppress(Timeout, OSError):
            for lock in locks:
                if lock.exists():
                    with FileLock(lock, timeout=0):
                        pass
            path.unlink()
            removed.append(path)
    return removed


def _is_complete(path: Path) -> bool:
    """Return True if a library or an object file has all its sections. Other files need only some content."""
    try:
        with path.open("rb") as file:
            size, head = os.fstat(file.fileno()).st_size, file.read(_ELF.size)
    except OSError:
        return True
    # The fifth byte says that it is a 64-bit file.
    if not head.startswith(b"\x7fELF\x02"):
        return any(head)
    if len(head) < _ELF.size:
        return False
    _, table, entry, entries, _ = _ELF.unpack(head)
    return size >= table + entry * entries and table > 0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
