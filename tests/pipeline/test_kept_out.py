"""Documents that were deleted for good: no build stores them until they are let in again."""

import pytest

from pisco_index import build_status, compact, delete, recode, verify
from pisco_index.errors import BuildIncompleteError, MissingDocumentsError
from pisco_index.pipeline.planning.plan import Changes
from pisco_index.store import let_in

from .conftest import fail_on
from .test_update import World, rows, some_documents

pytestmark = pytest.mark.usefixtures("plain_compressor")


@pytest.fixture
def world(checkpoint, small, tmp_path):
    world = World(checkpoint, small(), tmp_path)
    world.write(some_documents())
    return world


def test_no_build_stores_what_is_kept_out(world):
    documents = some_documents()
    world.build()
    whole = rows(world.store)
    assert delete(world.store, ["doc-1"]).kept_out == 0
    assert delete(world.store, ["doc-2", "doc-3"], keep_out=True).kept_out == 2
    report = world.build()
    assert report.changes == Changes(new=1, changed=0, same=37, gone=0, pruned=0)
    assert report.dropped == {"kept out": 2}
    world.write(documents | {"doc-2": "Another text", "doc-50": "new"})
    for options in ({}, {"prune": True}, {"replan": True}):
        world.build(**options)
        assert rows(world.store).keys() == documents.keys() - {"doc-2", "doc-3"} | {"doc-50"}
    assert build_status(world.store).store.kept_out == 2
    compact(world.store, older_than_hours=0)
    # The same ids again are not missing.
    assert delete(world.store, ["doc-2", "doc-3", "doc-4"], keep_out=True).kept_out == 1
    recode(world.store, "int4", world.folder / "recoded")
    assert build_status(world.folder / "recoded").store.kept_out == 3
    assert let_in(world.store, ["doc-2", "doc-3", "doc-4"]) == ("doc-2", "doc-3", "doc-4")
    world.write(documents)
    world.build(prune=True)
    assert rows(world.store) == whole
    assert build_status(world.store).store.kept_out == 0
    assert verify(world.store).is_sound
    assert world.build().changes is None


def test_documents_of_an_unfinished_plan_are_kept_out(world, monkeypatch):
    with monkeypatch.context() as patch:
        fail_on(patch, {4})
        with pytest.raises(BuildIncompleteError):
            world.build()
    held = rows(world.store).keys()
    later = next(name for name in some_documents() if name not in held)
    with pytest.raises(MissingDocumentsError, match=later):
        delete(world.store, [later], keep_out=True)
    assert delete(world.store, [later], keep_out=True, missing="skip").kept_out == 1
    # The shard that the document belongs to is done as it was planned, and an update then takes the document out.
    world.build()
    assert rows(world.store).keys() == some_documents().keys() - {later}
    assert verify(world.store).is_sound


def test_only_what_is_kept_out_is_let_in(world):
    world.build()
    delete(world.store, ["doc-1"], keep_out=True)
    with pytest.raises(MissingDocumentsError, match=r"does not keep out 1 of the documents: 'doc-2'\. Nothing"):
        let_in(world.store, ["doc-1", "doc-2"])
    assert let_in(world.store, ["doc-1", "doc-2"], missing="skip") == ("doc-1",)
    assert let_in(world.store, ["doc-1"], missing="skip") == ()
    with pytest.raises(TypeError, match="a list of ids"):
        let_in(world.store, "doc-1")
