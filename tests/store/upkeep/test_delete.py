import lance
import pytest

from pisco_index.errors import CorruptStoreError, MissingDocumentsError, StoreError, StoreLockedError
from pisco_index.store import build_lock, commit, delete, done_shards, is_altered, write_fragment


@pytest.fixture
def filled(store, shard_rows):
    """A store of three shards of five documents."""
    commit(store, [write_fragment(store.uri, shard, shard_rows(shard)) for shard in range(3)])
    return store.refresh()


def test_documents_go_and_nothing_else(filled):
    deletion = delete(filled.uri, ["0-1", "2-4", "0-1"])
    assert (deletion.deleted, deletion.missing) == (2, ())
    after = filled.refresh()
    assert after.count == 13
    with pytest.raises(MissingDocumentsError, match="2-4"):
        after.fetch(["0-0", "2-4"])
    assert after.fetch(["0-0", "2-3"]).payloads == filled.fetch(["0-0", "2-3"]).payloads
    assert filled.fetch(["0-1"]).doc_ids == ("0-1",)
    assert is_altered(after.table)


def test_a_shard_that_loses_every_row_is_still_done(filled):
    delete(filled.uri, [f"1-{i}" for i in range(5)])
    assert filled.refresh().count == 10
    assert done_shards(filled.refresh()) == {0, 1, 2}
    delete(filled.uri, list(filled.refresh().ids()))
    assert filled.refresh().count == 0
    assert done_shards(filled.refresh()) == {0, 1, 2}


def test_missing_ids_are_named_and_nothing_is_deleted(filled):
    with pytest.raises(MissingDocumentsError, match=r"not hold 2 of the documents to delete: 'x', '\\udc80'.*Nothing"):
        delete(filled.uri, ["0-1", "x", "\udc80"])
    assert delete(filled.uri, ["x"], missing="skip").missing == ("x",)
    assert filled.refresh().count == 15
    # A build of the same corpus has nothing to do.
    assert not is_altered(filled.refresh().table)
    deletion = delete(filled.uri, ["0-1", "x", "\udc80"], missing="skip")
    assert (deletion.deleted, deletion.missing) == (1, ("x", "\udc80"))
    assert delete(filled.uri, ["x"], missing="skip").deleted == 0
    assert filled.refresh().count == 14


def test_nothing_is_deleted_while_a_build_runs(filled):
    with build_lock(filled.uri), pytest.raises(StoreLockedError):
        delete(filled.uri, ["0-1"])
    assert filled.refresh().count == 15


def test_a_deletion_that_landed_but_reported_an_error_is_recognised(filled, monkeypatch):
    real = lance.LanceDataset.commit
    failures = [None, OSError("connection reset")]

    def land_then_fail(*args, **kwargs):
        landed = real(*args, **kwargs)
        failure = failures.pop(0) if failures else None
        if failure:
            raise failure
        return landed

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(land_then_fail))
    assert delete(filled.uri, ["0-1", "1-1"]).deleted == 2
    assert filled.refresh().count == 13


def test_an_id_that_is_there_twice_is_an_error(filled, rows_of):
    commit(filled, [write_fragment(filled.uri, 8, rows_of(["0-1"]))])
    with pytest.raises(CorruptStoreError, match="twice"):
        delete(filled.uri, ["0-1"])


def test_what_cannot_be_asked(tmp_path, filled):
    with pytest.raises(TypeError, match="not the one id '0-1'"):
        delete(filled.uri, "0-1")
    with pytest.raises(StoreError, match="there is no store"):
        delete(tmp_path / "nowhere", ["a"])
