"""Builds over stores that exist: what is new, changed or gone, and what may come between."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress

import lance
import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pisco_index import Reader, build, build_status, compact, delete, dry_run, recode, repair, verify
from pisco_index.errors import BuildIncompleteError, CorpusError, MissingDocumentsError, PlanMismatchError, StoreError
from pisco_index.pipeline import build as build_module
from pisco_index.pipeline import turns as turns_module
from pisco_index.pipeline.planning import comparison as comparison_module
from pisco_index.pipeline.planning.plan import Changes, Plan
from pisco_index.pipeline.planning.reading import open_sources, read_shard
from pisco_index.pipeline.planning.stored import current_plan
from pisco_index.pipeline.worker import ShardWorker
from pisco_index.store import Store, done_shards

from .conftest import fail_on, plain_run

pytestmark = pytest.mark.usefixtures("plain_compressor")


def rows(uri):
    """All rows of a store but their shards, by id, as plain lancedb reads them; fails where an id is there twice."""
    table = lancedb.connect(str(uri)).open_table("memory").to_arrow().drop_columns(["shard"])
    found = {row["doc_id"]: row for row in table.to_pylist()}
    assert len(found) == table.num_rows
    return found


def some_documents(count=40):
    return {f"doc-{n}": f"Document {n} is about the city" + " and its river" * (n % 7) for n in range(count)}


def write_corpus(path, documents):
    """JSON lines of texts by id; a title is before a bar in the text."""
    lines = []
    for doc_id, value in documents.items():
        title, _, text = value.rpartition("|")
        lines.append(json.dumps({"id": doc_id, "title": title or None, "text": text}))
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def world(checkpoint, small, tmp_path):
    return World(checkpoint, small(), tmp_path)


class World:
    """A corpus, a store of it, and what a fresh build of the same corpus would make."""

    def __init__(self, checkpoint, config, folder):
        self.checkpoint, self.config, self.folder = checkpoint, config, folder
        self.corpus, self.store = folder / "corpus.jsonl", folder / "store"

    def write(self, documents):
        write_corpus(self.corpus, documents)

    def build(self, *corpus, **options):
        # Most tests change most documents.
        options.setdefault("recompress", True)
        config = options.pop("config", self.config)
        return build(list(corpus) or [self.corpus], self.checkpoint, self.store, config, **options)

    def fresh(self, *corpus, config=None):
        """Rows of a fresh build of the corpus as it is."""
        uri = self.folder / "fresh"
        shutil.rmtree(uri, ignore_errors=True)
        build(list(corpus) or [self.corpus], self.checkpoint, uri, config or self.config)
        return rows(uri)


# What is new, changed, gone


def test_new_and_changed_documents_are_written_and_others_left_alone(world):
    documents = some_documents()
    world.write(documents)
    world.build()
    files = {fragment.metadata.files[0].path for fragment in Store.open(world.store).table.get_fragments()}
    documents |= {"doc-3": "Another text", "doc-17": "A title|" + documents["doc-17"], "doc-40": "new", "doc-41": "too"}
    del documents["doc-5"]
    world.write(documents)
    report = world.build()
    assert report.changes == Changes(new=2, changed=2, same=37, gone=1, pruned=0)
    assert (report.shards, report.committed, report.gone) == (1, 1, 1)
    found, fresh = rows(world.store), world.fresh()
    assert found.pop("doc-5")["tokens_total"] > 0
    assert found == fresh
    fragments = Store.open(world.store).table.get_fragments()
    assert files < {fragment.metadata.files[0].path for fragment in fragments}
    assert sum(fragment.physical_rows for fragment in fragments) == 44


def test_prune_deletes_what_is_gone_and_nothing_else(world):
    documents = some_documents()
    world.write(documents)
    world.build()
    for doc_id in ["doc-0", "doc-7", *(f"doc-{n}" for n in range(16, 24))]:
        del documents[doc_id]
    world.write(documents)
    assert world.build().gone == 10
    assert len(rows(world.store)) == 40
    # The corpus is the same as before; only what is asked for is new.
    report = world.build(prune=True)
    assert report.changes == Changes(new=0, changed=0, same=30, gone=0, pruned=10)
    assert (report.shards, report.gone) == (0, 0)
    assert rows(world.store) == world.fresh()
    assert world.build(prune=True).changes is None


def test_a_build_of_the_same_corpus_commits_nothing(world):
    documents = some_documents()
    world.write(documents)
    world.build()
    world.write(documents | {"doc-1": "other"})
    world.build()
    version = Store.open(world.store).version
    report = world.build()
    assert (report.shards, report.done_before, report.committed, report.changes) == (1, 1, 0, None)
    assert Store.open(world.store).version == version


class TestMostOfAStore:
    """An update that would compress most of a store again."""

    def test_is_refused_until_it_is_confirmed(self, world):
        documents = some_documents(46)
        world.write(documents)
        world.build()
        world.write({doc_id: f"Title|{text}" for doc_id, text in documents.items()})
        before = rows(world.store)
        with pytest.raises(CorpusError, match=r"46 documents in place of most of the 46 .* --recompress"):
            world.build(recompress=False)
        assert rows(world.store) == before
        estimate = dry_run([world.corpus], world.checkpoint, world.store, world.config)
        assert (estimate.changes.changed, estimate.needs_recompress) == (46, True)
        assert world.build().changes.changed == 46
        # It was confirmed once, and has nothing more to do.
        assert world.build(recompress=False).changes is None

    @pytest.mark.parametrize(("stored", "changed"), [(60, 30), (19, 19)])
    def test_is_no_half_of_it_and_no_handful(self, world, stored, changed):
        documents = some_documents(stored)
        world.write(documents)
        world.build()
        world.write(documents | {f"doc-{n}": "another text" for n in range(changed)})
        assert world.build(recompress=False).changes.changed == changed

    def test_is_also_one_under_other_ids_that_deletes_the_former(self, world):
        documents = some_documents(30)
        world.write(documents)
        world.build()
        world.write({f"{doc_id}-0": text for doc_id, text in documents.items()})
        with pytest.raises(CorpusError, match="30 documents in place of most of the 30"):
            world.build(recompress=False, prune=True)
        assert world.build(recompress=False).changes == Changes(new=30, changed=0, same=0, gone=30, pruned=0)


def test_a_dry_run_names_what_prune_would_delete(world):
    documents = some_documents()
    world.write(documents)
    world.build()
    for doc_id in ("doc-3", "doc-30"):
        del documents[doc_id]
    world.write(documents)
    options = [world.corpus], world.checkpoint, world.store, world.config
    assert dry_run(*options, prune=True).pruned == ("doc-3", "doc-30")
    assert dry_run(*options).pruned == ()
    assert len(rows(world.store)) == 40


def test_order_names_and_files_of_a_corpus_do_not_matter(world):
    documents = some_documents()
    world.write(documents)
    world.build()
    kept = rows(world.store)
    backwards = dict(reversed(documents.items()))
    half = {doc_id: backwards.pop(doc_id) for doc_id in list(backwards)[:11]}
    folder = world.folder / "parts"
    folder.mkdir()
    write_corpus(folder / "b.jsonl", half)
    write_corpus(folder / "a.jsonl", backwards)
    report = world.build(folder)
    assert report.changes == Changes(new=0, changed=0, same=40, gone=0, pruned=0)
    assert rows(world.store) == kept
    write_corpus(folder / "c.jsonl", {"doc-x": "An added file"})
    (folder / "a.jsonl").rename(folder / "z.jsonl")
    assert world.build(folder).changes == Changes(new=1, changed=0, same=40, gone=0, pruned=0)
    assert rows(world.store) == world.fresh(folder)


def test_a_title_is_a_change_where_it_is_compressed_or_kept(world, small):
    documents = {"a": "Old|text", "b": "Same|text"}
    for name, sections, changed in [
        ("compressed", {}, 1),
        ("neither", {"compression": {"template": "{text}"}, "store": {"keep": []}}, 0),
        ("kept", {"compression": {"template": "{text}"}, "store": {"keep": ["title"]}}, 1),
    ]:
        world.store = world.folder / name
        config = small(**sections)
        world.write(documents)
        world.build(config=config)
        world.write(documents | {"a": "New|text"})
        report = world.build(config=config)
        assert (report.changes.changed, report.changes.same) == (changed, 2 - changed), name
        assert rows(world.store) == world.fresh(config=config), name


@pytest.mark.parametrize("kind", ["gzip", "parquet", "tsv"])
def test_other_formats(world, kind):
    def write(documents):
        path = world.folder / {"gzip": "c.jsonl.gz", "parquet": "c.parquet", "tsv": "c.tsv"}[kind]
        if kind == "gzip":
            lines = [json.dumps({"id": doc_id, "text": text}) for doc_id, text in documents.items()]
            path.write_bytes(gzip.compress("\n".join(lines).encode()))
        elif kind == "parquet":
            pq.write_table(pa.table({"id": list(documents), "text": list(documents.values())}), path, row_group_size=7)
        else:
            path.write_text("id\ttext\n" + "".join(f"{doc_id}\t{text}\n" for doc_id, text in documents.items()))
        return path

    documents = some_documents(120)
    world.build(write(documents))
    documents |= {"doc-2": "two", "doc-60": "sixty", "doc-119": "last", "doc-120": "new"}
    corpus = write(documents)
    report = world.build(corpus)
    assert (report.changes.new, report.changes.changed) == (1, 3)
    assert rows(world.store) == world.fresh(corpus)


def test_of_an_article_only_the_passages_that_changed_are_written(world, small):
    config = small(corpus={"passage_words": 10})
    article = [f"word{n}" for n in range(100)]
    world.write({"a": " ".join(article), "b": "short", "c": " ".join(article)})
    world.build(config=config)
    article[42] = "changed"
    world.write({"a": " ".join(article), "b": "short", "c": " ".join(article[:98])})
    report = world.build(config=config, prune=True)
    # Of "a" passage 4; of "c" passages 4 and 9, which is shorter.
    assert report.changes == Changes(new=0, changed=3, same=18, gone=0, pruned=0)
    assert rows(world.store) == world.fresh(config=config)
    world.write({"a": " ".join(article[:60]), "b": "short"})
    assert world.build(config=config, prune=True).changes == Changes(new=0, changed=0, same=7, gone=0, pruned=14)
    assert rows(world.store) == world.fresh(config=config)


def test_shards_share_the_documents_of_a_long_record(world, small):
    config, one = (
        small(corpus={"passage_words": 100}, run={"shard_documents": count, "commit_shards": 1}) for count in (3, 4096)
    )
    book = [f"word{n:04}" for n in range(1500)]
    world.write({"a": "short", "book": " ".join(book), "c": "short"})
    assert world.build(config=config).shards == 7
    assert rows(world.store) == world.fresh(config=one)
    assert verify(world.store).is_sound
    for place in range(0, 1500, 100):
        book[place] = "changed"
    world.write({"a": "short", "book": " ".join(book[:1450]), "c": "other"})
    report = world.build(config=config)
    assert report.changes == Changes(new=0, changed=16, same=1, gone=0, pruned=0)
    assert rows(world.store) == world.fresh(config=one)
    assert verify(world.store).is_sound


def test_pages_of_a_dump_without_prose_are_passed_over(world, small):
    def write(*texts):
        page = "<page><title>{0}</title><ns>0</ns><id>{0}</id><revision><id>1</id><text>{1}</text></revision></page>"
        pages = [page.format(n, text) for n, text in enumerate(texts, 1)]
        dump = world.folder / "dump.xml"
        dump.write_text(
            '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><siteinfo><namespaces><namespace key="0"/>'
            "</namespaces></siteinfo>" + "".join(pages) + "</mediawiki>"
        )
        return dump

    dump = write("Some prose.", "{{template only}}", "More.", "{{another}}", "End.")
    world.build(dump)
    write("Some prose.", "{{template only}}", "More and more.", "Now prose.", "{{nothing now}}", "New.")
    report = world.build(dump, prune=True)
    assert report.changes == Changes(new=2, changed=1, same=1, gone=0, pruned=1)
    assert rows(world.store) == world.fresh(dump)


def test_of_a_page_behind_other_pages_the_newest_version_counts(world, small):
    page = "<page><title>{0}</title><ns>0</ns><id>{0}</id><revision><id>{1}</id><text>{2}</text></revision></page>"
    dump, article = world.folder / "dump.xml", " ".join(f"word{n}" for n in range(150))

    def write(*pages):
        dump.write_text("<mediawiki>" + "".join(page.format(*each) for each in pages) + "</mediawiki>")

    write((1, 1, article), (2, 2, "Other."))
    world.build(dump)
    # An old version of page 1 has the passage 1#1, which the newest lacks.
    write((1, 1, article), (2, 2, "Other."), (1, 4, "New."), (2, 3, "Another."), (1, 3, "No longer new."))
    report = world.build(dump, prune=True)
    assert report.changes == Changes(new=0, changed=2, same=0, gone=0, pruned=1)
    assert report.dropped == {"older revision": 3}
    assert rows(world.store) == world.fresh(dump)
    assert world.build(dump, config=small(corpus={"on_error": "skip"})).rejected == {}


def test_an_update_of_an_update(world):
    documents = some_documents()
    world.write(documents)
    world.build()
    for turn in range(4):
        documents |= {f"doc-{n}": f"turn {turn}" for n in range(turn, 40, 5)} | {f"new-{turn}": "new"}
        documents.pop(f"doc-{turn + 20}")
        world.write(documents)
        world.build(prune=True)
        assert rows(world.store) == world.fresh()
    plan = current_plan(Store.open(world.store))
    assert plan.first > 4
    assert {shard.number for shard in plan.shards} <= done_shards(Store.open(world.store))


def test_a_recoded_store_is_updated_like_the_one_it_was_made_of(world, small):
    documents = some_documents(20)
    world.write(documents)
    world.build()
    world.write(documents | {"doc-3": "Another text", "doc-20": "new"})
    world.build()
    first, world.store, world.config = world.store, world.folder / "recoded", small(store={"codec": "int8"})
    recode(first, "int8", world.store)
    assert (world.build().committed, world.build().changes) == (0, None)
    world.write(documents | {"doc-3": "A third text", "doc-20": "new"})
    assert world.build().changes == Changes(new=0, changed=1, same=20, gone=0, pruned=0)
    found, fresh = rows(world.store), world.fresh(config=small())
    assert {i: row["text_hash"] for i, row in found.items()} == {i: row["text_hash"] for i, row in fresh.items()}
    with Reader(world.store) as reader, Reader(world.folder / "fresh") as other:
        stored, exact = reader.fetch(list(fresh)).values, other.fetch(list(fresh)).values
    torch.testing.assert_close(stored, exact, rtol=0, atol=0.01 * float(exact.abs().max()))


def test_a_sparse_update_reads_little_of_the_corpus(world):
    documents = some_documents(400)
    world.write(documents)
    world.build(
        config=world.config.model_copy(update={"run": world.config.run.model_copy(update={"shard_documents": 200})})
    )
    world.write(documents | {"doc-7": "seven", "doc-300": "more", "doc-303": "and more"})
    world.build()
    (shard,) = current_plan(Store.open(world.store)).shards
    assert shard.records == 3
    assert len(shard.slices) == 2
    assert shard.selection.documents == 5
    assert rows(world.store) == world.fresh()


def test_a_plan_of_an_update_is_kept_whole(world):
    world.write(some_documents(20))
    world.build()
    world.write(some_documents(20) | {"doc-3": "three", "doc-30": "thirty"})
    world.build()
    plan = current_plan(Store.open(world.store))
    assert Plan.from_json(plan.to_json()) == plan
    assert [d.doc_id for shard in plan.shards for d in read_shard(shard, open_sources(plan.sources))] == [
        "doc-3",
        "doc-30",
    ]


def test_a_dry_run_says_what_would_change_and_writes_nothing(world, monkeypatch):
    world.write(some_documents())
    world.build()
    version = Store.open(world.store).version
    # The codec was fitted when the store was created, and is not fitted to five documents.
    monkeypatch.setattr("pisco_index.pipeline.estimate.fit", None)
    world.write(some_documents(45))
    estimate = dry_run([world.corpus], world.checkpoint, world.store, world.config)
    assert estimate.changes == Changes(new=5, changed=0, same=40, gone=0, pruned=0)
    assert estimate.documents == 5
    assert Store.open(world.store).version == version
    world.build()
    estimate = dry_run([world.corpus], world.checkpoint, world.store, world.config)
    assert (estimate.shards, estimate.documents) == (0, 0)


def test_a_dry_run_with_nothing_to_do(world):
    world.write(some_documents())
    world.build()
    world.write(dict(reversed(some_documents().items())))
    estimate = dry_run([world.corpus], world.checkpoint, world.store, world.config)
    assert (estimate.documents, estimate.tokens, estimate.seconds) == (0, 0, 0)


def test_refusals_change_nothing(world):
    world.write(some_documents())
    world.build()
    version = Store.open(world.store).version
    for text, message in [
        ('{"id": "a", "text": "b"}\n' * 2, "'a' occurs twice"),
        ('{"id": "a"', "broken JSON"),
        ("", "holds no document"),
    ]:
        world.corpus.write_text(text)
        with pytest.raises(CorpusError, match=message):
            world.build(prune=True)
    assert Store.open(world.store).version == version


def test_a_corpus_that_grows_while_an_update_is_planned(world, monkeypatch):
    world.write(some_documents())
    world.build()
    hashes = comparison_module.document_hashes

    def grow(*arguments):
        world.write(some_documents(50))
        return hashes(*arguments)

    monkeypatch.setattr(comparison_module, "document_hashes", grow)
    world.write(some_documents(41))
    with pytest.raises(CorpusError, match="changed while the build was reading it"):
        world.build()


def test_a_corpus_that_changes_between_plan_and_worker(world, monkeypatch):
    world.write(some_documents())
    world.build()
    documents = some_documents(43)
    world.write(documents)
    init = ShardWorker.__init__

    def shrink_first(self, spec):
        world.write(dict(list(documents.items())[:41]))
        init(self, spec)

    monkeypatch.setattr(ShardWorker, "__init__", shrink_first)
    with pytest.raises(CorpusError, match=r"planned from 3 documents, but .* now has 1"):
        world.build()


# Unfinished builds


def test_an_unfinished_update_goes_on_with_its_own_corpus_only(world, monkeypatch):
    world.write(some_documents())
    world.build()
    changed = {doc_id: f"{text} again" for doc_id, text in some_documents(44).items()}
    world.write(changed)
    with monkeypatch.context() as patch:
        fail_on(patch, {6, 8})
        with pytest.raises(BuildIncompleteError, match="2 of 6 shards"):
            world.build()
    assert build_status(world.store).shards_missing == (6, 8)
    world.write(changed | {"doc-0": "once more"})
    with pytest.raises(PlanMismatchError, match="--replan"):
        world.build()
    world.write(changed)
    report = world.build()
    assert (report.done_before, report.committed) == (4, 2)
    assert report.changes == Changes(new=4, changed=40, same=0, gone=0, pruned=0)
    assert rows(world.store) == world.fresh()


def test_replan_gives_up_what_is_left_and_keeps_what_is_there(world, monkeypatch):
    world.write(some_documents())
    with monkeypatch.context() as patch:
        fail_on(patch, {1, 3})
        with pytest.raises(BuildIncompleteError):
            world.build()
    world.write(some_documents(42) | {"doc-0": "other"})
    report = world.build(replan=True)
    assert report.changes == Changes(new=18, changed=1, same=23, gone=0, pruned=0)
    assert rows(world.store) == world.fresh()


def test_prune_is_made_up_for_after_an_unfinished_update_without_it(world, monkeypatch):
    world.write(some_documents())
    world.build()
    world.write({"doc-1": "other", "doc-2": "another"})
    with monkeypatch.context() as patch:
        fail_on(patch, {5})
        with pytest.raises(BuildIncompleteError):
            world.build()
    report = world.build(prune=True)
    assert report.changes == Changes(new=0, changed=0, same=2, gone=0, pruned=38)
    assert rows(world.store) == world.fresh()


class DeadError(BaseException):
    """The process is no more."""


class Fuse:
    """Lets so many writes of a process to its store happen; from then on nothing reaches the disk."""

    def __init__(self, monkeypatch, writes, lands):
        self.left, self.lands, self.blown = writes, lands, False
        for place, name in [
            (lance.LanceDataset, "commit"),
            (lance, "write_dataset"),
            (lance.LanceDataset, "cleanup_old_versions"),
            (lance.fragment.LanceFragment, "delete_rows"),
        ]:
            self.guard(monkeypatch, place, name)

    def guard(self, monkeypatch, place, name):
        real = getattr(place, name)

        def guarded(*args, **kwargs):
            if self.blown:
                raise DeadError
            if not self.left:
                self.blown = True
                if self.lands:
                    real(*args, **kwargs)
                raise DeadError
            self.left -= 1
            return real(*args, **kwargs)

        monkeypatch.setattr(place, name, staticmethod(guarded) if name == "commit" else guarded)


@pytest.mark.fault(
    "An update is killed.",
    "Each document has its old content or its new one. The same command continues to what a fresh build makes.",
)
@pytest.mark.parametrize("lands", [False, True], ids=["before", "after"])
def test_an_update_that_dies_at_any_write_is_made_up_for(world, monkeypatch, lands):
    before = some_documents(24)
    world.write(before)
    world.build()
    old = rows(world.store)
    shutil.copytree(world.store, world.folder / "kept")
    after = before | {f"doc-{n}": f"changed {n}" for n in range(12)} | {f"new-{n}": "new" for n in range(12)}
    # One of a shard, and a whole shard.
    for n in (3, *range(16, 24)):
        del after[f"doc-{n}"]
    world.write(after)
    new = world.fresh()
    writes = 0
    while True:
        shutil.rmtree(world.store)
        shutil.copytree(world.folder / "kept", world.store)
        with monkeypatch.context() as patch, suppress(DeadError):
            fuse = Fuse(patch, writes, lands)
            world.build(prune=True)
        between = rows(world.store)
        assert all(row in (old.get(doc_id), new.get(doc_id)) for doc_id, row in between.items())
        # What is neither new nor gone is always there.
        assert (old.keys() & new.keys()) <= between.keys()
        world.build(prune=True)
        assert rows(world.store) == new
        assert build_status(world.store).is_complete
        if not fuse.blown:
            break
        writes += 1
    assert writes > 6


@pytest.mark.parametrize("lands", [False, True], ids=["before", "after"])
def test_a_deletion_that_dies_at_any_write_is_noticed_by_the_next_build(world, monkeypatch, lands):
    world.write(some_documents(24))
    world.build()
    whole = rows(world.store)
    gone = ["doc-3", *(f"doc-{n}" for n in range(8, 16))]
    writes = 0
    while True:
        with monkeypatch.context() as patch, suppress(DeadError):
            fuse = Fuse(patch, writes, lands)
            delete(world.store, gone)
        assert rows(world.store).keys() in (whole.keys(), whole.keys() - set(gone))
        world.build()
        assert rows(world.store) == whole
        assert build_status(world.store).is_complete
        if not fuse.blown:
            break
        writes += 1
    assert writes > 1


SCRIPT = """
import contextlib, runpy, sys, time
from pisco_index import BuildConfig, Compressor, build
from pisco_index.errors import PiscoIndexError
from pisco_index.pipeline import build as build_module
from pisco_index.pipeline.worker import ShardWorker
conftest, corpus, checkpoint, store, config, mode, pause = sys.argv[1:]
Compressor._run = runpy.run_path(conftest)["plain_run"]
run = ShardWorker.run
def slow_run(self, shard):
    time.sleep(float(pause))
    return run(self, shard)
