"""A few ids are found through the id map alone; without it, or for many ids, the hashes of all rows find them."""

from pathlib import Path

import pytest

from pisco_index.store import commit, compact, delete, write_fragment
from pisco_index.store.derived.folders import CACHE_FOLDER
from pisco_index.store.derived.row_hashes import RowHashes
from pisco_index.store.lookup import finding
from pisco_index.store.lookup.finding import find_rows
from pisco_index.store.lookup.idcache import keep_map
from pisco_index.store.table.rows import take_rows

IDS = [f"{shard}-{i}" for shard in range(3) for i in range(5)]


@pytest.fixture
def filled(store, shard_rows):
    """A store of three shards of five documents, with its id map."""
    commit(store, [write_fragment(store.uri, shard, shard_rows(shard)) for shard in range(3)])
    keep_map(store.uri)
    return store.refresh()


def refuse(*_):
    raise AssertionError("all rows were gone through")


@pytest.fixture
def only_the_map(monkeypatch):
    """The hashes of rows cannot be read."""
    monkeypatch.setattr(RowHashes, "kept", refuse)


def found(store):
    addresses, ids = find_rows(store.uri, store.table, [*IDS, "x"])
    assert take_rows(store.table, addresses, ["doc_id"]).column(0).to_pylist() == ids
    return sorted(ids)


def test_the_map_alone_finds_rows(filled, only_the_map):
    assert found(filled) == IDS
    delete(filled.uri, ["0-1", "2-4"])
    left = [doc_id for doc_id in IDS if doc_id not in ("0-1", "2-4")]
    assert found(filled.refresh()) == left
    # The version before the deletion still has all rows.
    assert found(filled) == IDS


def test_it_does_after_a_compaction(filled, only_the_map):
    delete(filled.uri, ["0-1"])
    compact(filled.uri)
    assert found(filled.refresh()) == sorted({*IDS} - {"0-1"})


def test_a_damaged_map_is_not_believed(filled):
    for path in Path(filled.uri, CACHE_FOLDER).glob("*.idmap"):
        content = bytearray(path.read_bytes())
        content[-200:] = bytes(200)
        path.write_bytes(content)
    assert found(filled) == IDS


def test_many_ids_are_not_looked_up_one_by_one(filled, monkeypatch):
    monkeypatch.setattr(finding, "_LOOKED_UP", 3)
    monkeypatch.setattr(finding, "cached_map", refuse)
    assert found(filled) == IDS
