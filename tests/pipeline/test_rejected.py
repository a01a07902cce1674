"""Builds of corpora with broken records: every good document once, every bad record named."""

import gzip
import json
from itertools import accumulate

import lancedb
import pytest
from typer.testing import CliRunner

from pisco_index import Reader, build, build_status, dry_run, verify
from pisco_index.cli import app
from pisco_index.errors import BuildIncompleteError, CorpusError, PlanMismatchError
from pisco_index.pipeline.planning import ids as planned_ids
from pisco_index.store import compact

from .conftest import fail_on

pytestmark = pytest.mark.usefixtures("plain_compressor")


def good(doc_id, text="A text about the city and its river"):
    return json.dumps({"id": doc_id, "text": text})


def write_spoiled(path, count=40, texts=()):
    """JSON lines of which every fifth is broken in one way or another, and those ids."""
    ways = ['{"id": "bad" "text"}', '{"id": "no-text"}', '{"id": "doc-1", "text": "again"}', '["list"]']
    texts = dict(texts)
    lines = [
        ways[n // 5 % 4] if n % 5 == 2 else good(f"doc-{n}", f"Document {n} {texts.get(n, 'of the city ' * (n % 7))}")
        for n in range(count)
    ]
    path.write_text("\n".join(lines))
    return {f"doc-{n}" for n in range(count) if n % 5 != 2}, count // 5


def ids_in(uri):
    return sorted(lancedb.connect(str(uri)).open_table("memory").to_arrow()["doc_id"].to_pylist())


def rejected_in(uri):
    table = lancedb.connect(str(uri)).open_table("rejected").to_arrow()
    return sorted(table.to_pylist(), key=lambda row: (row["source"], row["error"]))


@pytest.fixture
def skipping(small):
    return small(corpus={"on_error": "skip", "format": "jsonl"})


@pytest.mark.fault(
    "A record is broken, with `--on-error skip`.",
    "It is left out, counted, and kept as a row of `rejected`, also by resumed builds and updates.",
)
def test_broken_records_are_left_out_and_named(checkpoint, skipping, tmp_path):
    corpus, store = tmp_path / "corpus.jsonl", tmp_path / "store"
    ids, bad = write_spoiled(corpus)
    estimate = dry_run([corpus], checkpoint, store, skipping)
    assert (estimate.documents, sum(estimate.rejected.values())) == (len(ids), bad)
    report = build([corpus], checkpoint, store, skipping)
    assert report.shards > 3
    assert report.rejected == {"broken JSON": 2, "missing field": 2, "repeated id": 2, "wrong type": 2}
    assert ids_in(store) == sorted(ids)
    rows = rejected_in(store)
    assert len(rows) == bad
    places = [
        int(row["source"].split("byte ")[1].split(", column")[0].replace(",", ""))
        for row in rows
        if "byte" in row["source"]
    ]
    assert len(places) > 4
    assert set(places) <= {offset for number, offset in enumerate(line_offsets(corpus)) if number % 5 == 2}
    assert {row["source"] for row in rows if row["doc_id"] is None} >= {"corpus.jsonl, line 3, column 14"}
    assert [row["doc_id"] for row in rows if "earlier record" in row["error"]] == ["doc-1", "doc-1"]
    assert build_status(store).rejected == report.rejected
    assert build_status(store).store.rejected_records == bad
    assert verify(store, checkpoint=checkpoint, corpus=[corpus], sample=5).is_sound
    assert "2 (broken JSON)" in CliRunner().invoke(app, ["info", str(store)]).output
    again = build([corpus], checkpoint, store, skipping)
    assert (again.committed, len(rejected_in(store))) == (0, bad)


def line_offsets(path):
    return list(accumulate((len(line) for line in path.read_bytes().splitlines(keepends=True)), initial=0))


def test_without_skipping_the_first_is_an_error(checkpoint, small, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    write_spoiled(corpus)
    with pytest.raises(CorpusError, match=r"corpus\.jsonl, line 3, column 14: broken JSON"):
        build([corpus], checkpoint, tmp_path / "store", small(corpus={"format": "jsonl"}))
    assert not (tmp_path / "store").exists()


@pytest.mark.fault(
    "A record is broken, with `--on-error skip`.",
    "It is left out, counted, and kept as a row of `rejected`, also by resumed builds and updates.",
)
def test_a_resumed_build_names_each_once(checkpoint, skipping, small, tmp_path, monkeypatch):
    corpus, store = tmp_path / "corpus.jsonl", tmp_path / "store"
    ids, bad = write_spoiled(corpus)
    with monkeypatch.context() as patch:
        fail_on(patch, {1, 3})
        with pytest.raises(BuildIncompleteError):
            build([corpus], checkpoint, store, skipping)
    assert 0 < len(rejected_in(store)) < bad
    with pytest.raises(PlanMismatchError, match="with on_error 'skip' and is to be read with 'fail'"):
        build([corpus], checkpoint, store, small(corpus={"format": "jsonl", "on_error": "fail"}))
    build([corpus], checkpoint, store, skipping)
    assert ids_in(store) == sorted(ids)
    assert len(rejected_in(store)) == bad


@pytest.mark.fault(
    "A record is broken, with `--on-error skip`.",
    "It is left out, counted, and kept as a row of `rejected`, also by resumed builds and updates.",
)
def test_an_update_names_those_of_the_corpus_as_it_is(checkpoint, skipping, tmp_path, monkeypatch):
    corpus, store = tmp_path / "corpus.jsonl", tmp_path / "store"
    ids, _ = write_spoiled(corpus)
    build([corpus], checkpoint, store, skipping)
    # One is mended, one is new, one breaks, and texts change around them.
    lines = corpus.read_text().split("\n")
    lines[2], lines[18] = good("mended"), '{"id": 1.5, "text": "x"}'
    lines[21] = good("doc-21", "changed")
    lines += ["rubbish", good("new")]
    corpus.write_text("\n".join(lines))
    with monkeypatch.context() as patch:
        fail_on(patch, {build_status(store).shards_planned})
        with pytest.raises(BuildIncompleteError):
            build([corpus], checkpoint, store, skipping)
    report = build([corpus], checkpoint, store, skipping)
    assert (report.changes.new, report.changes.changed, report.changes.gone) == (2, 1, 1)
    assert ids_in(store) == sorted(ids | {"mended", "new"})
    rows = rejected_in(store)
    assert len(rows) == sum(report.rejected.values()) == 9
    fresh = tmp_path / "fresh"
    build([corpus], checkpoint, fresh, skipping)
    assert sorted(row["error"] for row in rows) == sorted(row["error"] for row in rejected_in(fresh))
    with pytest.raises(CorpusError, match=r"would delete 1 documents, .* among the 9 records .* cannot be used"):
        build([corpus], checkpoint, store, skipping, prune=True)
    assert "doc-18" in ids_in(store)
    compact(store, older_than_hours=0)
    assert len(rejected_in(store)) == 9
    assert verify(store, checkpoint=checkpoint).is_sound


def test_another_rule_over_a_finished_store_is_an_update(checkpoint, skipping, small, tmp_path):
    corpus, store = tmp_path / "corpus.jsonl", tmp_path / "store"
    corpus.write_text("\n".join(good(f"doc-{n}") for n in range(9)))
    build([corpus], checkpoint, store, small(corpus={"format": "jsonl"}))
    corpus.write_text(corpus.read_text() + "\nrubbish\n" + good("doc-9"))
    report = build([corpus], checkpoint, store, skipping)
    assert (report.changes.new, report.changes.same, report.rejected) == (1, 9, {"broken JSON": 1})
    assert [row["source"].startswith("corpus.jsonl, byte") for row in rejected_in(store)] == [True]


def test_shards_of_nothing_but_broken_records(checkpoint, skipping, tmp_path):
    corpus, store = tmp_path / "corpus.jsonl", tmp_path / "store"
    corpus.write_text("rubbish\n" * 30 + good("doc") + "\n" + "rubbish\n" * 30)
    estimate = dry_run([corpus], checkpoint, store, skipping)
    assert (estimate.documents, estimate.rejected) == (1, {"broken JSON": 60})
    report = build([corpus], checkpoint, store, skipping)
    assert report.shards > 5
    assert (ids_in(store), len(rejected_in(store))) == (["doc"], 60)
    assert verify(store).is_sound
    corpus.write_text("rubbish\nrubbish")
    with pytest.raises(CorpusError, match=r"no document .* 2 records cannot be used, the first because of .*line 1"):
        build([corpus], checkpoint, tmp_path / "other", skipping)


def test_damaged_files_among_others(checkpoint, small, tmp_path):
    folder, store = tmp_path / "folder", tmp_path / "store"
    folder.mkdir()
    lines = ["\n".join(good(f"{name}-{n}", f"{n * 7919} " * 50) for n in range(100)) for name in "abd"]
    (folder / "a.jsonl").write_text(lines[0])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines[1].encode())[:-300])
    (folder / "c.bin").write_bytes(b"%PDF-1.4 no corpus")
    (folder / "d.jsonl").write_text(lines[2])
    config = small(corpus={"on_error": "skip"})
    report = build([folder], checkpoint, store, config)
    assert report.rejected == {"damaged file": 1, "unrecognised file": 1}
    rows = {row["source"]: row["error"] for row in rejected_in(store)}
    assert "It is truncated" in rows["folder/b.jsonl.gz"]
    assert rows["folder/c.bin"] == "the file is a PDF. Extract its text first."
    kept = [doc_id for doc_id in ids_in(store) if doc_id.startswith("b-")]
    assert 10 < len(kept) < 100
    assert len(ids_in(store)) == 200 + len(kept)
    # What is left of a file is met again where nothing else of it is new.
    (folder / "d.jsonl").write_text(lines[2] + "\n" + good("new"))
    report = build([folder], checkpoint, store, config)
    assert (report.changes.new, report.rejected) == (1, {"damaged file": 1, "unrecognised file": 1})
    assert {row["source"]: row["error"] for row in rejected_in(store)} == rows
    assert verify(store).is_sound


