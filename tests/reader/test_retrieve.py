"""Retrieval writes a run that other programs read in the same order, or nothing at all."""

import json
import re
from itertools import pairwise

import ir_measures
import numpy as np
import pytest

from pisco_index.errors import InputError, QuestionsError, StoreError
from pisco_index.reader.questions import RunFile, write_run
from pisco_index.reader.reader import Reader
from pisco_index.reader.retrieve import retrieve
from pisco_index.reader.retriever import Hit, StoreRetriever
from pisco_index.store import Searcher, Store

QUESTIONS = {"q1": "Which document is about the history?", "q2": "Document 7?", "none": "zebra", "stop": "the of"}


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    lines = (json.dumps({"id": name, "question": text}) + "\n" for name, text in QUESTIONS.items())
    path.write_text("".join(lines))
    return path


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run.trec"


# The store


def test_a_reader_finds_documents_best_first(hidden_store):
    with Reader(hidden_store) as reader:
        found = reader.search("Which document is number 7?", hits=3)
        assert found[0].doc_id == "doc-7"
        assert len(found) == 3
        assert reader.search_many(list(QUESTIONS.values()), 3) == [reader.search(q, 3) for q in QUESTIONS.values()]
    with pytest.raises(StoreError, match="closed"):
        reader.search("7")


def test_a_store_is_a_retriever(hidden_store):
    with Reader(hidden_store) as reader:
        found = StoreRetriever(reader, threads=2).retrieve(QUESTIONS, hits=2)
        assert list(found) == list(QUESTIONS)
        assert found["q2"] == tuple(reader.search(QUESTIONS["q2"], 2))
        assert found["none"] == found["stop"] == ()
    assert StoreRetriever(Searcher(Store.open(hidden_store))).retrieve(QUESTIONS, hits=2) == found


def test_a_run_of_a_file_of_questions(hidden_store, questions, run):
    done = []
    report = retrieve(
        hidden_store, questions, run, hits=7, tag="mine", threads=2, progress=lambda *done_of: done.append(done_of)
    )
    assert (report.questions, report.hits) == (4, len(run.read_text().splitlines()))
    assert report.without_hits == ("none", "stop")
    assert report.without_words == ("stop",)
    assert done[-1] == (4, 4)
    with Reader(hidden_store) as reader:
        expected = StoreRetriever(reader).retrieve(QUESTIONS, hits=7)
    read = RunFile(run).retrieve(QUESTIONS, hits=100)
    assert {name: [hit.doc_id for hit in hits] for name, hits in read.items()} == {
        name: [hit.doc_id for hit in hits] for name, hits in expected.items()
    }
    assert {line.split()[-1] for line in run.read_text().splitlines()} == {"mine"}


def test_the_same_run_has_the_same_bytes(hidden_store, questions, run, tmp_path):
    for number, threads in enumerate((1, 4)):
        retrieve(hidden_store, questions, tmp_path / str(number), threads=threads)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


# The run

TIED = [
    Hit("b", 2.5),
    Hit("c", 2.5),
    Hit("a", 2.5),
    Hit("z", float(np.nextafter(np.float32(2.5), np.float32(0)))),
    Hit("y", 0.1),
]


def test_scores_fall_strictly_for_every_reader(run):
    assert write_run(run, [("q", TIED), ("empty", []), ("r", [Hit("a", 1e-9), Hit("b", 1e-9)])], tag="t") == 7
    lines = [line.split(" ") for line in run.read_text().splitlines()]
    assert [line[:4] for line in lines[:5]] == [["q", "Q0", hit.doc_id, str(n)] for n, hit in enumerate(TIED, start=1)]
    for before, after in pairwise(line[4] for line in lines[:5]):
        assert float(before) > float(after)
        assert np.float32(before) > np.float32(after)
    assert lines[0][4] == "2.5"
    assert not [line for line in lines if "e" in line[4]]


