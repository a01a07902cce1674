"""The hashes of the ids and texts of a fragment's rows, in a file of the cache for each fragment.

An update compares the whole corpus with them, and a deletion finds its rows by them. The file is named after the data
files and little-endian: ``piscorow``; u64 number of rows n, deleted ones included; u64 number m of unknown rows; u64
XXH3-64 of what follows the header; 16 bytes each of the name and of a name for the list of deleted rows when the file
was made. Then n u64 each: first and second half of the hashes of the ids, hashes of texts and titles; then m u64, the
numbers of the rows that were deleted, whose hashes are unknown.
"""

import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import lance
import numpy as np
import xxhash
from lance.fragment import FragmentMetadata, LanceFragment

from ..hashes import document_hashes
from ..table.datasets import fragments_of
from ..table.rows import live_rows, read_rows
from .folders import cache_folders, delete_abandoned, open_file, replace_file, writable_folders
from .names import field_ids, name_of

_MAGIC = b"piscorow"
_HEADER = struct.Struct("<8sQQQ16s16s")
_SUFFIX = ".rows"
_COLUMNS = 3


class Hashes(NamedTuple):
    """The hashes of rows, in the order of the data files.

    Attributes:
        first: first half of the hashes of the ids, ``(k,)`` uint64.
        second: second half of the hashes of the ids, ``(k,)`` uint64.
        texts: hashes of the texts, together with titles if the store keeps them, ``(k,)`` uint64.
    """

    first: np.ndarray
    second: np.ndarray
    texts: np.ndarray


class RowHashes:
    """The hashes of the rows of a store's table ``memory``, fragment by fragment.

    Args:
        uri: resolved address of the store.
        dataset: a version of ``memory``.
    """

    def __init__(self, uri: str, dataset: lance.LanceDataset):
        self._uri = uri
        self._dataset = dataset
        self._columns = [name for name in ("doc_id", "text_hash", "title") if name in dataset.schema.names]
        self._fields = field_ids(dataset, self._columns)
        # As strings: a path object for each file would take longer than opening it.
        self._folders = [str(folder) for folder in cache_folders(uri)]

    def live(self, fragment: LanceFragment) -> tuple[Hashes, np.ndarray]:
        """Return the hashes of a fragment's rows that are not deleted, and keep them in the cache.

        Returns:
            The hashes, and the numbers of the same k rows in the data files, ``(k,)`` uint64.

        Raises:
            StoreError: the rows cannot be read.
        """
        rows = live_rows(fragment)
        every = self.kept(fragment) or self.make(fragment)
        return (every if len(rows) == len(every.first) else Hashes(*(each[rows] for each in every))), rows

    def has(self, fragment: FragmentMetadata) -> bool:
        """Return True if the cache has a file for a fragment, which may be damaged."""
        name = name_of(fragment, self._fields, with_deletions=False)
        return any(Path(folder, f"{name}{_SUFFIX}").is_file() for folder in self._folders)

    def kept(self, fragment: LanceFragment) -> Hashes | None:
        """Return the hashes in the cache of all rows in a fragment's data files; None if there are none.

        Those of deleted rows may be wrong.
        """
        metadata = fragment.metadata
        rows = metadata.physical_rows or fragment.physical_rows
        name = name_of(metadata, self._fields, with_deletions=False)
        for folder in self._folders:
            if (found := _load(f"{folder}/{name}{_SUFFIX}", name)) is None:
                continue
            hashes, unknown, state = found
            if len(hashes.first) == rows and (
                not unknown.size
                or state == name_of(metadata, self._fields, with_deletions=True)
                # A row that was deleted is there again if another tool has restored an older version.
                or not np.isin(unknown, live_rows(fragment)).any()
            ):
                return hashes
        return None

    def make(self, fragment: LanceFragment) -> Hashes:
        """Compute the hashes of a fragment, as ``kept`` returns them, and keep them in the cache.

        Raises:
            StoreError: the rows cannot be read.
        """
        parts = [np.empty((_COLUMNS, 0), np.uint64)]
        for _, batch in read_rows(self._dataset, self._columns, fragments=[fragment.fragment_id]):
            titles = batch.column("title").to_pylist() if "title" in self._columns else None
            hashes = batch.column("text_hash").to_pylist()
            ids, texts = document_hashes(batch.column("doc_id").to_pylist(), hashes, titles)
            parts.append(np.stack([*ids.T, texts]))
        every = np.zeros((_COLUMNS, fragment.physical_rows), np.uint64)
        rows = live_rows(fragment)
        every[:, rows] = np.concatenate(parts, axis=1)
        unknown = np.setdiff1d(np.arange(fragment.physical_rows, dtype=np.uint64), rows, assume_unique=True)
        self._keep(fragment.metadata, every, unknown)
        return Hashes(*every)

    def tidy(self) -> None:
        """Delete the files of fragments that are not in this version."""
        fragments = fragments_of(self._dataset)
        wanted = {f"{name_of(each, self._fields, with_deletions=False)}{_SUFFIX}" for each in fragments}
        for folder in cache_folders(self._uri):
            delete_abandoned(folder)
            with suppress(OSError):
                for path in folder.glob(f"*{_SUFFIX}"):
                    if path.name not in wanted:
                        path.unlink(missing_ok=True)

    def _keep(self, fragment: FragmentMetadata, hashes: np.ndarray, unknown: np.ndarray) -> None:
        name, state = (name_of(fragment, self._fields, with_deletions=each) for each in (False, True))
        content = np.concatenate([hashes.ravel(), unknown]).astype("<u8", copy=False).data.cast("B")
        checksum = xxhash.xxh3_64_intdigest(content)
        names = bytes.fromhex(name), bytes.fromhex(state)
        header = _HEADER.pack(_MAGIC, hashes.shape[1], len(unknown), checksum, *names)
        for folder in writable_folders(self._uri):
            if replace_file(folder / f"{name}{_SUFFIX}", lambda file: file.writelines([header, content])):
                return


def _load(path: str, name: str) -> tuple[Hashes, np.ndarray, str] | None:
    """Return the hashes of all rows, the numbers of the unknown rows, and the name of the list of deleted rows.

    Returns:
        None if the file does not hold them.
    """
    try:
        with open_file(path, os.O_RDONLY) as file:
            content = file.readall()
    except OSError:
        return None
    if len(content) < _HEADER.size:
        return None
    magic, rows, unknown, checksum, named, state = _HEADER.unpack_from(content)
    body = memoryview(content)[_HEADER.size :]
    if magic != _MAGIC or named.hex() != name or len(body) != (rows * _COLUMNS + unknown) * 8:
        return None
    if xxhash.xxh3_64_intdigest(body) != checksum:
        return None
    numbers = np.frombuffer(body, dtype="<u8").astype(np.uint64, copy=False)
    return Hashes(*numbers[: rows * _COLUMNS].reshape(_COLUMNS, rows)), numbers[rows * _COLUMNS :], state.hex()
