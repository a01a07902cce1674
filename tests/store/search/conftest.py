from collections.abc import Callable, Collection, Sequence

import numpy as np
import pyarrow as pa
import pytest

from pisco_index.store import CONTENTS, Store, codec_by_name, commit, encode, memory_rows, text_hash, write_fragment
from pisco_index.store.search.index import INDEX_NAME

DIM = 8
TOPICS = ("river", "castle", "violin", "comet", "harbour", "orchard")


def text_of(doc_id: str) -> str:
    """Make the text of a document, in which one word is its own."""
    number = sum(doc_id.encode())
    return f"The {TOPICS[number % 6]} of {TOPICS[number % 5]} is known as {word_of(doc_id)}."


def word_of(doc_id: str) -> str:
    """Make the word that stands in the text of this document only."""
    return "name" + doc_id.replace("-", "q")


@pytest.fixture
def rows_of() -> Callable[..., pa.Table]:
    """Make rows with payloads so long that Lance stores them as large values."""

    def rows_of(doc_ids: Sequence[str], texts: Sequence[str] | None = None, **optional: Sequence[str]) -> pa.Table:
        texts = list(map(text_of, doc_ids)) if texts is None else texts
        values = np.arange(40 * DIM, dtype=np.float32).reshape(40, DIM)
        return memory_rows(
            doc_ids=doc_ids,
            tokens_total=[40] * len(doc_ids),
            tokens_fed=[30] * len(doc_ids),
            payloads=[encode(i, values + sum(i.encode()), codec_by_name("fp32")) for i in doc_ids],
            text_hashes=list(map(text_hash, texts)),
            errors=[None] * len(doc_ids),
            **optional,
        )

    return rows_of


@pytest.fixture
def add(rows_of) -> Callable[..., list[str]]:
    """Commit a shard of documents ``"<shard>-<i>"``, with contents if the store has the column. Return their ids."""

    def add(store: Store, shard: int, documents: int = 30, plan: str | None = None) -> list[str]:
        ids = [f"{shard}-{i}" for i in range(documents)]
        has_contents = CONTENTS in store.refresh().table.schema.names
        rows = rows_of(ids, **({CONTENTS: list(map(text_of, ids))} if has_contents else {}))
        commit(store, [write_fragment(store.uri, shard, rows)], plan)
        return ids

    return add


@pytest.fixture
def store(tmp_path, meta) -> Store:
    """A store with the column that is searched, and no rows."""
    return Store.create(tmp_path / "index", meta=meta, assets={"connector": b"weights"}, further_columns=(CONTENTS,))


@pytest.fixture
def plain(tmp_path, meta) -> Store:
    """A store without the column, as earlier versions made them."""
    return Store.create(tmp_path / "plain", meta=meta, assets={"connector": b"weights"})


def found(store: Store, question: str, most: int = 1000) -> list[str]:
    """Return the ids of the documents that have a word of the question, the best first."""
    hits = store.table.scanner(columns=["doc_id", "_score"], full_text_query=question, prefilter=True, limit=most)
    return hits.to_table().column("doc_id").to_pylist()


def require_found(store: Store, doc_ids: Collection[str]) -> None:
    """Check that a search finds every document by its own word, and each of them once."""
    assert sorted(found(store, "known")) == sorted(doc_ids)
    for doc_id in list(doc_ids)[::7]:
        assert found(store, word_of(doc_id)) == [doc_id]


def details(store: Store) -> dict:
    """Return Lance's own description of the index."""
    return next(each for each in store.table.describe_indices() if each.name == INDEX_NAME).details
