"""Rows are found by their hashes, and an update compares with them, whatever happens to the cache."""

from pathlib import Path

import lance
import pytest

from pisco_index.store import Contents, Status, commit, compact, delete, document_hashes, write_fragment
from pisco_index.store.derived import row_hashes as module
from pisco_index.store.derived.folders import CACHE_FOLDER
from pisco_index.store.derived.row_hashes import RowHashes
from pisco_index.store.lookup.finding import find_rows
from pisco_index.store.table.rows import take_rows

IDS = [f"{shard}-{i}" for shard in range(3) for i in range(5)]


@pytest.fixture
def filled(store, shard_rows):
    """A store of three shards of five documents."""
    commit(store, [write_fragment(store.uri, shard, shard_rows(shard)) for shard in range(3)])
    return store.refresh()


def files(store):
    return sorted(Path(store.uri, CACHE_FOLDER).glob(f"*{module._SUFFIX}"))


def held(store):
    """Return the ids that are found, by the hashes and by a comparison."""
    addresses, found = find_rows(store.uri, store.table, [*IDS, "x"])
    assert take_rows(store.table, addresses, ["doc_id"]).column(0).to_pylist() == found
    contents = Contents.of(store)
    hashes = store.columns(found, ["text_hash"])
    ids, texts = document_hashes(found, [hashes[doc_id]["text_hash"] for doc_id in found], None)
    assert contents.compare(ids, texts).tolist() == [Status.SAME] * len(found)
    assert contents.unseen_count == 0
    assert sorted(contents.rows_of(found).tolist()) == addresses.tolist()
    return found


def refuse(*args):
    raise AssertionError("ids were read")


def test_commits_keep_the_hashes(filled, monkeypatch):
    monkeypatch.setattr(RowHashes, "make", refuse)
    assert held(filled) == IDS
    delete(filled.uri, ["0-1", "2-4"])
    assert held(filled.refresh()) == [doc_id for doc_id in IDS if doc_id not in ("0-1", "2-4")]
    assert held(filled) == IDS


def test_compactions_keep_the_hashes(filled, monkeypatch):
    delete(filled.uri, ["0-1"])
    compact(filled.uri)
    monkeypatch.setattr(RowHashes, "make", refuse)
    assert sorted(held(filled.refresh())) == sorted({*IDS} - {"0-1"})
    assert len(files(filled)) == 1


def lose(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def cut_short(path):
    path.write_bytes(path.read_bytes()[:9])


def damage(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def enlarge(path):
    content = bytearray(path.read_bytes())
    content[8:24] = b"\xff" * 16
    path.write_bytes(content)


def exchange(path):
    other = next(each for each in path.parent.glob(f"*{module._SUFFIX}") if each != path)
    path.write_bytes(other.read_bytes())


@pytest.mark.fault(
    "The cache of totals or of hashes is lost, cut off, damaged, or left from before a change.",
    "It is made again; every figure, deletion and update is the same.",
)
@pytest.mark.parametrize("harm", [lose, cut, cut_short, damage, enlarge, exchange])
def test_a_damaged_cache_is_only_slow(filled, harm):
    delete(filled.uri, ["1-1"])
    for path in files(filled)[:2]:
        harm(path)
    left = [doc_id for doc_id in IDS if doc_id != "1-1"]
    assert held(filled.refresh()) == left
    delete(filled.uri, ["0-1", "2-4"])
    assert held(filled.refresh()) == [doc_id for doc_id in left if doc_id not in ("0-1", "2-4")]


def test_rows_that_were_deleted_when_the_cache_was_made_are_found_when_they_are_there_again(filled):
    delete(filled.uri, ["0-1", "2-4"])
    for path in files(filled):
        path.unlink()
    assert "0-1" not in held(filled.refresh())
    delete(filled.uri, ["0-2"])
    assert "0-2" not in held(filled.refresh())
    lance.dataset(filled.table.uri, version=filled.version).restore()
    assert held(filled.refresh()) == IDS


def test_ids_are_compared_and_not_only_their_hashes(filled, monkeypatch):
    monkeypatch.setattr("pisco_index.store.lookup.finding.id_hashes", lambda ids: document_hashes(IDS, [], None)[0])
    assert find_rows(filled.uri, filled.table, ["1-1", "x"])[1] == ["1-1"]
    assert find_rows(filled.uri, filled.table, [])[1] == []


def test_files_of_former_fragments_go(filled, shard_rows):
    former = files(filled)
    delete(filled.uri, [f"1-{i}" for i in range(5)])
    Contents.of(filled.refresh())
    assert len(former) == 3
    assert set(files(filled)) < set(former)
    assert len(files(filled)) == 2
