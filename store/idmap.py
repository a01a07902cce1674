"""Finding rows by document id."""

from collections.abc import Sequence
from typing import Self

import lance
import numpy as np
import xxhash

from .tables import lance_errors


class IdMap:
    """Row offsets by document id, for one version of ``memory``; read-only once made, so threads may share it.

    It keeps a 64-bit hash and an offset per document, sorted by hash: 12 bytes, 288 MB for 24 million documents. Ids
    can share a hash, so what it finds are candidates: whoever reads the rows compares the ids in them.
    """

    def __init__(self, hashes: np.ndarray):
        """Map hashes ``(rows,)`` uint64, in row order."""
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._offsets = order.astype(np.min_scalar_type(len(hashes)))

    @classmethod
    def of(cls, dataset: lance.LanceDataset) -> Self:
        """Read every id of a dataset.

        Raises:
            StoreError: it cannot be read.
        """
        with lance_errors(f"cannot read the document ids of {dataset.uri}"):
            hashes = np.empty(dataset.count_rows(), dtype=np.uint64)
            end = 0
            for batch in dataset.to_batches(columns=["doc_id"]):
                start, end = end, end + batch.num_rows
                hashes[start:end] = _hash(batch.column(0).to_pylist())
        assert end == len(hashes)
        return cls(hashes)

    def candidates(self, doc_ids: Sequence[str]) -> np.ndarray:
        """Offsets of the rows that may hold these ids, ascending and without repeats, ``(rows,)`` int64."""
        hashes = _hash(doc_ids)
        first = np.searchsorted(self._hashes, hashes, side="left")
        counts = np.searchsorted(self._hashes, hashes, side="right") - first
        # The ranges [first, first + count) of all ids, end to end.
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.unique(self._offsets[np.repeat(first, counts) + within].astype(np.int64))


def _hash(doc_ids: Sequence[str]) -> np.ndarray:
    # An id that is no valid Unicode is in no store, but asking for it must say "missing" like any other.
    encoded = (doc_id.encode("utf-8", "surrogatepass") for doc_id in doc_ids)
    return np.fromiter(map(xxhash.xxh3_64_intdigest, encoded), dtype=np.uint64, count=len(doc_ids))
