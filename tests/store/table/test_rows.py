"""Rows are taken by their addresses, in the requested order, and none is lost silently."""

import lance
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pisco_index.errors import CorruptStoreError, StoreError
from pisco_index.store import Store, commit, write_fragment
from pisco_index.store.table.rows import RowTaker, pieces


@pytest.fixture
def altered(store, rows_of) -> Store:
    """Fragments of 30, 20 and 10 rows. Of the first two rows are deleted, at the edges and side by side."""
    for shard, count in enumerate((30, 20, 10)):
        commit(store, [write_fragment(store.uri, shard, rows_of([f"{shard}-{i}" for i in range(count)]))])
    deleted = [f"0-{i}" for i in (0, 1, 7, 8, 9, 29)] + [f"1-{i}" for i in (3, 19)]
    lance.dataset(f"{store.uri}/memory.lance").delete(f"doc_id in ({', '.join(map(repr, deleted))})")
    return store.refresh()


@pytest.fixture
def taker(altered, monkeypatch) -> RowTaker:
    """Lance's own way to take rows by number is too slow, and must not be used."""
    monkeypatch.delattr(lance.LanceDataset, "take")
    return RowTaker(altered.uri, altered.table)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(numbers=st.lists(st.integers(0, 51), max_size=80))
def test_rows_come_in_the_order_of_their_numbers(altered, taker, numbers):
    ids = list(altered.ids())
    assert len(ids) == 52
    taken = taker.take(numbers, ["doc_id"])
    assert taken.column_names == ["doc_id"]
    assert taken.column(0).to_pylist() == [ids[number] for number in numbers]


@pytest.mark.parametrize("number", [-1, 52, 1 << 40])
def test_a_row_that_does_not_exist_is_refused(taker, number):
    with pytest.raises(StoreError, match="has 52 rows"):
        taker.take([0, number], ["doc_id"])


@pytest.mark.parametrize("number", [0, -1])
def test_no_row_of_an_empty_store_exists(store, number):
    assert RowTaker(store.uri, store.table).take([], ["doc_id"]).num_rows == 0
    with pytest.raises(StoreError, match="has 0 rows"):
        RowTaker(store.uri, store.table).take([number], ["doc_id"])


def test_deleted_rows_are_numbered_in_their_files(taker):
    numbers = [fragment.fragment_id for fragment in taker._fragments.values()]
    assert [taker.deleted(number).tolist() for number in numbers] == [[0, 1, 7, 8, 9, 29], [3, 19], []]


@pytest.mark.fault(
    "Lance returns fewer rows than it should, or other rows.",
    "Reading is an error.",
)
@pytest.mark.parametrize("rows", [[5, 7], [7], [6, 7, 10], [2, 3, 7]])
def test_a_deleted_row_that_is_asked_for_is_not_passed_over(altered, taker, rows):
    first = altered.table.get_fragments()[0].fragment_id << 32
    with pytest.raises(CorruptStoreError, match=rf"returns {len(rows) - 1} rows.* {len(rows)}\."):
        taker.take_at([first + row for row in rows], ["doc_id"])


def test_rows_in_another_order_are_noticed(taker, monkeypatch):
    real = lance.LanceDataset._take_rows
    monkeypatch.setattr(
        lance.LanceDataset, "_take_rows", lambda self, rows, columns: real(self, np.sort(rows), columns)
    )
    assert taker.take([1, 5], ["doc_id"]).num_rows == 2
    with pytest.raises(CorruptStoreError, match="other rows"):
        taker.take([5, 1], ["doc_id"])


@given(st.lists(st.integers(0, 30)), st.integers(1, 40), st.integers(1, 5))
def test_pieces_have_few_documents_and_vectors(n_mem, vectors, documents):
    found = list(pieces(np.array(n_mem, np.int64), vectors, documents))
    assert [place for each in found for place in range(each.start, each.stop)] == list(range(len(n_mem)))
    for each in found:
        part = n_mem[each]
        assert 1 <= len(part) <= documents
        assert len(part) == 1 or sum(part) <= vectors
