"""Compare-and-swap: Lance refuses conflicting commits, and shards of an update replace the rows of their documents."""

import lance
import numpy as np
import pytest
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata

from pisco_index.errors import StoreError
from pisco_index.store import Store, begin_update, commit, is_altered, plan_in_force, write_fragment
from pisco_index.store.lookup.finding import find_rows
from pisco_index.store.table.datasets import fragments_of
from pisco_index.store.table.swap import Proposal, _operation, without_rows

NOTHING = np.empty(0, np.uint64)


@pytest.fixture
def filled(store, shard_rows):
    """A store of three shards of five documents."""
    commit(store, [write_fragment(store.uri, shard, shard_rows(shard)) for shard in range(3)])
    return store.refresh()


def rows_named(store, *doc_ids):
    return find_rows(store.uri, store.table, doc_ids)[0]


def proposals(store, shard_rows):
    """Every kind of commit, from the version at which a store is open."""
    table = store.table
    written = [
        FragmentMetadata.from_json(text) for text in write_fragment(store.uri, 9, shard_rows(9)).memory_fragments
    ]
    everything = fragments_of(table)
    return {
        "add": Proposal(everything, written),
        "delete": Proposal(without_rows(table, rows_named(store, "2-0"))),
        "replace": Proposal(without_rows(table, rows_named(store, "1-0")), written),
        "empty": Proposal(without_rows(table, rows_named(store, *(f"1-{i}" for i in range(5)))), written),
        "empty the first": Proposal(without_rows(table, rows_named(store, *(f"0-{i}" for i in range(5))))),
        "metadata": Proposal(everything, metadata={"a": "b"}),
    }


KINDS = ["add", "delete", "replace", "empty", "empty the first", "metadata"]


@pytest.mark.fault(
    "Two builds update one store without a lock.",
    "Each document is stored once; the second continues with the first's plan or is refused.",
)
@pytest.mark.parametrize("first", KINDS)
def test_of_two_commits_from_one_version_lance_refuses_the_second(filled, shard_rows, first):
    """The protocol rests on this, whatever rows the two commits touch."""
    table = filled.table
    operations = {name: _operation(table, each) for name, each in proposals(filled, shard_rows).items()}
    lance.LanceDataset.commit(table, operations[first], read_version=table.version, max_retries=0)
    for second in KINDS:
        with pytest.raises(CommitConflictError):
            lance.LanceDataset.commit(table, operations[second], read_version=table.version, max_retries=0)


def test_a_compaction_comes_before_a_commit_or_after_it_but_not_between(filled, shard_rows):
    operation = _operation(filled.table, proposals(filled, shard_rows)["empty"])
    lance.dataset(filled.table.uri).optimize.compact_files()
    with pytest.raises(CommitConflictError):
        lance.LanceDataset.commit(filled.table, operation, read_version=filled.version, max_retries=0)


def test_metadata_stays_with_every_later_commit(filled, shard_rows):
    assert (plan_in_force(filled.table), is_altered(filled.table)) == (None, False)
    assert begin_update(filled, b"plan", NOTHING)
    name = plan_in_force(filled.refresh().table)
    assert filled.asset(name) == b"plan"
    for shard, doc_ids in ((10, 1), (11, 5)):
        commit(filled, [write_fragment(filled.uri, shard, shard_rows(1, documents=doc_ids))], name)
        assert plan_in_force(filled.refresh().table) == name
    lance.dataset(filled.table.uri).optimize.compact_files()
    assert plan_in_force(filled.refresh().table) == name


def test_a_shard_of_an_update_replaces_the_rows_of_its_documents(filled, rows_of):
    begin_update(filled, b"plan", NOTHING)
    name = plan_in_force(filled.refresh().table)
    before = filled.refresh()
    ids = ["0-3", "new", *(f"1-{i}" for i in range(5))]
    written = write_fragment(filled.uri, 7, rows_of(ids, failed={"new"}))
    for new in ({7}, set()):
        assert commit(filled, [written], name).new == new
        after = filled.refresh()
        assert sorted(after.ids()) == sorted([*before.ids(), "new"])
        shard = dict(zip(after.ids(), after.table.to_table(columns=["shard"]).column(0).to_pylist(), strict=True))
        assert {doc_id for doc_id, number in shard.items() if number == 7} == set(ids)
    assert before.fetch(["1-1", "0-3"]).doc_ids == ("1-1", "0-3")


def test_a_shard_of_a_plan_that_is_no_longer_in_force_is_refused(filled, shard_rows):
    late = write_fragment(filled.uri, 5, shard_rows(5))
    begin_update(filled, b"plan", NOTHING)
    version = filled.refresh().version
    for plan in (None, "plan/other"):
        with pytest.raises(StoreError, match="another build has begun to update"):
            commit(filled, [late], plan)
    assert filled.refresh().version == version


def test_an_update_begins_only_from_the_version_it_was_planned_for(filled, shard_rows):
    gone = rows_named(filled, "0-0", *(f"2-{i}" for i in range(5)))
    commit(filled, [write_fragment(filled.uri, 3, shard_rows(3))])
    assert not begin_update(filled, b"plan", gone)
    assert plan_in_force(filled.refresh().table) is None
    now = filled.refresh()
    assert now.count == 20
    assert begin_update(now, b"plan", gone)
    assert now.refresh().count == 14
    assert not is_altered(now.refresh().table)


def test_a_beginning_that_landed_but_reported_an_error_is_recognised(filled, monkeypatch):
    real, calls = lance.LanceDataset.commit, []

    def land_then_fail(*args, **kwargs):
        landed = real(*args, **kwargs)
        calls.append(True)
        if len(calls) == 1:
            raise OSError("connection reset")
        return landed

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(land_then_fail))
    assert begin_update(filled, b"plan", NOTHING)
    assert len(calls) == 1


def test_columns_changed_by_another_tool_are_not_written_over(filled):
    lance.dataset(filled.table.uri).drop_columns(["tokens_fed"])
    lance.dataset(filled.table.uri).add_columns({"tokens_fed": "cast(1 as int)"})
    with pytest.raises(StoreError, match="changed by another tool"):
        begin_update(Store.open(filled.uri), b"plan", NOTHING)
