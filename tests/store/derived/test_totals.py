"""The totals of a store equal those of its rows, whatever happens to the cache."""

import shutil
from collections import Counter
from pathlib import Path

import lance
import numpy as np
import pytest

from pisco_index.errors import StoreError
from pisco_index.store import Store, commit, compact, delete, describe, done_shards, write_fragment
from pisco_index.store.derived import totals as module
from pisco_index.store.derived.folders import CACHE_FOLDER
from pisco_index.store.derived.totals import Totals


@pytest.fixture
def filled(store, rows_of):
    """A store of three shards of five documents, one of which failed."""
    for shard in range(3):
        ids = [f"{shard}-{i}" for i in range(5)]
        commit(store, [write_fragment(store.uri, shard, rows_of(ids, failed={"1-3"}))])
    return store.refresh()


def cache(store):
    return Path(store.uri, CACHE_FOLDER, module._FILE)


def counted(store):
    """Count all rows, without any cache."""
    rows = store.table.to_table(columns=["shard", "tokens_total", "tokens_fed", "n_mem", "error"])
    sums = [sum(rows.column(name).to_pylist()) for name in ("tokens_total", "tokens_fed", "n_mem")]
    return len(rows), len(rows) - rows.column("error").null_count, *sums, Counter(rows.column("shard").to_pylist())


def summed(store):
    parts = Totals(store.uri).of(store.table).values()
    shards = sum((Counter(each.shards) for each in parts), Counter())
    names = ("rows", "failed", "tokens_total", "tokens_fed", "n_mem")
    return *(sum(getattr(each, name) for each in parts) for name in names), shards


@pytest.fixture
def no_counting(monkeypatch):
    """Fail when rows are counted."""

    def refuse(*args):
        raise AssertionError("rows were counted")

    monkeypatch.setattr(module, "_count", refuse)


def test_commits_keep_the_totals(filled, no_counting):
    assert summed(filled) == counted(filled)
    assert describe(filled).documents == 15


def test_deletions_keep_the_totals(filled, no_counting):
    delete(filled.uri, ["0-1", "1-3", "2-4"])
    delete(filled.uri, ["0-2", *(f"2-{i}" for i in range(4))])
    after = filled.refresh()
    assert summed(after) == counted(after)
    assert summed(filled) == counted(filled)
    assert done_shards(after) == {0, 1, 2}


def test_compactions_keep_the_totals(filled, monkeypatch):
    delete(filled.uri, ["0-1", "1-3"])
    compact(filled.uri)
    monkeypatch.setattr(module, "_count", None)
    after = filled.refresh()
    assert summed(after) == counted(after)
    assert len(cache(filled).read_bytes().splitlines()) == 1


def lose(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def damage(path):
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    # One digit in each line, among the numbers behind the checksum and the name.
    content[np.flatnonzero(content == ord("\n")) - 5] ^= 1
    path.write_bytes(content.tobytes())


def fill_with_other_json(path):
    lines = (b"[]", b"{}", b'["a"]', b'["a",1,2,3,4,5,6,7]', b'["a",1,2,3,4,5,[1],7]', b"[" * 100_000, b"x", b"\xff")
    path.write_bytes(b"".join(b"%s %s\n" % (module._checksum(line), line) for line in lines))


def replace_with_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.fault(
    "The cache of totals or of hashes is lost, cut off, damaged, or left from before a change.",
    "It is made again; every figure, deletion and update is the same.",
)
@pytest.mark.parametrize("harm", [lose, cut, damage, fill_with_other_json, replace_with_a_folder])
def test_a_damaged_cache_is_only_slow(filled, harm, monkeypatch, tmp_path):
    # Used where the store's own folder cannot be written.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    delete(filled.uri, ["0-1"])
    after = filled.refresh()
    expected = describe(after)
    harm(cache(filled))
    assert summed(after) == counted(after)
    assert describe(Store.open(filled.uri)) == expected
    delete(filled.uri, ["0-2"])
    after = filled.refresh()
    assert summed(after) == counted(after)


def test_a_cut_line_does_not_spoil_the_next_one(filled, rows_of, monkeypatch):
    cut(cache(filled))
    commit(filled, [write_fragment(filled.uri, 3, rows_of(["a"]))])
    monkeypatch.setattr(module, "_count", None)
    after = filled.refresh()
    assert summed(after) == counted(after)


def test_the_cache_of_an_older_state_is_not_used(filled, tmp_path):
    shutil.copytree(Path(filled.uri, CACHE_FOLDER), tmp_path / "kept")
    delete(filled.uri, ["0-1", "1-3"])
    shutil.rmtree(Path(filled.uri, CACHE_FOLDER))
    shutil.copytree(tmp_path / "kept", Path(filled.uri, CACHE_FOLDER))
    after = filled.refresh()
    assert summed(after) == counted(after)


def test_rows_that_another_tool_deletes_are_counted(filled):
    before = filled.version
    filled.table.delete("doc_id IN ('0-1', '1-3')")
    after = filled.refresh()
    assert summed(after) == counted(after)
    lance.dataset(after.table.uri, version=before).restore()
    again = filled.refresh()
    assert summed(again) == counted(again)
    assert again.count == 15


def test_a_store_that_cannot_be_written_has_its_cache_elsewhere(filled, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.rmtree(Path(filled.uri, CACHE_FOLDER))
    Path(filled.uri, CACHE_FOLDER).symlink_to(tmp_path / "somewhere")
    assert summed(filled) == counted(filled)
    assert [path.name for path in tmp_path.glob("cache/pisco-index/*/*")] == [module._FILE]
    monkeypatch.setattr(module, "_count", None)
    assert summed(filled) == counted(filled)


def test_emptied_shards_are_those_that_lose_their_last_row(filled):
    addresses = np.array([0, 1, 2, 3, 4, 1 << 32, (2 << 32) + 3], np.uint64)
    totals = Totals(filled.uri)
    lost = totals.lost(filled.table, addresses)
    assert {number: each.rows for number, each in lost.items()} == {0: 5, 1: 1, 2: 1}
    assert totals.emptied_shards(filled.table, lost) == {0}


def test_states_of_former_versions_are_forgotten(filled, monkeypatch):
    monkeypatch.setattr(module, "_STATES", 1)
    monkeypatch.setattr(module, "_MORE_STATES", 1)
    for doc_id in ("0-1", "0-2", "1-1", "1-2", "2-1"):
        delete(filled.uri, [doc_id])
        after = filled.refresh()
        assert summed(after) == counted(after)
        assert len(cache(filled).read_bytes().splitlines()) <= 5
    assert summed(filled) == counted(filled)


def test_shards_are_known_although_another_column_is_damaged(filled, monkeypatch):
    def fail(*args):
        raise StoreError("cannot read the column tokens_total")

    cache(filled).unlink()
    monkeypatch.setattr(module, "_count", fail)
    assert done_shards(filled.refresh()) == {0, 1, 2}
