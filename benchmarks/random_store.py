"""Stores of random memory, for benchmarks that need no compressor."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pisco_index.configs.names import Stage
from pisco_index.store import Fingerprint, Store, StoreMeta, codec_by_name, encode, memory_rows, text_hash


def create_store(
    uri: str | Path,
    *,
    dim: int,
    codec: str = "bf16",
    stage: Stage = "hidden",
    connector: str = "none",
    assets: Mapping[str, bytes] | None = None,
    further_columns: Sequence[str] = (),
) -> Store:
    """Create an empty store for memory of a width, with the digest of a connector."""
    meta = StoreMeta(
        fingerprint=Fingerprint({"connector": connector}),
        stage=stage,
        dim=dim,
        codec=codec,
        checkpoint={},
        package_version="benchmark",
    )
    return Store.create(uri, meta=meta, assets=assets or {}, further_columns=further_columns)


def rows_of(doc_ids: Sequence[str], memory: Iterable[np.ndarray], codec: str = "bf16", *, rate: int = 16) -> pa.Table:
    """Return the rows of some documents, ready for a fragment.

    Args:
        doc_ids: ids of the documents.
        memory: memory of each document, ``(n_mem, dim)`` float32.
        codec: codec of the store.
        rate: number of tokens to record for each memory embedding.
    """
    values = list(memory)
    tokens = [len(each) * rate for each in values]
    return memory_rows(
        doc_ids=doc_ids,
        tokens_total=tokens,
        tokens_fed=tokens,
        payloads=[encode(doc_id, each, codec_by_name(codec)) for doc_id, each in zip(doc_ids, values, strict=True)],
        text_hashes=[text_hash(doc_id) for doc_id in doc_ids],
        errors=[None] * len(doc_ids),
    )
