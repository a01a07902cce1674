"""Questions are read from JSON lines; what is wrong in them is named with file, line and id."""

import json

import pytest

from pisco_index import read_questions
from pisco_index.errors import QuestionsError
from pisco_index.reader.questions import find_documents
from pisco_index.reader.retriever import FakeRetriever

GOOD = {"id": "q1", "question": "Who?", "answers": ["Ada", "Lovelace"], "doc_ids": ["b", "a"]}


@pytest.fixture
def file(tmp_path):
    def write(*records, name="questions.jsonl"):
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), "utf-8")
        return path

    return write


def test_questions_are_read_in_order(file):
    other = {"question": "Où?", "answer": "là-bas", "doc_ids": ["c"], "difficulty": 3}
    first, second = read_questions(file(GOOD, "", other)).asked
    assert (first.id, first.text, first.answers, first.doc_ids) == ("q1", "Who?", ("Ada", "Lovelace"), ("b", "a"))
    assert (second.id, second.text, second.answers, second.doc_ids) == ("3", "Où?", ("là-bas",), ("c",))


def test_answers_may_be_absent_where_they_are_not_needed(file):
    (first, second) = read_questions(file(GOOD, without("answers") | {"id": "q2"}), answered=False).asked
    assert (first.answers, second.answers) == (("Ada", "Lovelace"), ())


def test_integers_are_ids_and_windows_files_are_read(file):
    path = file("\ufeff" + json.dumps(GOOD | {"id": 7}) + "\r")
    assert read_questions(path).asked[0].id == "7"


def without(field):
    return {name: value for name, value in GOOD.items() if name != field}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"question": "\\ud800"}', "line 2: not JSON"),
        ("[]", "line 2: a question is a JSON object, not an empty list"),
        (without("question"), "line 2, id 'q1': question must be a string, not null or missing"),
        (GOOD | {"question": " "}, "line 2, id 'q1': question must be a string, not an empty string"),
        (GOOD | {"question": 3}, "line 2, id 'q1': question must be a string, not 3"),
        (without("answers"), "line 2, id 'q1': the question has no reference answer. Add answers"),
        (GOOD | {"answers": []}, "answers must be a list of strings, at least one, not an empty list"),
        (GOOD | {"answers": "Ada"}, "answers must be a list of strings, at least one, not a string"),
        (GOOD | {"answers": ["Ada", ""]}, "answers must be a string, not an empty string"),
        (without("answers") | {"answer": ["Ada"]}, "answer must be a string, not a list"),
        (without("doc_ids"), "line 2, id 'q1': the question has no documents. Add doc_ids (a list), or give a run"),
        (GOOD | {"doc_ids": []}, "doc_ids must be a list of strings, at least one, not an empty list"),
        (GOOD | {"doc_ids": [1]}, "doc_ids must be a string, not 1"),
        (GOOD | {"id": True}, "line 2: id must be a string or an integer, not True"),
        (GOOD | {"id": ""}, "line 2: id must be a string or an integer, not an empty string"),
        (GOOD | {"id": "q0"}, "line 2: the id 'q0' is already used in line 1"),
    ],
)
def test_a_bad_question_is_named(file, record, message):
    path = file(GOOD | {"id": "q0"}, record)
    with pytest.raises(QuestionsError) as caught:
        read_questions(path)
    assert str(caught.value).startswith(f"{path}, ")
    assert message in str(caught.value)


def test_the_number_of_a_line_may_be_taken_already(file):
    with pytest.raises(QuestionsError, match="line 2: the id '2' is already used in line 1"):
        read_questions(file(GOOD | {"id": 2}, without("id")))


def test_files_that_cannot_be_read(file, tmp_path):
    with pytest.raises(QuestionsError, match="the file holds no questions"):
        read_questions(file(""))
    with pytest.raises(QuestionsError, match="cannot be read: No such file"):
        read_questions(tmp_path / "nothing.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\n\n\xe9")
    with pytest.raises(QuestionsError, match="line 3: not UTF-8"):
        read_questions(tmp_path / "latin.jsonl")


def test_a_retriever_replaces_the_documents_of_questions(file):
    asked = read_questions(file(GOOD, GOOD | {"id": "q2", "question": "Where?"})).asked
    found = find_documents(asked, FakeRetriever({"Who?": ["x", "y", "z"]}), hits=2)
    assert [(question.id, question.answers, question.doc_ids) for question in found] == [
        ("q1", ("Ada", "Lovelace"), ("x", "y")),
        ("q2", ("Ada", "Lovelace"), ()),
    ]


class TestRun:
    def test_a_run_replaces_the_documents_of_questions(self, file):
        run = file(*(f"{q} Q0 d{n} {n} {100 - n} x" for q in ("q1", "q7", "q8") for n in range(9)), name="run.trec")
        questions = file(GOOD, without("doc_ids") | {"id": "q7"})
        read = read_questions(questions, run=run)
        assert [q.doc_ids for q in read.asked] == [("d0", "d1", "d2", "d3", "d4")] * 2
        assert read.ignored_queries == 1
        assert read_questions(questions, run=run, documents=7).asked[0].doc_ids[5:] == ("d5", "d6")

    def test_the_number_of_documents_also_cuts_the_questions_own(self, file):
        assert read_questions(file(GOOD), documents=1).asked[0].doc_ids == ("b",)
        with pytest.raises(ValueError, match="at least 1, not 0"):
            read_questions(file(GOOD), documents=0)

    def test_a_question_that_the_run_lacks_is_named(self, file):
        run = file("q2 Q0 d 1 1 x", name="run.trec")
        with pytest.raises(QuestionsError, match=r"run\.trec: the run has no documents for 1 of the 2 .*: 'q1'\."):
            read_questions(file(GOOD, GOOD | {"id": "q2"}), run=run)
