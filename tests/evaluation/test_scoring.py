"""Files of answers are scored against references, and their documents against judgements."""

import json
import re
import subprocess
import sys
from dataclasses import asdict

import pytest

from pisco_index.errors import ConfigError, QuestionsError
from pisco_index.evaluation.qrels import read_qrels
from pisco_index.evaluation.scoring import score_answers
from pisco_index.reader.answering import AnsweredQuestion

QUESTIONS = [
    {"id": "1", "question": "Who?", "answers": ["Ada Lovelace", "Ada"], "doc_ids": ["a"]},
    {"id": "2", "question": "Where?", "answer": "London", "doc_ids": ["b", "c"]},
    {"id": "3", "question": "Why?", "doc_ids": ["d"]},
    {"id": "4", "question": "When?", "answer": "1843"},
]


def answered(question_id, answer, documents, scores=True):
    found = tuple(1 / place for place, _ in enumerate(documents, start=1)) if scores else ()
    error = "no document" if answer is None else None
    return AnsweredQuestion(question_id, "", answer, error, tuple(documents), found, (), 1, 16, 9, 0.1)


ANSWERS = [
    answered("1", "the Ada", ["x", "a"]),
    answered("2", "In London", ["b", "y", "c"]),
    answered("3", "?", ["z"]),
    answered("9", "?", ["z"]),
]


@pytest.fixture
def write(tmp_path):
    def make(name, lines):
        shown = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / name).write_text("".join(f"{line}\n" for line in shown))
        return tmp_path / name

    return make


@pytest.fixture
def questions(write):
    return write("questions.jsonl", QUESTIONS)


@pytest.fixture
def answers(write):
    return write("answers.jsonl", map(asdict, ANSWERS))


def test_answers_are_scored_by_their_references(answers, questions):
    found = score_answers(answers, questions)
    assert (found.questions, found.answered_by_reference, found.failed, found.ignored) == (3, 2, 0, 1)
    assert found.unanswered == ("4",)
    assert (found.match, found.exact_match) == (1, 0.5)
    assert found.f1 == pytest.approx((1 + 2 / 3) / 2)
    assert found.form == "JSON lines: id, question, answers, doc_ids"


def test_a_question_without_an_answer_counts_as_wrong(write, questions):
    lines = write("answers.jsonl", [asdict(ANSWERS[0]), asdict(answered("2", None, []))])
    found = score_answers(lines, questions)
    assert (found.questions, found.failed, found.match, found.exact_match) == (2, 1, 0.5, 0.5)


def test_answers_of_other_programs_are_scored(write, questions):
    lines = [
        {"id": 1, "answer": "Ada", "documents": [{"text": "…"}]},
        "",
        {"id": "2", "answer": "Rome", "scores": None},
    ]
    path = write("answers.jsonl", lines)
    # Neither a byte order mark nor a last line without its end is a reason to lose an answer.
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().rstrip())
    found = score_answers(path, questions)
    assert (found.questions, found.match, found.retrieval) == (2, 0.5, {})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": "1", "answer": 3}', ""], "line 1: this is no answer. .* id, a string or an integer"),
        (['{"id": "1"}', ""], "line 1: this is no answer"),
        (["no JSON", ""], "line 1: this is no answer"),
        (
            [{"id": 1, "answer": "a"}, {"id": "1", "answer": "b"}],
            "line 2: question '1' has an answer in an earlier line",
        ),
    ],
)
def test_a_line_that_is_no_answer_is_named(write, questions, lines, message):
    with pytest.raises(QuestionsError, match=message):
        score_answers(write("answers.jsonl", lines), questions)


def test_answers_are_scored_without_torch():
    code = "import sys, pisco_index.evaluation.scoring; print({'torch', 'transformers'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_documents_are_measured_against_those_that_the_questions_name(answers, questions):
    found = score_answers(answers, questions, measures=["R@1", "R@5", "RR", "Success@1"])
    assert (found.judged, found.judged_by, found.documents_from) == (3, "questions", "answers")
    assert found.retrieval == pytest.approx({"R@1": 0.5 / 3, "R@5": 2 / 3, "RR": 1.5 / 3, "Success@1": 1 / 3})


