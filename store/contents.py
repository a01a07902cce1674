"""What a version of a store holds, compared with what a corpus holds."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Self

import numpy as np
import xxhash

from .store import Store
from .table.failures import check_process
from .table.rows import read_addressed


class Status(IntEnum):
    """How a document of a corpus stands to a store: it is not there, with another text, or as it is."""

    NEW = 0
    CHANGED = 1
    SAME = 2


def document_hashes(
    doc_ids: Sequence[str], text_hashes: Sequence[bytes], titles: Sequence[str | None] | None
) -> tuple[np.ndarray, np.ndarray]:
    """What ``Contents`` compares of k documents.

    Args:
        doc_ids: their ids.
        text_hashes: their ``text_hash``, 16 bytes each.
        titles: their titles where the store keeps them, else None.

    Returns:
        Hashes of the ids, ``(k, 2)`` uint64, and of what is stored of them, ``(k,)`` uint64.
    """
    ids = np.frombuffer(b"".join([xxhash.xxh3_128_digest(i.encode()) for i in doc_ids]), np.uint64).reshape(-1, 2)
    if titles is None:
        return ids, np.frombuffer(b"".join(text_hashes), np.uint64)[::2]
    pairs = zip(text_hashes, titles, strict=True)
    return ids, np.array([xxhash.xxh3_64_intdigest(text + (title or "").encode()) for text, title in pairs], np.uint64)


class Contents:
    """Hashes of all documents of a store, 33 bytes a document, and which of them were asked for.

    Ids count as equal when 128 bits of their hashes are, texts (and titles, where the store keeps them) when 64 are.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray, texts: np.ndarray, rows: np.ndarray):
        """Take over the columns of what ``document_hashes`` gives, and row addresses, each ``(n,)`` uint64."""
        order = np.argsort(first)
        for column in (first, second, texts, rows):
            # In its own place, since a copy of all of them would double the memory.
            column[:] = column[order]
        self._first, self._second, self._texts, self._rows = first, second, texts, rows
        self._seen = np.zeros(len(order), dtype=bool)

    @classmethod
    def of(cls, store: Store) -> Self:
        """Read the ids and text hashes of a store, at the version at which it is open.

        Raises:
            StoreError: it cannot be read.
        """
        check_process()
        titles = ["title"] if "title" in store.meta.optional_columns else []
        count = store.table.count_rows()
        first, second, texts, rows = (np.empty(count, np.uint64) for _ in range(4))
        end = 0
        for addresses, batch in read_addressed(store.table, ["doc_id", "text_hash", *titles]):
            start, end = end, end + batch.num_rows
            kept = batch.column("title").to_pylist() if titles else None
            hashes = batch.column("text_hash").to_pylist()
            ids, texts[start:end] = document_hashes(batch.column("doc_id").to_pylist(), hashes, kept)
            first[start:end], second[start:end] = ids.T
            rows[start:end] = addresses
        assert end == count
        return cls(first, second, texts, rows)

    def __len__(self) -> int:
        return len(self._rows)

    def compare(self, ids: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Look documents up, as ``document_hashes`` gives them, and remember that they were.

        Returns:
            A ``Status`` of each, ``(k,)`` int8.
        """
        status = np.full(len(ids), Status.NEW, np.int8)
        place = np.searchsorted(self._first, ids[:, 0])
        open_ = np.arange(len(ids))
        while True:
            open_ = open_[place[open_] < len(self)]
            open_ = open_[self._first[place[open_]] == ids[open_, 0]]
            if not open_.size:
                return status
            hit = self._second[place[open_]] == ids[open_, 1]
            found, at = open_[hit], place[open_[hit]]
            status[found] = np.where(self._texts[at] == texts[found], Status.SAME, Status.CHANGED)
            self._seen[at] = True
            # Half of a hash in common is rare: the next one in order may be the whole.
            open_ = open_[~hit]
            place[open_] += 1

    @property
    def unseen(self) -> np.ndarray:
        """Addresses of the rows whose documents were not looked up, ``(k,)`` uint64."""
        return self._rows[~self._seen]