def test_too_many_repeated_ids_are_refused(checkpoint, skipping, tmp_path, monkeypatch):
    monkeypatch.setattr(planned_ids, "MAX_REPEATED", 3)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join([good("same")] * 5))
    with pytest.raises(
        CorpusError, match=r"the id 'same' is that of an earlier record\. More than 3 ids are repeated\. Choose"
    ):
        build([corpus], checkpoint, tmp_path / "store", skipping)
    corpus.write_text("\n".join(good(f"doc-{n % 6}") for n in range(12)))
    with pytest.raises(CorpusError, match="occurs twice"):
        build([corpus], checkpoint, tmp_path / "store", skipping)


def test_wikitext_that_cannot_be_parsed(checkpoint, small, tmp_path, monkeypatch):
    from pisco_index.corpus.formats import mediawiki

    prose = mediawiki.prose

    def fail(text, links):
        if "poison" in text:
            raise RecursionError("too deep")
        return prose(text, links)

    monkeypatch.setattr(mediawiki, "prose", fail)
    corpus, store = tmp_path / "dump.xml", tmp_path / "store"
    pages = "".join(
        f"<page><title>T{n}</title><ns>0</ns><id>{n}</id><revision><text>{text}</text></revision></page>"
        for n, text in enumerate(["first", "poison", "third"])
    )
    corpus.write_text(f"<mediawiki>{pages}</mediawiki>")
    with pytest.raises(
        CorpusError, match=r"dump\.xml, byte 100 \('T1'\): its wikitext cannot be parsed \(RecursionError"
    ):
        build([corpus], checkpoint, tmp_path / "other", small())
    config = small(corpus={"on_error": "skip"})
    build([corpus], checkpoint, store, config)
    assert ids_in(store) == ["0#0", "2#0"]
    assert [(row["doc_id"], row["source"]) for row in rejected_in(store)] == [("1", "dump.xml, byte 100 ('T1')")]
    corpus.write_text(corpus.read_text().replace("third", "another"))
    assert build([corpus], checkpoint, store, config).rejected == {"unparsable wikitext": 1}
    assert [row["doc_id"] for row in rejected_in(store)] == ["1"]


def test_odd_ids_and_texts_are_stored(checkpoint, skipping, tmp_path):
    corpus, store = tmp_path / "corpus.jsonl", tmp_path / "store"
    ids = ["nul\0nul", "line\nfeed", "tab\t", "'; DROP", "\u202eright", "\U0001f600", "é" * 256]
    corpus.write_text("\n".join(good(doc_id, f"{doc_id}\0{doc_id}") for doc_id in ids))
    build([corpus], checkpoint, store, skipping)
    assert ids_in(store) == sorted(ids)
    with Reader(store) as reader:
        assert reader.fetch(ids).doc_ids == tuple(ids)
    assert verify(store).is_sound