ShardWorker.run = slow_run
if mode == "unlocked":
    # As in an object store: no lock, and nobody removes what others may have written.
    build_module.build_lock = lambda uri: contextlib.nullcontext()
    build_module.remove_orphans = lambda store: 0
print("ready", flush=True)
sys.stdin.readline()
try:
    build([corpus], checkpoint, store, BuildConfig.model_validate_json(config), recompress=True)
except PiscoIndexError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def start(world, corpus, mode, pause):
    """Begin a build in another process, and let it go when it is ready to."""
    conftest = sys.modules[plain_run.__module__].__file__
    arguments = [conftest, corpus, world.checkpoint, world.store, world.config.model_dump_json(), mode, pause]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()
    return process


@pytest.mark.fault(
    "An update is killed.",
    "Each document has its old content or its new one. The same command continues to what a fresh build makes.",
)
def test_an_update_that_is_killed_ends_like_a_fresh_build(world):
    documents = some_documents(120)
    world.write(documents)
    world.build()
    old = rows(world.store)
    first = current_plan(Store.open(world.store)).next
    world.write({doc_id: f"{text} now" for doc_id, text in documents.items()} | {"one-more": "new"})
    new = world.fresh()
    running = start(world, world.corpus, "locked", pause=0.1)
    while sum(number >= first for number in done_shards(Store.open(world.store))) < 6:
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    between = rows(world.store)
    assert between.keys() >= old.keys()
    assert all(row in (old.get(doc_id), new.get(doc_id)) for doc_id, row in between.items())
    assert not build_status(world.store).is_complete
    report = world.build()
    assert report.done_before >= 6
    assert rows(world.store) == new
    # Files of versions that somebody may have open stay; those of the dead worker are gone.
    data = {path.name for path in (world.store / "memory.lance" / "data").iterdir()}
    versions = [lance.dataset(str(world.store / "memory.lance"), version=v["version"]) for v in _versions(world.store)]
    assert data == {f.metadata.files[0].path for each in versions for f in each.get_fragments()}


