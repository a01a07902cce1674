"""Samples of a store's memory: to fit a codec to it, and to measure what the codec loses."""

import numpy as np

from .codecs.prediction import MemorySample
from .schema import CONTENTS
from .store import Store

# Number of documents read and decoded at a time, to bound the RAM that payloads take in addition to their vectors.
_ROWS_AT_ONCE = 1024


def sample_memory(store: Store, vectors: int, *, with_texts: bool = False) -> MemorySample:
    """Return the memory of documents that are spread evenly over the rows of a store.

    Args:
        store: the store.
        vectors: approximate number of memory embeddings to return; all of them if there are fewer.
        with_texts: True to return the texts too, as far as the store keeps them.

    Raises:
        StoreError: the store cannot be read.
    """
    totals = store.ledger.totals.of(store.table).values()
    total, stored = sum(each.n_mem for each in totals), sum(each.rows - each.failed for each in totals)
    count = 0 if not total else stored if total <= vectors else min(stored, -(-vectors * stored // total))
    chosen = np.linspace(0, stored - 1, count).round().astype(np.int64)
    if any(each.failed for each in totals):
        chosen = np.flatnonzero(store.number_column("n_mem") > 0)[chosen]
    parts, lengths, texts = [np.zeros((0, store.meta.dim), np.float32)], list[int](), list[str]()
    for start in range(0, len(chosen), _ROWS_AT_ONCE):
        rows = chosen[start : start + _ROWS_AT_ONCE]
        values, counts = store.read(rows).memory()
        parts.append(values)
        lengths += counts.tolist()
        texts += _texts(store, rows) if with_texts else [""] * len(counts)
    return MemorySample(np.concatenate(parts), lengths, texts)


def _texts(store: Store, rows: np.ndarray) -> list[str]:
    """Return the texts of documents as far as they were compressed; empty where the store keeps none."""
    kept = [name for name in (CONTENTS, "text") if name in store.kept_columns]
    taken = store.take(rows, ["tokens_total", "tokens_fed", *kept]).to_pylist()
    texts = [next((row[name] for name in kept if row[name]), "") for row in taken]
    return [
        text[: len(text) * row["tokens_fed"] // max(row["tokens_total"], 1)]
        for text, row in zip(texts, taken, strict=True)
    ]
