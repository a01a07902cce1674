import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisco_index.store import Contents, Status, commit, document_hashes, text_hash, write_fragment
from pisco_index.store.derived.row_hashes import Hashes

HASHES = st.tuples(st.integers(0, 3), st.integers(0, 3))


def _ids(hashes):
    """Make hashes of ids, whose upper bits count."""
    return np.array(list(hashes), np.uint64).reshape(-1, 2) << np.array([62, 0], np.uint64)


@given(st.dictionaries(HASHES, st.integers(0, 2)), st.dictionaries(HASHES, st.integers(0, 2)))
def test_hashes_that_begin_alike_are_told_apart(stored, asked):
    texts, rows = np.array(list(stored.values()), np.uint64), np.arange(len(stored), dtype=np.uint64)
    contents = Contents([(Hashes(*_ids(stored).T, texts), rows)], len(stored))
    status = contents.compare(_ids(asked), np.array(list(asked.values()), np.uint64))
    expected = [
        Status.NEW if key not in stored else Status.SAME if stored[key] == text else Status.CHANGED
        for key, text in asked.items()
    ]
    assert status.tolist() == expected
    assert contents.unseen_count == len(contents.unseen)
    assert set(contents.unseen.tolist()) == {row for row, key in enumerate(stored) if key not in asked}


@pytest.mark.parametrize("titles", [False, True])
def test_what_a_store_holds_is_hashed_like_what_a_corpus_holds(store, rows_of, titles, tmp_path, meta):
    if titles:
        meta = meta.model_copy(update={"optional_columns": ("title",)})
        store = type(store).create(tmp_path / "titled", meta=meta, assets={})
    names = ["a", "é", "\N{GRINNING FACE}" * 9]
    kept = {"titles": ["One", None, ""]} if titles else {}
    commit(store, [write_fragment(store.uri, 0, rows_of(names, **kept))])
    contents = Contents.of(store.refresh())
    hashes = rows_of(names).column("text_hash").to_pylist()
    # A title that is missing is the same as an empty one.
    asked = ["One", "", None] if titles else None
    assert contents.compare(*document_hashes(names, hashes, asked)).tolist() == [Status.SAME] * 3
    assert len(contents) == 3
    assert not contents.unseen.size
    if titles:
        assert contents.compare(*document_hashes(names, hashes, ["Two", "", ""]))[0] == Status.CHANGED


def test_hashes_in_a_temporary_file_are_the_same(store, rows_of, monkeypatch):
    ids = [f"{i}" for i in range(50)]
    commit(store, [write_fragment(store.uri, shard, rows_of(ids[shard::2])) for shard in range(2)])
    hashes = document_hashes([*ids, "x"], [text_hash(i) for i in [*ids[:-1], "changed", "x"]], None)
    contents = []
    for limit in (100, 10):
        monkeypatch.setattr("pisco_index.store.contents._IN_MEMORY", limit)
        contents.append(Contents.of(store.refresh()))
        assert contents[-1].compare(*hashes).tolist() == [Status.SAME] * 49 + [Status.CHANGED, Status.NEW]
        assert contents[-1].unseen_count == 0
    memory, mapped = (each._others._mapped for each in contents)
    assert memory is None
    assert mapped is not None or sys.platform != "linux"