def _versions(uri):
    return lance.dataset(str(uri / "memory.lance")).versions()


# Others at work


@pytest.fixture
def no_lock(monkeypatch):
    """As in an object store."""
    monkeypatch.setattr(build_module, "build_lock", lambda uri: nullcontext())
    monkeypatch.setattr(turns_module, "build_lock", lambda uri: nullcontext())
    monkeypatch.setattr(build_module, "remove_orphans", lambda store: 0)


@pytest.mark.fault(
    "Two builds update one store without a lock.",
    "Each document is stored once; the second continues with the first's plan or is refused.",
)
@pytest.mark.usefixtures("no_lock")
@pytest.mark.parametrize("corpora", ["same", "different"])
def test_two_processes_that_update_one_store_without_a_lock(world, corpora):
    documents = some_documents(60)
    world.write(documents)
    world.build()
    changed = {doc_id: f"{text} now" for doc_id, text in documents.items()} | {f"new-{n}": "new" for n in range(20)}
    world.write(changed)
    other = world.corpus
    if corpora == "different":
        other = world.folder / "other.jsonl"
        write_corpus(other, {doc_id: f"{text} elsewhere" for doc_id, text in changed.items()})
    racer = start(world, other, "unlocked", pause=0.01)
    refused = False
    try:
        world.build()
    except (PlanMismatchError, StoreError):
        refused = True
    _, errors = racer.communicate(timeout=60)
    assert rows(world.store).keys() == changed.keys()
    if corpora == "same":
        assert not refused
        assert racer.returncode == 0, errors
    else:
        # Whoever comes second finds the other's update unfinished, or is refused its commit, or comes after it.
        assert racer.returncode in (0, 2), errors
        assert not (refused and racer.returncode)
        winners = [path for path, lost in ((world.corpus, refused), (other, racer.returncode)) if not lost]
        assert rows(world.store) in [world.fresh(path) for path in winners]
        world.build()
    assert rows(world.store) == world.fresh()


