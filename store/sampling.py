"""Samples of a store's memory: to fit a calibration to it, or to predict what a codec loses."""

import numpy as np

from .store import Store

# Number of documents read and decoded at a time, to bound the RAM that payloads take in addition to their vectors.
_ROWS_AT_ONCE = 1024


def sample_memory(store: Store, vectors: int) -> tuple[np.ndarray, list[int]]:
    """Return the memory of documents that are spread evenly over the rows of a store.

    Args:
        store: the store.
        vectors: approximate number of memory embeddings to return; all of them if there are fewer.

    Returns:
        Memory embeddings, ``(Σ n_mem, dim)`` float32, and the number of memory tokens of each document.

    Raises:
        StoreError: the store cannot be read.
    """
    totals = store.ledger.totals.of(store.table).values()
    total, stored = sum(each.n_mem for each in totals), sum(each.rows - each.failed for each in totals)
    count = 0 if not total else stored if total <= vectors else min(stored, -(-vectors * stored // total))
    chosen = np.linspace(0, stored - 1, count).round().astype(np.int64)
    if any(each.failed for each in totals):
        chosen = np.flatnonzero(store.number_column("n_mem") > 0)[chosen]
    parts, lengths = [np.zeros((0, store.meta.dim), np.float32)], []
    for start in range(0, len(chosen), _ROWS_AT_ONCE):
        values, counts = store.read(chosen[start : start + _ROWS_AT_ONCE]).memory()
        parts.append(values)
        lengths += counts.tolist()
    return np.concatenate(parts), lengths
