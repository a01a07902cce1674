"""Write fetched memory to one file of named arrays."""

import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ..errors import InputError
from ..model.memory import Memory
from ..places import local_path

SUFFIXES = (".npz", ".safetensors")


def save_memory(memory: Memory, path: str | Path) -> None:
    """Write one ``(n_mem, dim)`` array per document, named by the document's id.

    Args:
        memory: memory as a reader fetched it.
        path: file to write, with the ending ``.npz`` or ``.safetensors``.

    Raises:
        InputError: if the file has another ending or cannot be written, or if an id was given twice or cannot be a
            name in that format.
    """
    path = local_path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: the file's ending gives its format; use one of {', '.join(SUFFIXES)}.")
    arrays = {doc_id: values.numpy().astype(np.float32) for doc_id, values in zip(memory.doc_ids, memory, strict=True)}
    if len(arrays) != len(memory.doc_ids):
        raise InputError(f"{path}: an id was given twice. Arrays are named by their ids; give each id once.")
    if path.suffix == ".safetensors" and "__metadata__" in arrays:
        raise InputError(f"{path}: safetensors cannot name an array '__metadata__'; write .npz.")
    if path.suffix == ".npz" and (cut := [doc_id for doc_id in arrays if "\0" in doc_id]):
        raise InputError(f"{path}: .npz cannot name an array {cut[0]!r}, with a zero byte; write .safetensors.")
    try:
        _write(arrays, path)
    except OSError as error:
        raise InputError(f"{path}: the file cannot be written: {error.strerror or error}.") from error


def _write(arrays: dict[str, np.ndarray], path: Path) -> None:
    if path.suffix == ".npz":
        # np.savez would take ids as keyword arguments, and "file" is one of its own.
        with zipfile.ZipFile(path, "w") as archive:
            for doc_id, values in arrays.items():
                with archive.open(f"{doc_id}.npy", "w") as member:
                    np.lib.format.write_array(member, values)
    else:
        save_file(arrays, path)
