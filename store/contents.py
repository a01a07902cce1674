"""Compare the documents in a store with those of a corpus."""

import os
import weakref
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from enum import IntEnum
from mmap import ACCESS_READ, MADV_DONTNEED, mmap
from tempfile import TemporaryFile
from typing import IO, Self

import numpy as np

from .derived.row_hashes import Hashes, RowHashes
from .hashes import id_hashes
from .store import Store
from .table.failures import check_process
from .table.rows import take_rows

_PAIR = np.dtype([("first", np.uint64), ("second", np.uint64)])
# Largest number of documents whose hashes are all held in memory, in 64 MB.
_IN_MEMORY = 1 << 22
# Ids read at a time.
_ROWS_AT_ONCE = 1 << 16


class Status(IntEnum):
    """The state of a corpus document in a store: not stored, stored with another text, or stored as it is."""

    NEW = 0
    CHANGED = 1
    SAME = 2


class Contents:
    """The hashes of all documents in a store, and which of them were looked up.

    It takes 9 bytes of memory per document, and 16 in a temporary file. Ids count as equal if half of their 128-bit
    hashes are equal, and of the other half as many bits as the numbers of n documents leave of 64: 39 for 24 million.
    Texts, together with titles if the store keeps them, count as equal if 64 bits are.
    """

    def __init__(self, parts: Iterable[tuple[Hashes, np.ndarray]], count: int):
        """Take over the hashes of n documents.

        Args:
            parts: for each fragment, the hashes of its documents and the addresses of their rows, ``(k,)`` uint64,
                ascending.
            count: n.
        """
        self._mask = np.uint64((1 << max(count - 1, 0).bit_length()) - 1)
        # The upper bits of a key are those of a hash, the lower ones are the document's place in the order of the rows.
        self._keys = np.empty(count, np.uint64)
        self._others = _Pairs(count)
        self._rows = _Addresses()
        end = 0
        for hashes, rows in parts:
            start, end = end, end + len(rows)
            self._keys[start:end] = (hashes.first & ~self._mask) | np.arange(start, end, dtype=np.uint64)
            self._others.write(start, hashes.second, hashes.texts)
            self._rows.add(rows)
        assert end == count
        self._keys.sort()
        self._seen = np.zeros(count, dtype=bool)

    @classmethod
    def of(cls, store: Store) -> Self:
        """Read the hashes of all documents in the opened version of a store.

        Raises:
            StoreError: the store cannot be read.
        """
        check_process()
        hashes = RowHashes(store.uri, store.table)
        hashes.tidy()

        def read() -> Iterator[tuple[Hashes, np.ndarray]]:
            for fragment in store.table.get_fragments():
                own, rows = hashes.live(fragment)
                yield own, rows | np.uint64(fragment.fragment_id << 32)

        return cls(read(), store.table.count_rows())

    def __len__(self) -> int:
        return len(self._keys)

    def begin(self) -> None:
        """Forget which documents were looked up."""
        self._seen[:] = False

    def compare(self, ids: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Look documents up, and remember that they were looked up.

        Args:
            ids: hashes of k ids, ``(k, 2)`` uint64, as ``document_hashes`` returns them.
            texts: hashes of their texts, ``(k,)`` uint64.

        Returns:
            The ``Status`` of each document, ``(k,)`` int8.
        """
        places, stored = self._look_up(ids)
        same = np.where(stored == texts, np.int8(Status.SAME), np.int8(Status.CHANGED))
        return np.where(places >= 0, same, np.int8(Status.NEW))

    def rows_of(self, doc_ids: Collection[str]) -> np.ndarray:
        """Look documents up by their ids, and remember that they were looked up.

        Returns:
            The addresses of the rows of those that the store holds, ``(m,)`` uint64.
        """
        places, _ = self._look_up(id_hashes(doc_ids))
        return self._rows.at(places[places >= 0])

    def _look_up(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look k documents up, and remember that they were looked up.

        Returns:
            The place of each document in the order of the rows, ``(k,)`` int64, -1 for one that the store does not
            hold, and the hash of its text in the store, ``(k,)`` uint64.
        """
        found, texts = np.full(len(ids), -1), np.zeros(len(ids), np.uint64)
        wanted = ids[:, 0] & ~self._mask
        at = np.searchsorted(self._keys, wanted)
        asked = np.arange(len(ids))
        while True:
            asked = asked[at[asked] < len(self)]
            keys = self._keys[at[asked]]
            is_alike = keys & ~self._mask == wanted[asked]
            asked, places = asked[is_alike], (keys[is_alike] & self._mask).astype(np.int64)
            if not asked.size:
                break
            second, stored = self._others.read(places)
            hit = second == ids[asked, 1]
            found[asked[hit]], texts[asked[hit]] = places[hit], stored[hit]
            # The next key may begin alike and belong to the document.
            asked = asked[~hit]
            at[asked] += 1
        self._seen[found[found >= 0]] = True
        return found, texts

    @property
    def unseen_count(self) -> int:
        """Number of documents that have not been looked up."""
        return len(self) - int(np.count_nonzero(self._seen))

    @property
    def unseen(self) -> np.ndarray:
        """Addresses of the rows whose documents have not been looked up, ``(k,)`` uint64."""
        return self._rows.at(np.flatnonzero(~self._seen))


class _Pairs:
    """Two numbers for each document. Those of a large store are in a temporary file if there is room for it.

    Args:
        count: number of documents.
    """

    def __init__(self, count: int):
        self._mapped: mmap | None = None
        self._file: IO[bytes] | None = None
        if count > _IN_MEMORY and hasattr(os, "posix_fallocate"):
            # Writing to a mapped file would end the process when the disk is full, so the room is taken first.
            with suppress(OSError):
                self._file = TemporaryFile(prefix="pisco-index-", buffering=0)  # noqa: SIM115  closed by the next line
                weakref.finalize(self, self._file.close)
                os.posix_fallocate(self._file.fileno(), 0, count * _PAIR.itemsize)
                self._mapped = mmap(self._file.fileno(), count * _PAIR.itemsize, access=ACCESS_READ)
        self._pairs = np.empty(count, _PAIR) if self._mapped is None else np.frombuffer(self._mapped, _PAIR)

    def write(self, start: int, first: np.ndarray, second: np.ndarray) -> None:
        """Write the numbers of documents, both ``(k,)`` uint64, from a place on."""
        pairs = np.empty(len(first), _PAIR)
        pairs["first"], pairs["second"] = first, second
        if self._mapped is None or self._file is None:
            self._pairs[start : start + len(pairs)] = pairs
        else:
            os.pwrite(self._file.fileno(), pairs.data, start * _PAIR.itemsize)

    def read(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of documents by their places, ``(k,)``: both ``(k,)`` uint64."""
        pairs = self._pairs[places]
        if self._mapped is not None:
            # The system maps 16 pages for each that is read, and would soon have mapped the whole file.
            self._mapped.madvise(MADV_DONTNEED)
        return pairs["first"], pairs["second"]


class _Addresses:
    """The addresses of rows by their places in the order of the rows."""

    def __init__(self):
        self._begins: list[int] = []
        self._firsts: list[int] = []
        self._rows: list[np.ndarray | None] = []
        self._end = 0

    def add(self, addresses: np.ndarray) -> None:
        """Add the addresses of the next rows, ``(k,)`` uint64, all of one fragment and ascending."""
        if not addresses.size:
            return
        first = int(addresses[0])
        self._begins.append(self._end)
        self._firsts.append(first)
        is_whole = int(addresses[-1]) - first == len(addresses) - 1
        self._rows.append(None if is_whole else (addresses - np.uint64(first)).astype(np.uint32))
        self._end += len(addresses)

    def at(self, places: np.ndarray) -> np.ndarray:
        """Return the addresses at places, ``(k,)`` int64: ``(k,)`` uint64 in the same order."""
        addresses = np.empty(len(places), np.uint64)
        order = np.argsort(places, kind="stable")
        edges = np.searchsorted(places[order], [*self._begins, self._end])
        for part in np.flatnonzero(np.diff(edges)).tolist():
            own = order[edges[part] : edges[part + 1]]
            offsets, rows = places[own] - self._begins[part], self._rows[part]
            addresses[own] = np.uint64(self._firsts[part]) + (offsets if rows is None else rows[offsets]).astype(
                np.uint64
            )
        return addresses


def ids_at(store: Store, rows: np.ndarray) -> tuple[str, ...]:
    """Return the ids of some documents in the opened version of a store, in the order of its rows.

    Args:
        store: the store.
        rows: addresses of the documents' rows, ``(k,)`` uint64.

    Raises:
        StoreError: the store cannot be read.
    """
    ordered = np.sort(rows)
    parts = (ordered[start : start + _ROWS_AT_ONCE] for start in range(0, len(ordered), _ROWS_AT_ONCE))
    return tuple(doc_id for part in parts for doc_id in take_rows(store.table, part, ["doc_id"]).column(0).to_pylist())