def test_ir_measures_orders_a_run_as_we_do(run):
    write_run(run, [("q", TIED)], tag="t")
    scored = list(ir_measures.read_trec_run(str(run)))
    assert [each.doc_id for each in scored] == [hit.doc_id for hit in TIED]
    for place, hit in enumerate(TIED, start=1):
        relevant = [ir_measures.Qrel("q", hit.doc_id, 1)]
        assert ir_measures.calc_aggregate([ir_measures.RR], relevant, scored)[ir_measures.RR] == pytest.approx(
            1 / place
        )


def test_pyterrier_reads_a_run_and_writes_one_that_is_read(run):
    # pyterrier.io reads r"\s+" between the columns qid, iter, docno, rank (int), score (float) and name; it writes
    # them with blanks between them, ranks from 0.
    write_run(run, [("q", TIED)], tag="t")
    rows = [re.split(r"\s+", line) for line in run.read_text().splitlines()]
    frame = [(qid, docno, int(rank), float(score)) for qid, _, docno, rank, score, _ in rows]
    frame.sort(key=lambda row: -row[3])
    assert [row[1] for row in frame] == [hit.doc_id for hit in TIED]
    run.write_text("".join(f"{qid} Q0 {docno} {rank - 1} {score} pyterrier\n" for qid, docno, rank, score in frame))
    assert [hit.doc_id for hit in RunFile(run).retrieve({"q": ""}, hits=9)["q"]] == [hit.doc_id for hit in TIED]


@pytest.mark.parametrize(
    ("found", "tag", "named"),
    [
        ([("q 1", [])], "t", "'q 1'"),
        ([("q", [Hit("New York", 1), Hit("a\u00a0b", 1)])], "t", r"'New York', 'a\\xa0b'"),
        ([("", [])], "t", "''"),
        ([], "my run", "'my run'"),
    ],
)
@pytest.mark.fault("An id does not fit in a run.", "An error names it; the former run stays as it was.")
def test_ids_with_white_space_are_named_and_nothing_is_written(run, found, tag, named):
    run.write_text("before")
    with pytest.raises(QuestionsError, match=f"white space.*{named}.*pisco-index answer"):
        write_run(run, [("fine", TIED), *found], tag=tag)
    assert run.read_text() == "before"
    assert list(run.parent.iterdir()) == [run]


@pytest.mark.parametrize("words", [{"id": "q 1", "question": "Why?"}, {"id": "q1\u3000", "question": "Why?"}])
def test_ids_of_questions_are_checked_before_the_search(hidden_store, questions, run, words, monkeypatch):
    monkeypatch.setattr(Searcher, "search_each", None)
    questions.write_text(json.dumps(words))
    with pytest.raises(QuestionsError, match=r"questions in .*questions\.jsonl"):
        retrieve(hidden_store, questions, run)


def test_an_interrupted_run_leaves_the_former_one(hidden_store, questions, run):
    def stop(*_):
        raise KeyboardInterrupt

    run.write_text("q Q0 d 1 1.0 before\n")
    with pytest.raises(KeyboardInterrupt):
        retrieve(hidden_store, questions, run, progress=stop)
    assert run.read_text() == "q Q0 d 1 1.0 before\n"
    assert sorted(run.parent.iterdir()) == sorted([questions, run])


def test_a_run_that_cannot_be_written_is_refused_before_the_search(hidden_store, questions, tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        retrieve(hidden_store, questions, tmp_path / "no" / "run")
    with pytest.raises(InputError, match="not a regular file"):
        retrieve(hidden_store, questions, tmp_path)
    (tmp_path / "link").symlink_to(questions)
    with pytest.raises(InputError, match="this is the file of questions"):
        retrieve(hidden_store, tmp_path / "link", questions)
    (tmp_path / "other").write_text("{}\n")
    with pytest.raises(InputError, match="other: the file holds something else than a run"):
        retrieve(hidden_store, questions, tmp_path / "other")
    assert (tmp_path / "other").read_text() == "{}\n"
    run = tmp_path / "run"
    run.touch()
    with pytest.raises(QuestionsError, match="No such file"):
        retrieve(hidden_store, tmp_path / "nothing", run)