def race_at(monkeypatch, place, name, compete):
    """Let somebody else do all they want just before the first call of a function."""
    real, raced = getattr(place, name), []

    def racing(*args, **kwargs):
        if not raced:
            raced.append(True)
            compete()
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, staticmethod(racing) if name == "commit" else racing)


@pytest.mark.fault(
    "The store changes while an update is planned.",
    "The update is planned again.",
)
@pytest.mark.usefixtures("no_lock")
def test_another_update_that_comes_while_one_is_planned(world, monkeypatch):
    world.write(some_documents())
    world.build()
    other = world.folder / "other.jsonl"
    write_corpus(other, {"doc-1": "theirs", "doc-50": "theirs"})
    race_at(monkeypatch, turns_module, "begin_update", lambda: world.build(other))
    world.write(some_documents() | {"doc-1": "mine", "doc-51": "mine"})
    # What the other one added is seen, and was not there when this one planned first.
    assert world.build(prune=True).changes == Changes(new=1, changed=1, same=39, gone=0, pruned=1)
    assert rows(world.store) == world.fresh()


@pytest.mark.fault(
    "A build outlives the plan that it works for.",
    "Its commits are refused.",
)
@pytest.mark.usefixtures("no_lock")
def test_a_build_whose_plan_was_replaced_commits_nothing(world, monkeypatch):
    world.write(some_documents())
    world.build()
    theirs = world.folder / "theirs.jsonl"
    write_corpus(theirs, {doc_id: f"{text} theirs" for doc_id, text in some_documents().items()})

    def compete():
        world.build(theirs, replan=True)

    world.write({doc_id: f"{text} mine" for doc_id, text in some_documents().items()})
    run = ShardWorker.run
    raced = []

    def late_run(self, shard):
        if not raced:
            raced.append(True)
            compete()
        return run(self, shard)

    monkeypatch.setattr(ShardWorker, "run", late_run)
    with pytest.raises(StoreError, match="another build has begun to update"):
        world.build()
    assert rows(world.store) == world.fresh(theirs)


