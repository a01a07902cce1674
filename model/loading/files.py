"""Check a checkpoint's files before anything reads them: plausible JSON, and no link that leads out of the folder."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import CheckpointError

# Most configurations of models take kilobytes; lists of layers or of quantised modules can take megabytes.
MAX_JSON_BYTES = 16 << 20
# Samples of a weight file that its digest hashes: some in every tensor of a usual shard, and 16 MiB in all.
_SAMPLES = 256
_SAMPLE_BYTES = 1 << 16


@contextmanager
def checkpoint_errors(problem: str) -> Iterator[None]:
    """Raise every error of the block as a CheckpointError whose message begins with ``problem``."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{problem}: {_first_line(error)}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file of a checkpoint.

    Raises:
        CheckpointError: the file cannot be read, is not JSON, or is larger or deeper than a configuration can be.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: has {size:,} bytes; a configuration has at most {MAX_JSON_BYTES:,}.")
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {_first_line(error)}.") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from None


def require_own_files(root: Path, names: tuple[str, ...] = ("",)) -> None:
    """Check that a folder holds only files and folders, and no link to a place outside it.

    In the Hugging Face cache, the files of a snapshot are links to the blobs beside it. These are allowed.

    Args:
        root: folder to check.
        names: entries of the folder to check; default: all of them.

    Raises:
        CheckpointError: naming the first entry that is something else, or lies elsewhere.
    """
    home = root.resolve()
    allowed = [home, *(parent.parent / "blobs" for parent in (home, *home.parents) if parent.name == "snapshots")]
    for path in _walk([root / name for name in names]):
        target = path.resolve()
        if not any(target.is_relative_to(folder) for folder in allowed):
            raise CheckpointError(
                f"{path}: a link out of {root}, to {target}. A checkpoint may only read its own folder: copy the file "
                "there in place of the link."
            )
        if not (target.is_file() or target.is_dir()):
            raise CheckpointError(f"{path}: neither a file nor a folder.")


def _walk(paths: list[Path], depth: int = 2) -> Iterator[Path]:
    """Yield the paths and their entries, as deep as models and tokenizers are read."""
    for path in paths:
        yield path
        # The target of a link that stays inside is visited where it lies.
        if depth and path.is_dir() and not path.is_symlink():
            yield from _walk([Path(entry.path) for entry in os.scandir(path)], depth - 1)


def digest_files(paths: list[Path]) -> str:
    """Return one BLAKE2b-128 digest of the names and contents of files, as 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").hexdigest()
        digest.update(f"{path.name}:{content};".encode())
    return digest.hexdigest()


def digest_weights(paths: list[Path]) -> str:
    """Return a digest of large files by their names, sizes and evenly spaced samples, as 32 hexadecimal digits.

    Another model differs in nearly every byte, and reading all of a base model would take as long as loading it.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            if size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(file.read())
                continue
            for index in range(_SAMPLES):
                file.seek(index * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
