"""An update cleans only the pages whose source text changed, and plans what it would plan if it cleaned them all."""

from dataclasses import replace

import numpy as np
import pytest

from pisco_index import build, compact, delete, recode, repair, verify
from pisco_index.corpus import open_corpus
from pisco_index.corpus.formats import cleaning, mediawiki
from pisco_index.errors import BuildIncompleteError
from pisco_index.pipeline.planning.comparison import Comparison
from pisco_index.pipeline.planning.planner import plan_corpus
from pisco_index.store import Contents, KnownRecords, Store, kept_out, known_records
from pisco_index.store.lookup.known_records import UNKNOWN

from ..conftest import fail_on

pytestmark = pytest.mark.usefixtures("plain_compressor")

PAGE = "<page><title>{1}</title><ns>0</ns><id>{0}</id><revision><id>1</id><text>{2}</text></revision></page>\n"
HEAD = '<mediawiki xml:lang="en"><siteinfo><namespaces><namespace key="0"/></namespaces></siteinfo>\n'


def texts(count=30):
    """Wikitext by page id: of one to three documents, and of none for every tenth page."""
    prose = "The '''{0}''' lies by the [[river]] {1} of the old town. "
    return {
        n: "{{only|a|template}}" if n % 10 == 9 else prose.format(n, "x") * (n % 3 * 2 + 1) for n in range(1, count)
    }


@pytest.fixture
def wiki(checkpoint, small, tmp_path):
    return Wiki(checkpoint, small(corpus={"passage_words": 20}), tmp_path)


class Wiki:
    def __init__(self, checkpoint, config, folder):
        self.checkpoint, self.config, self.dump, self.store = checkpoint, config, folder / "dump.xml", folder / "store"

    def write(self, pages, title="Title {}"):
        found = "".join(PAGE.format(page, title.format(page), text) for page, text in pages.items())
        self.dump.write_text(f"{HEAD}{found}</mediawiki>")

    def build(self, **options):
        return build([self.dump], self.checkpoint, self.store, self.config, recompress=True, **options)

    def plan(self, known, prune=False):
        store = Store.open(self.store)
        comparison = Comparison(Contents.of(store), self.config.compression, True, prune, kept_out(store.uri), known)
        plan = plan_corpus(open_corpus([self.dump], self.config.corpus), shard_documents=8, comparison=comparison)
        # The lengths of deleted documents of known pages are estimates.
        shards = [replace(shard, characters=0) for shard in plan.shards]
        return replace(plan, shards=shards), sorted(comparison.contents.unseen.tolist())

    def cleaned(self, monkeypatch):
        """Compare plans with and without known records; return the ids of the pages that the first one cleans."""
        prose, found = mediawiki.MediaWikiSource._prose, []

        def noted(source, page, place):
            found.append(int(page.doc_id))
            return prose(source, page, place)

        with monkeypatch.context() as patch:
            patch.setattr(mediawiki.MediaWikiSource, "_prose", noted)
            plan, unseen = self.plan(known_records(Store.open(self.store)))
        assert self.plan(None) == (plan, unseen)
        return found, plan.changes


def test_only_changed_pages_are_cleaned(wiki, monkeypatch):
    pages = texts()
    wiki.write(pages)
    wiki.build()
    assert known_records(Store.open(wiki.store)).counts.tolist() == [UNKNOWN] * 29
    assert wiki.cleaned(monkeypatch)[0] == []
    documents = wiki.plan(None)[0].changes.same

    # A page with fewer documents than before, one with more, a new one, and one that is gone.
    pages |= {5: "The shorter text.", 12: "A longer text of many words. " * 20, 77: "A new page."}
    del pages[3]
    wiki.write(pages)
    found, changes = wiki.cleaned(monkeypatch)
    assert found == [5, 12, 77]
    report = wiki.build()
    assert (report.changes.new, report.changes.changed) == (changes.new, changes.changed)
    assert changes.same > documents - 8
    assert changes.gone

    # The numbers of documents are known now, so that stale ones of page 5 are not taken for its own.
    assert (known_records(Store.open(wiki.store)).counts >= 0).all()
    found, again = wiki.cleaned(monkeypatch)
    assert (found, again.new, again.changed, again.gone) == ([], 0, 0, changes.gone)
    wiki.build(prune=True)
    found, again = wiki.cleaned(monkeypatch)
    assert (found, again.new, again.changed, again.gone) == ([], 0, 0, 0)
    assert not verify(wiki.store).problems