# Readers


@pytest.mark.fault(
    "A store is updated or compacted under a reader.",
    "The reader keeps its version; if that was dropped, an error asks to open the store again.",
)
def test_readers_go_on_with_the_version_they_opened(world):
    documents = some_documents()
    world.write(documents)
    world.build()
    with Reader(world.store) as before:
        ids = list(documents)
        first = before.fetch(ids[:20]).values
        world.write({doc_id: f"{text} now" for doc_id, text in documents.items() if doc_id != "doc-2"})
        world.build(prune=True)
        with Reader(world.store) as after:
            assert len(after) == 39
            with pytest.raises(MissingDocumentsError, match="doc-2"):
                after.fetch(["doc-2"])
            delete(world.store, ["doc-3", "doc-4"])
            compact(world.store)
            assert before.fetch(ids[:20]).values.equal(first)
            assert len(before.fetch(ids)) == 40
            assert len(after.fetch(["doc-3", "doc-4"])) == 2
            # Somebody who opens the old version now still can: it is younger than a day.
            assert Store.open(world.store, before.version).count == 40


@pytest.mark.fault(
    "A store is updated or compacted under a reader.",
    "The reader keeps its version; if that was dropped, an error asks to open the store again.",
)
def test_a_reader_whose_version_was_dropped_is_told_to_open_again(world):
    world.write(some_documents())
    world.build()
    before = Store.open(world.store)
    world.write({doc_id: f"{text} now" for doc_id, text in some_documents().items()})
    world.build()
    compact(world.store, older_than_hours=0)
    with pytest.raises(StoreError, match=r"[Oo]pen it again"):
        before.fetch(["doc-1"])
    assert before.refresh().fetch(["doc-1"]).doc_ids == ("doc-1",)


