"""Compare the documents in a store with those of a corpus."""

from collections.abc import Collection
from enum import IntEnum
from typing import Self

import numpy as np
import pyarrow as pa

from .hashes import document_hashes, id_hashes
from .store import Store
from .table.failures import check_process
from .table.rows import read_addressed


class Status(IntEnum):
    """The state of a corpus document in a store: not stored, stored with another text, or stored as it is."""

    NEW = 0
    CHANGED = 1
    SAME = 2


class Contents:
    """The hashes of all documents in a store, and which of them were looked up. It takes 33 bytes per document.

    Ids count as equal if 128 bits of their hashes are equal. Texts, together with titles if the store keeps them, count
    as equal if 64 bits are.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray, texts: np.ndarray, rows: np.ndarray):
        """Take over the hashes of n documents, which are sorted in place.

        Args:
            first: first half of the hashes of the ids, ``(n,)`` uint64, as ``document_hashes`` returns them.
            second: second half of the hashes of the ids, ``(n,)`` uint64.
            texts: hashes of the texts, ``(n,)`` uint64.
            rows: addresses of the rows, ``(n,)`` uint64.
        """
        order = np.argsort(first)
        for column in (first, second, texts, rows):
            # Sorting in place: a copy of all columns would double the memory.
            column[:] = column[order]
        self._first, self._second, self._texts, self._rows = first, second, texts, rows
        self._seen = np.zeros(len(order), dtype=bool)

    @classmethod
    def of(cls, store: Store) -> Self:
        """Read the hashes of all documents in the opened version of a store.

        Raises:
            StoreError: the store cannot be read.
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
        place = self._look_up(ids)
        found = place >= 0
        status = np.full(len(ids), Status.NEW, np.int8)
        status[found] = np.where(self._texts[place[found]] == texts[found], Status.SAME, Status.CHANGED)
        return status

    def rows_of(self, doc_ids: Collection[str]) -> np.ndarray:
        """Look documents up by their ids, and remember that they were looked up.

        Returns:
            The addresses of the rows of those that the store holds, ``(m,)`` uint64.
        """
        place = self._look_up(id_hashes(doc_ids))
        return self._rows[place[place >= 0]]

    def _look_up(self, ids: np.ndarray) -> np.ndarray:
        """Return the place of each document among the hashes, ``(k,)``; -1 for one that the store does not hold."""
        places = np.full(len(ids), -1)
        place = np.searchsorted(self._first, ids[:, 0])
        open_ = np.arange(len(ids))
        while True:
            open_ = open_[place[open_] < len(self)]
            open_ = open_[self._first[place[open_]] == ids[open_, 0]]
            if not open_.size:
                return places
            hit = self._second[place[open_]] == ids[open_, 1]
            places[open_[hit]] = place[open_[hit]]
            self._seen[place[open_[hit]]] = True
            # Only the first half of the hash is equal, which is rare. The next entry may have both halves.
            open_ = open_[~hit]
            place[open_] += 1

    @property
    def unseen(self) -> np.ndarray:
        """Addresses of the rows whose documents have not been looked up, ``(k,)`` uint64."""
        return self._rows[~self._seen]


def ids_at(store: Store, rows: np.ndarray) -> tuple[str, ...]:
    """Return the ids of some documents in the opened version of a store, in the order of its rows.

    Args:
        store: the store.
        rows: addresses of the documents' rows, ``(k,)`` uint64.

    Raises:
        StoreError: the store cannot be read.
    """
    if not rows.size:
        return ()
    batches = read_addressed(store.table, ["doc_id"])
    found = (batch.column("doc_id").filter(pa.array(np.isin(addresses, rows))) for addresses, batch in batches)
    return tuple(doc_id for ids in found for doc_id in ids.to_pylist())
