from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pisco_index.store import (
    Fingerprint,
    Store,
    StoreMeta,
    codec_by_name,
    encode,
    memory_rows,
    rejected_rows,
    text_hash,
)

DIM = 8


@pytest.fixture
def meta() -> StoreMeta:
    return StoreMeta(
        fingerprint=Fingerprint({"weights": "aa11", "rate": "16"}),
        stage="hidden",
        dim=DIM,
        codec="bf16",
        checkpoint={"name": "tiny", "rate": 16},
        package_version="0.1.0",
    )


@pytest.fixture
def store(tmp_path: Path, meta: StoreMeta) -> Store:
    return Store.create(tmp_path / "index", meta=meta, assets={"connector": b"weights"})


@pytest.fixture
def memory_of() -> Callable[[str], np.ndarray]:
    """Make the memory of a document from its id: one to three vectors that are exact in bfloat16."""

    def memory_of(doc_id: str) -> np.ndarray:
        seed = sum(doc_id.encode())
        return (np.arange((1 + seed % 3) * DIM, dtype=np.float32).reshape(-1, DIM) + seed % 5) / 4

    return memory_of


@pytest.fixture
def rows_of(memory_of: Callable[[str], np.ndarray]) -> Callable[..., pa.Table]:
    """Make rows of ``memory`` for ids, some of them failed."""

    def rows_of(doc_ids: Sequence[str], failed: Collection[str] = (), **optional: Sequence[str]) -> pa.Table:
        codec = codec_by_name("bf16")
        return memory_rows(
            doc_ids=doc_ids,
            tokens_total=[40] * len(doc_ids),
            tokens_fed=[30] * len(doc_ids),
            payloads=[None if i in failed else encode(i, memory_of(i), codec) for i in doc_ids],
            text_hashes=[text_hash(i) for i in doc_ids],
            errors=["too strange" if i in failed else None for i in doc_ids],
            **optional,
        )

    return rows_of


@pytest.fixture
def shard_rows(rows_of: Callable[..., pa.Table]) -> Callable[..., pa.Table]:
    """Make the rows of a shard: documents ``"<shard>-<i>"``."""

    def shard_rows(shard: int, documents: int = 5) -> pa.Table:
        return rows_of([f"{shard}-{i}" for i in range(documents)])

    return shard_rows


@pytest.fixture
def one_reject() -> pa.Table:
    return rejected_rows(sources=["corpus.jsonl:7"], doc_ids=[None], errors=["no id"])