# Deletion and compaction between builds


def test_deleted_documents_come_back_with_the_next_build(world):
    world.write(some_documents())
    world.build()
    delete(world.store, ["doc-1", *(f"doc-{n}" for n in range(8, 16))])
    assert build_status(world.store).is_complete
    report = world.build()
    assert report.changes == Changes(new=9, changed=0, same=31, gone=0, pruned=0)
    assert rows(world.store) == world.fresh()
    assert world.build().changes is None


def test_documents_deleted_before_the_build_was_done_come_back_too(world, monkeypatch):
    world.write(some_documents())
    with monkeypatch.context() as patch:
        fail_on(patch, {4})
        with pytest.raises(BuildIncompleteError):
            world.build()
    delete(world.store, [f"doc-{n}" for n in range(11)])
    assert build_status(world.store).shards_missing == (4,)
    world.build()
    assert rows(world.store) == world.fresh()


def test_a_store_that_was_compacted_is_updated_and_its_build_is_still_done(world):
    documents = some_documents()
    world.write(documents)
    world.build()
    for turn in range(3):
        compaction = compact(world.store, older_than_hours=0)
        assert compaction.fragments == 1
        assert build_status(world.store).is_complete
        assert world.build().committed == 0
        documents |= {"doc-1": f"turn {turn}", f"new-{turn}": "new"}
        world.write(documents)
        assert world.build().changes.changed == 1
        assert rows(world.store) == world.fresh()