def test_deleted_documents_are_made_again(wiki, monkeypatch):
    wiki.write(texts())
    wiki.build()
    delete(wiki.store, ["2#0", "5#1", "8#0"], keep_out=False)
    # Which documents a page had is unknown, so all pages are cleaned once.
    found, changes = wiki.cleaned(monkeypatch)
    assert (len(found), changes.new) == (29, 3)
    wiki.build()
    delete(wiki.store, ["2#0", "5#1"], keep_out=False)
    delete(wiki.store, ["8#0"], keep_out=True)
    found, changes = wiki.cleaned(monkeypatch)
    assert (found, changes.new) == ([], 2)
    wiki.build()
    found, changes = wiki.cleaned(monkeypatch)
    assert (found, changes.new) == ([], 0)


def test_a_repair_of_an_unfinished_update_leaves_no_change_out(wiki, monkeypatch):
    pages = texts()
    wiki.write(pages)
    wiki.config = wiki.config.model_copy(update={"run": wiki.config.run.model_copy(update={"shard_documents": 4})})
    shards = wiki.build().shards
    for n in range(15, 25):
        pages[n] = f"New text of page {n}."
    wiki.write(pages)
    with monkeypatch.context() as patch:
        fail_on(patch, range(shards + 1, 1000))
        with pytest.raises(BuildIncompleteError):
            wiki.build()
    fragment = Store.open(wiki.store).table.get_fragments()[0]
    file = wiki.store / "memory.lance" / "data" / fragment.metadata.files[0].path
    file.write_bytes(bytes(file.stat().st_size))
    assert len(repair(wiki.store).files) == 1
    wiki.build()
    stored = Store.open(wiki.store).table.to_table(columns=["doc_id", "text_hash"]).to_pylist()
    fresh = Wiki(wiki.checkpoint, wiki.config, wiki.store.parent)
    fresh.store = wiki.store.with_name("fresh")
    fresh.build()
    expected = {row["doc_id"]: row["text_hash"] for row in Store.open(fresh.store).table.to_table().to_pylist()}
    assert {row["doc_id"]: row["text_hash"] for row in stored}.items() >= expected.items()


def test_a_new_title_or_cleaner_cleans_again(wiki, monkeypatch):
    wiki.write(texts())
    wiki.build()
    with monkeypatch.context() as patch:
        patch.setattr(cleaning, "_code_digest", lambda: "another version")
        assert len(wiki.cleaned(monkeypatch)[0]) == 29
    wiki.write(texts(), title="New {}")
    found, changes = wiki.cleaned(monkeypatch)
    assert (len(found), changes.same) == (29, 0)


def test_an_update_does_without_known_records(wiki, monkeypatch):
    wiki.write(texts())
    wiki.build()
    for value in (None, b"", b"PIRECS01" + bytes(40)):
        with monkeypatch.context() as patch:
            if value is None:
                patch.setattr(Store, "asset_names", lambda store: ())
            else:
                patch.setattr(Store, "asset", lambda store, name, value=value: value)
            assert known_records(Store.open(wiki.store)) is None


def test_known_records_outlast_compaction_and_recoding(wiki, monkeypatch, tmp_path):
    wiki.write(texts())
    wiki.build()
    for n in range(2):
        wiki.write(texts() | {1: f"Text number {n}."})
        wiki.build()
        compact(wiki.store)
        names = [name for name in Store.open(wiki.store).asset_names() if name.startswith("records/")]
        assert len(names) == 1
        assert wiki.cleaned(monkeypatch)[0] == []
    recode(wiki.store, "bf16", tmp_path / "other")
    wiki.store = tmp_path / "other"
    assert wiki.cleaned(monkeypatch)[0] == []


def test_known_records_are_read_as_they_were_written():
    known = KnownRecords(np.array([9, 3, 9, 1 << 63], np.uint64), np.array([1, UNKNOWN, 1, 7]))
    assert known.keys.tolist() == [3, 9, 1 << 63]
    again = KnownRecords.from_bytes(known.to_bytes())
    assert (again.keys.tolist(), again.counts.tolist()) == (known.keys.tolist(), [UNKNOWN, 1, 7])
    for n in range(len(known.to_bytes())):
        damaged = bytearray(known.to_bytes())
        damaged[n] ^= 1
        assert KnownRecords.from_bytes(bytes(damaged)) is None