def test_documents_that_the_questions_named_themselves_are_not_measured(write, questions):
    lines = write("answers.jsonl", [asdict(answered("1", "Ada", ["a"], scores=False))])
    found = score_answers(lines, questions)
    assert (found.retrieval, found.judged, found.judged_by) == ({}, 0, "")


def test_equal_scores_keep_their_order(write, questions):
    tied = asdict(answered("1", "Ada", ["a", "x"])) | {"scores": [1.0, 1.0]}
    assert score_answers(write("a", [tied]), questions, measures=["RR"]).retrieval == {"RR": 1}
    assert score_answers(write("a", [tied | {"documents": ["x", "a"]}]), questions, measures=["RR"]).retrieval == {
        "RR": 0.5
    }


def test_a_run_and_judgements_may_be_given(answers, questions, write):
    qrels = write("qrels", ["1 0 q 1", "1 0 x 0", "2 0 b 2", "3 0 z 0", "77 0 a 1"])
    run = write("run", ["1 Q0 q 1 9 x", "1 Q0 r 2 8 x", "1 Q0 q 3 7 x"])
    found = score_answers(answers, questions, qrels=qrels, run=run, measures=["R@1"])
    assert (found.judged, found.judged_by, found.documents_from) == (2, "qrels", "run")
    assert found.retrieval == {"R@1": 0.5}
    assert "lines that repeat a document of their query: 1" in found.warnings[0]
    assert score_answers(answers, questions, qrels=qrels, measures=["R@1"]).retrieval == {"R@1": 0.5}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["q1 0 d1 1", "", "q1\t0\td2\t0", "q2 Q0 d1 2"], {"q1": {"d1": 1, "d2": 0}, "q2": {"d1": 2}}),
        (["query-id\tcorpus-id\tscore", "q1\tNew York\t1"], {"q1": {"New York": 1}}),
        (["q1\td1\t1.0"], {"q1": {"d1": 1}}),
    ],
)
def test_forms_of_judgements(write, lines, expected):
    assert read_qrels(write("qrels", lines)) == expected


@pytest.mark.parametrize(
    "line", ["q1 0 d1", "q1 0 d1 yes", "q1 Q0 d1 1 2.5 x", "q1 0 d1 inf", "q1 0 d1 0.9", "q1 0 d1 1e9"]
)
def test_a_bad_judgement_is_named(write, line):
    with pytest.raises(QuestionsError, match=r"qrels, line 2: a line of judgements has the fields"):
        read_qrels(write("qrels", ["q1 0 d1 1", line]))


def test_a_first_judgement_is_no_header(write):
    with pytest.raises(QuestionsError, match=r"line 1: .* The last one is an integer"):
        read_qrels(write("qrels", ["q1\td1\t0.9", "q1\td2\t1"]))


def test_what_cannot_be_scored(answers, questions, write):
    with pytest.raises(QuestionsError, match="none of its 4 answers belongs to a question"):
        score_answers(answers, write("others.jsonl", [{"id": "x", "question": "?"}]))
    with pytest.raises(QuestionsError, match="the file judges none of the questions, but 'x'"):
        score_answers(answers, questions, qrels=write("qrels", ["x 0 a 1"]))
    with pytest.raises(QuestionsError, match="the file holds no judgements"):
        score_answers(answers, questions, qrels=write("qrels", [""]))


@pytest.mark.parametrize(
    "name", ["foo@3", "R", "P", "ERR@10", "alpha_nDCG@10", "nDCG@0", "Success@0", "R@5.5", "P(rel=0)@5", "R@5*2", "R@",
             "R@9e9", "R@99999999999999999999"],
)  # fmt: skip
def test_measures_that_are_not_computed_are_named(answers, questions, name):
    with pytest.raises(ConfigError, match=rf"'{re.escape(name)}' is not a measure .* for example R@5"):
        score_answers(answers, questions, measures=["RR", name])


def test_a_document_that_was_answered_from_twice_has_its_better_place(write, questions):
    lines = write("answers.jsonl", [asdict(answered("1", "Ada", ["a", "x", "a"]))])
    assert score_answers(lines, questions, measures=["RR", "RR@10"]).retrieval == {"RR": 1, "RR@10": 1}