def test_an_unfinished_build_that_was_compacted_goes_on(world, monkeypatch):
    world.write(some_documents())
    with monkeypatch.context() as patch:
        fail_on(patch, {1})
        with pytest.raises(BuildIncompleteError):
            world.build()
    compact(world.store, older_than_hours=0)
    report = world.build()
    assert (report.done_before, report.committed) == (4, 1)
    assert rows(world.store) == world.fresh()


# Anything, in any order

IDS = st.integers(0, 11).map("doc-{}".format)
TEXTS = st.sampled_from(["one", "two words", "three words here", "Title|text", "river " * 30])


class Changing(RuleBasedStateMachine):
    """A store of a few documents, against two dictionaries: the corpus, and what the store should hold."""

    checkpoint = config = folder = None
    number = 0

    @initialize(documents=st.dictionaries(IDS, TEXTS, min_size=1))
    def begin(self, documents):
        type(self).number += 1
        folder = self.folder / str(self.number)
        folder.mkdir()
        self.world = World(self.checkpoint, self.config, folder)
        self.corpus = documents
        self.world.write(documents)
        self.world.build()
        self.stored = dict(documents)

    @rule(doc_id=IDS, text=TEXTS)
    def put(self, doc_id, text):
        self.corpus[doc_id] = text

    @rule(data=st.data())
    def remove(self, data):
        if len(self.corpus) > 1:
            del self.corpus[data.draw(st.sampled_from(sorted(self.corpus)))]

    @rule(seed=st.randoms())
    def shuffle(self, seed):
        items = list(self.corpus.items())
        seed.shuffle(items)
        self.corpus = dict(items)

    @rule(prune=st.booleans())
    def build(self, prune):
        self.world.write(self.corpus)
        report = self.world.build(prune=prune)
        self.stored = dict(self.corpus) if prune else self.stored | self.corpus
        assert report.gone == len(self.stored.keys() - self.corpus.keys())

    @rule(doc_ids=st.lists(IDS, max_size=4))
    def delete(self, doc_ids):
        there = {doc_id for doc_id in doc_ids if doc_id in self.stored}
        assert delete(self.world.store, doc_ids, missing="skip").deleted == len(there)
        self.stored = {doc_id: text for doc_id, text in self.stored.items() if doc_id not in there}

    @rule(hours=st.sampled_from([0, 24]))
    def compact(self, hours):
        compact(self.world.store, older_than_hours=hours)

    @rule(data=st.data(), damage=st.sampled_from(["payload", "data file", "deletions"]))
    def damage_and_repair(self, data, damage):
        memory = self.world.store / "memory.lance"
        fragments = Store.open(self.world.store).table.get_fragments()
        names = {
            "payload": [file.name for file in (memory / "data").iterdir()],
            "data file": [fragment.metadata.files[0].path for fragment in fragments],
            "deletions": [f"../{name}" for fragment in fragments if (name := fragment.deletion_file())],
        }[damage]
        if damage == "payload" and self.stored:
            # Wherever it lies: rows that are deleted may have the same.
            doc_id = data.draw(st.sampled_from(sorted(self.stored)))
            payload = rows(self.world.store)[doc_id]["payload"]
            flipped = payload[:-1] + bytes([payload[-1] ^ 1])
            for name in names:
                path = memory / "data" / name
                path.write_bytes(path.read_bytes().replace(payload, flipped))
        elif damage != "payload" and names:
            path = memory / "data" / data.draw(st.sampled_from(names))
            path.write_bytes(path.read_bytes()[:-1])
        else:
            return
        assert not verify(self.world.store).is_sound
        assert repair(self.world.store).problem_count
        self.stored = {doc_id: self.stored[doc_id] for doc_id in rows(self.world.store)}

    @invariant()
    def the_store_holds_what_it_should(self):
        if not hasattr(self, "world"):
            return
        texts = {doc_id: value.partition("|")[2] or value for doc_id, value in self.stored.items()}
        found = {doc_id: row["text"] for doc_id, row in rows(self.world.store).items()}
        assert found == texts
        assert build_status(self.world.store).is_complete
        report = verify(self.world.store)
        assert report.is_sound, report.problems
        with Reader(self.world.store) as reader:
            assert list(reader.fetch(sorted(texts)).doc_ids) == sorted(texts)


def test_any_changes_in_any_order(checkpoint, small, tmp_path):
    Changing.checkpoint, Changing.folder = checkpoint, tmp_path
    Changing.config = small(store={"keep": ["title", "text"]}, run={"shard_documents": 2})
    machine = Changing.TestCase
    machine.settings = settings(
        max_examples=5,
        stateful_step_count=12,
        deadline=None,
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    machine().runTest()
