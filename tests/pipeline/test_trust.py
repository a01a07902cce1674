"""Ids, names and plans that others chose: nothing is written outside the store and the named outputs."""

import json

import pytest

from pisco_index import Reader, build, compact, delete, export, recode, repair, verify
from pisco_index.errors import CorpusError, CorruptStoreError, InputError
from pisco_index.pipeline.planning.plan import Plan
from pisco_index.pipeline.planning.stored import PLAN_ASSET
from pisco_index.reader.save import save_memory
from pisco_index.store import Store
from pisco_index.store.assets import NOTE_PREFIXES

IDS = [
    "../../x",
    "/etc/passwd",
    "file:///etc/passwd",
    "..",
    ".",
    "a/../../b",
    "C:\\x",
    "%2e%2e%2fx",
    "new\nline",
    "tab\tand\x1b[31m",
    "nul\0inside",
    "' OR 1=1 --",
    "s3://KEY:SECRET@bucket/x",
    "e\u0301",
    "\u202ertl",
    "~root",
    "$HOME",
    "x" * 512,
    "é" * 256,
    "__metadata__",
]


def everything(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def parent(tmp_path, monkeypatch):
    """The folder that all the others lie in; beside them nothing may change, here or in the user's folders."""
    parent = tmp_path / "parent"
    for name in ("home", "work", "beside/deep"):
        (parent / name).mkdir(parents=True)
    (parent / "beside" / "x").write_text("as it was")
    monkeypatch.setenv("HOME", str(parent / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(parent / "home" / "cache"))
    monkeypatch.chdir(parent / "work")
    return parent


def write_corpus(path, doc_ids, edition=1):
    lines = [
        json.dumps({"id": each, "text": f"text of edition {edition} {n}", "title": each[:9]})
        for n, each in enumerate(doc_ids)
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.mark.fault(
    "Ids look like paths.",
    "No file is named after an id.",
)
def test_ids_are_names_of_nothing(parent, checkpoint, small, plain_compressor):
    config = small(store={"keep": ["title", "text"]})
    corpus = parent / "corpus ' ; $(touch x) \u202e.jsonl"
    uri = parent / "stores" / "deep" / "store"
    others = ["stores", "exported", "recoded", "memory.npz", corpus.name]
    before = {name: when for name, when in everything(parent).items() if name.partition("/")[0] not in others}

    build([write_corpus(corpus, IDS)], checkpoint, uri, config)
    build([write_corpus(corpus, [*IDS[3:], "new/../one"], edition=2)], checkpoint, uri, config, prune=True)
    with Reader(uri) as reader:
        assert sorted(reader.ids()) == sorted([*IDS[3:], "new/../one"])
        fetched = reader.fetch(list(reader.ids()))
    for kind in ("parquet", "arrow", "safetensors", "npy"):
        export(uri, parent / "exported" / kind, format=kind, part_documents=5)
    safe = [each for each in fetched.doc_ids if "\0" not in each]
    with Reader(uri) as reader:
        save_memory(reader.fetch(safe), parent / "memory.npz")
    recode(uri, "int8", parent / "recoded")
    delete(uri, IDS[5:8])
    compact(uri, older_than_hours=0)
    assert verify(uri).is_sound
    repair(uri)
    build([corpus], checkpoint, uri, config)
    after = {name: when for name, when in everything(parent).items() if name.partition("/")[0] not in others}
    assert after == before
    assert {path.name for path in (parent / "stores").iterdir()} == {"deep"}
    assert {path.name for path in (parent / "stores" / "deep").iterdir()} == {"store"}
    assert {path.name for path in (parent / "exported").iterdir()} == {"parquet", "arrow", "safetensors", "npy"}
    names = [path.name for path in parent.rglob("*") if not path.is_relative_to(parent / "beside")]
    assert not [name for name in names if name in {"x", "passwd", "one", "b", "root"}]


@pytest.mark.parametrize("doc_id", ["x" * 513, "é" * 257, "", " ", "\n", 1.5, None, True, ["a"], {"a": 1}])
def test_what_is_no_id(parent, checkpoint, small, doc_id):
    corpus = parent / "corpus.jsonl"
    corpus.write_text(json.dumps({"id": doc_id, "text": "a"}) + "\n")
    with pytest.raises(CorpusError, match=r"corpus\.jsonl"):
        build([corpus], checkpoint, parent / "store", small())
    assert not (parent / "store").exists()


def test_arrays_of_a_file_are_not_lost_by_their_names(parent, checkpoint, small, plain_compressor):
    """A name in a zip archive ends at a zero byte."""
    ids = ["a\0b", "a\0c", "d"]
    build([write_corpus(parent / "corpus.jsonl", ids)], checkpoint, parent / "store", small())
    with Reader(parent / "store") as reader:
        memory = reader.fetch(ids)
    with pytest.raises(InputError, match=r"cannot name an array 'a.x00b'"):
        save_memory(memory, parent / "memory.npz")
    assert not (parent / "memory.npz").exists()
    save_memory(memory, parent / "memory.safetensors")


def test_a_plan_that_points_elsewhere_is_read_from_the_corpus_given(
    parent, checkpoint, small, make_corpus, monkeypatch
):
    """Where the files lie is the user's to say, when a build goes on with a store of somebody else's."""
    config, corpus = small(), make_corpus(20)
    build([corpus], checkpoint, parent / "whole", config)
    whole = Store.open(parent / "whole")
    values = json.loads(whole.asset(PLAN_ASSET))
    for source in values["sources"]:
        source["name"] = "../../etc/passwd"
        if "file" in source:
            source["file"] |= {"path": "/etc/passwd", "name": "/etc/passwd"}
        else:
            source["path"] = "/etc/passwd"
    assets = {name: whole.asset(name) for name in whole.asset_names() if name != "meta"}
    assets = {name: each for name, each in assets.items() if not name.startswith(NOTE_PREFIXES)}
    Store.create(parent / "theirs", meta=whole.meta, assets=assets | {PLAN_ASSET: json.dumps(values).encode()})
    build([corpus], checkpoint, parent / "theirs", config)
    with Reader(parent / "theirs") as theirs, Reader(parent / "whole") as reader:
        assert sorted(theirs.ids()) == sorted(reader.ids()) == sorted(f"doc-{n}" for n in range(20))


def plan(**changes):
    source = {"format": "jsonl", "path": "/a"}
    values = {
        "files": [{"name": "a", "size": 1, "digest": "x"}],
        "sources": [source],
        "shards": [[0, [[0, 0, None]], 5, 50]],
        "dropped": {},
        "first": 0,
        "changes": None,
    }
    return json.dumps(values | changes).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"[" * 10**6,
        plan(files=3),
        plan(files=[{"name": "a", "size": 1, "digest": "x", "more": 1}]),
        plan(files=[]),
        plan(sources=["/etc/passwd"]),
        plan(shards=[[0]]),
        plan(shards=[[0, [[7, 0, None]], 5, 50]]),
        plan(shards=[[0, [[-1, 0, None]], 5, 50]]),
        plan(shards=[[-1, [[0, 0, None]], 5, 50]]),
        plan(shards=[["0", [[0, 0, None]], 5, 50]]),
        plan(shards=[[0, [[0, 0, None]], 10**30, 50]]),
        plan(shards=[[0, [[0, 0, None]], 5, 50, 10**12, "AA=="]]),
        plan(shards=[[0, [[0, 0, None]], 5, 50, -1, "AA=="]]),
        plan(shards=[[0, [[0, 0, None]], 5, 50, 1, "?"]]),
        plan(changes={"new": 1}),
        plan(changes=7),
        plan(dropped=7),
        plan(first="x"),
    ],
    ids=range(22),
)
def test_a_plan_that_is_none(content):
    with pytest.raises(CorruptStoreError, match="a store's plan"):
        Plan.from_json(content)


def test_a_plan_that_is_one():
    assert Plan.from_json(plan()).records == 5
