import sys
import threading
from pathlib import Path

import lance
import pytest

from pisco_index.errors import StoreError, StoreLockedError
from pisco_index.store import Store, build_lock, commit, compact, delete, done_shards, write_fragment

# The function has its module's name.
MODULE = sys.modules["pisco_index.store.upkeep.compact"]


@pytest.fixture
def filled(store, shard_rows, one_reject):
    """A store of six shards in six commits."""
    for shard in range(6):
        commit(store, [write_fragment(store.uri, shard, shard_rows(shard), one_reject)])
    return store.refresh()


def payloads(store):
    table = store.table.to_table(columns=["doc_id", "payload"])
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


def test_every_row_and_byte_stays_and_the_rest_goes(filled):
    delete(filled.uri, ["3-1", *(f"5-{i}" for i in range(5))])
    before = payloads(filled.refresh())
    compaction = compact(filled.uri, older_than_hours=0)
    assert (compaction.fragments_before, compaction.fragments) == (5, 1)
    assert (compaction.versions_before, compaction.versions) == (9, 1)
    assert compaction.bytes < compaction.bytes_before
    after = filled.refresh()
    assert payloads(after) == before
    assert done_shards(after) == set(range(6))
    (fragment,) = after.table.get_fragments()
    assert (fragment.physical_rows, fragment.metadata.deletion_file) == (24, None)
    assert len(list(Path(filled.uri, "memory.lance", "data").iterdir())) == 1
    # As the format says of every data file.
    assert after.table.data_storage_version == "2.2"
    assert after.table.schema.field("payload").metadata == {b"lance-encoding:compression": b"none"}
    assert lance.dataset(f"{filled.uri}/rejected.lance").count_rows() == 6
    assert after.asset("connector") == b"weights"


def test_compacting_again_changes_nothing(filled):
    compact(filled.uri)
    version = filled.refresh().version
    compaction = compact(filled.uri)
    assert filled.refresh().version == version
    assert compaction.fragments_before == compaction.fragments == 1
    assert compaction.bytes == compaction.bytes_before


def test_young_versions_are_kept_for_those_who_read_them(filled):
    before = payloads(filled)
    delete(filled.uri, ["3-1"])
    compaction = compact(filled.uri)
    assert compaction.versions >= compaction.versions_before
    assert payloads(Store.open(filled.uri, filled.version)) == before
    assert payloads(filled) == before


def test_a_reader_reads_on_while_a_store_is_compacted(filled):
    ids = list(filled.ids())
    expected = filled.fetch(ids).payloads
    stop, wrong = threading.Event(), []

    def read():
        while not stop.is_set():
            reader = Store.open(filled.uri)
            for store in (reader, filled):
                if store.fetch(ids).payloads != expected:
                    wrong.append(store.version)

    thread = threading.Thread(target=read)
    thread.start()
    for shard in range(6, 9):
        empty = write_fragment(filled.uri, shard, filled.table.to_table().slice(0, 0).drop_columns(["shard"]))
        commit(filled, [empty])
        compact(filled.uri)
    stop.set()
    thread.join()
    assert not wrong


def sizes(store):
    fragments = (fragment.metadata for fragment in store.refresh().table.get_fragments())
    return [(each.physical_rows, each.num_deletions) for each in fragments]


def test_fragments_that_are_large_enough_are_left_alone(filled, shard_rows, monkeypatch):
    monkeypatch.setattr(MODULE, "FRAGMENT_ROWS", 8)
    version = filled.version
    compaction = compact(filled.uri)
    assert (compaction.left_alone, compaction.left_deleted) == (6, 0)
    commit(filled, [write_fragment(filled.uri, shard, shard_rows(shard, 3)) for shard in range(6, 8)])
    assert compact(filled.uri).left_alone == 6
    assert sizes(filled) == [(5, 0)] * 6 + [(6, 0)]
    assert filled.refresh().version > version
    assert compact(filled.uri).left_alone == 7


def test_large_fragments_are_rewritten_from_a_share_of_deleted_rows_on(filled, monkeypatch):
    monkeypatch.setattr(MODULE, "FRAGMENT_ROWS", 4)
    delete(filled.uri, ["0-0", "1-0", "1-1"])
    compaction = compact(filled.uri, min_deleted=0.4)
    assert (compaction.left_alone, compaction.left_deleted) == (5, 1)
    assert sorted(sizes(filled)) == [(3, 0), *[(5, 0)] * 4, (5, 1)]
    compaction = compact(filled.uri, min_deleted=0)
    assert (compaction.left_alone, compaction.left_deleted) == (5, 0)
    assert sorted(sizes(filled)) == [(3, 0), (4, 0), *[(5, 0)] * 4]


def test_nothing_is_compacted_while_a_build_runs(filled):
    with build_lock(filled.uri), pytest.raises(StoreLockedError):
        compact(filled.uri)


def test_what_cannot_be_asked(tmp_path, filled, monkeypatch):
    with pytest.raises(ValueError, match="must not be negative"):
        compact(filled.uri, older_than_hours=-1)
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        compact(filled.uri, min_deleted=10)
    with pytest.raises(StoreError, match="there is no store"):
        compact(tmp_path / "nowhere")
    monkeypatch.setattr(MODULE, "local_folder", lambda uri: None)
    with pytest.raises(StoreError, match=r"cannot be seen in an object store.*--no-build-runs"):
        compact(filled.uri)
    assert compact(filled.uri, no_build_runs=True).fragments == 1
