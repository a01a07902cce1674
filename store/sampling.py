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
    n_mem = store.number_column("n_mem")
    rows = np.flatnonzero(n_mem > 0)
    total = int(n_mem.sum())
    count = len(rows) if total <= vectors else min(len(rows), -(-vectors * len(rows) // total))
    chosen = rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)] if count else rows
    parts, lengths = [np.zeros((0, store.meta.dim), np.float32)], []
    for start in range(0, len(chosen), _ROWS_AT_ONCE):
        values, counts = store.read(chosen[start : start + _ROWS_AT_ONCE]).memory()
        parts.append(values)
        lengths += counts.tolist()
    return np.concatenate(parts), lengths
