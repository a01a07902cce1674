"""The hashes of the ids and texts of a fragment's rows, in a file of the cache for each fragment.

An update compares the whole corpus with them, and a deletion finds its rows by them. The file is named after the data
files, or if rows were already deleted when it was made, after these and the list of deleted rows. It is
little-endian: ``piscorow``, u64 number of rows n, u64 XXH3-64 of what follows, 16 bytes of the name; then n u64 each:
first and second half of the hashes of the ids, hashes of texts and titles.
"""

import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import lance
import numpy as np
import xxhash
from lance.fragment import LanceFragment

from ..hashes import document_hashes
from ..table.datasets import fragments_of
from ..table.rows import live_rows, read_rows
from .folders import cache_folders, delete_abandoned, replace_file, writable_folders
from .names import field_ids, name_of

_MAGIC = b"piscorow"
_HEADER = struct.Struct("<8sQQ16s")
_SUFFIX = ".rows"
_COLUMNS = 3


class Hashes(NamedTuple):
    """The hashes of the rows of a fragment, in the order of its data files.

    Attributes:
        first: first half of the hashes of the ids, ``(k,)`` uint64.
        second: second half of the hashes of the ids, ``(k,)`` uint64.
        texts: hashes of the texts, together with titles if the store keeps them, ``(k,)`` uint64.
        has_deleted: True if all rows of the data files are here, False if the deleted rows are left out.
    """

    first: np.ndarray
    second: np.ndarray
    texts: np.ndarray
    has_deleted: bool


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

    def live(self, fragment: LanceFragment) -> tuple[Hashes, np.ndarray]:
        """Return the hashes of a fragment's rows that are not deleted, and keep them in the cache.

        Returns:
            The hashes, and the numbers of the same k rows in the data files, ``(k,)`` uint64.

        Raises:
            StoreError: the rows cannot be read.
        """
        rows = live_rows(fragment)
        kept = self.kept(fragment) or self.make(fragment)
        if kept.has_deleted and len(rows) < len(kept.first):
            kept = Hashes(kept.first[rows], kept.second[rows], kept.texts[rows], has_deleted=False)
        return kept, rows

    def kept(self, fragment: LanceFragment) -> Hashes | None:
        """Return the hashes in the cache; None if there are none."""
        rows = fragment.physical_rows
        for has_deleted in (True, False) if fragment.metadata.deletion_file else (True,):
            name = name_of(fragment.metadata, self._fields, with_deletions=not has_deleted)
            for folder in cache_folders(self._uri):
                found = _load(folder / f"{name}{_SUFFIX}", name)
                if found is not None and found.shape[1] == (rows if has_deleted else fragment.count_rows()):
                    return Hashes(*found, has_deleted=has_deleted)
        return None

    def make(self, fragment: LanceFragment) -> Hashes:
        """Compute the hashes of the rows that are not deleted, and keep them in the cache.

        Raises:
            StoreError: the rows cannot be read.
        """
        parts = [np.empty((_COLUMNS, 0), np.uint64)]
        for _, batch in read_rows(self._dataset, self._columns, fragments=[fragment.fragment_id]):
            titles = batch.column("title").to_pylist() if "title" in self._columns else None
            hashes = batch.column("text_hash").to_pylist()
            ids, texts = document_hashes(batch.column("doc_id").to_pylist(), hashes, titles)
            parts.append(np.stack([*ids.T, texts]))
        made = np.concatenate(parts, axis=1)
        self._keep(name_of(fragment.metadata, self._fields, with_deletions=True), made)
        return Hashes(*made, has_deleted=fragment.metadata.deletion_file is None)

    def tidy(self) -> None:
        """Delete the files of fragments that are not in this version."""
        wanted = {
            f"{name_of(each, self._fields, with_deletions=with_deletions)}{_SUFFIX}"
            for each in fragments_of(self._dataset)
            for with_deletions in (False, True)
        }
        for folder in cache_folders(self._uri):
            delete_abandoned(folder)
            with suppress(OSError):
                for path in folder.glob(f"*{_SUFFIX}"):
                    if path.name not in wanted:
                        path.unlink(missing_ok=True)

    def _keep(self, name: str, hashes: np.ndarray) -> None:
        content = np.ascontiguousarray(hashes, dtype="<u8").data.cast("B")
        header = _HEADER.pack(_MAGIC, hashes.shape[1], xxhash.xxh3_64_intdigest(content), bytes.fromhex(name))
        for folder in writable_folders(self._uri):
            if replace_file(folder / f"{name}{_SUFFIX}", [header, content]):
                return


def _load(path: Path, name: str) -> np.ndarray | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) < _HEADER.size:
        return None
    magic, rows, checksum, named = _HEADER.unpack_from(content)
    body = memoryview(content)[_HEADER.size :]
    if magic != _MAGIC or named.hex() != name or len(body) != rows * _COLUMNS * 8:
        return None
    if xxhash.xxh3_64_intdigest(body) != checksum:
        return None
    return np.frombuffer(body, dtype="<u8").reshape(_COLUMNS, rows).astype(np.uint64, copy=False)
