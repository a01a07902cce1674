"""Files of questions and runs: what is read, and what is refused with file, line and id."""

import json

import pytest

from pisco_index import QuestionsError, read_questions
from pisco_index.reader.questions import read_run

GOOD = {"id": "q1", "question": "Who?", "answers": ["Ada", "Lovelace"], "doc_ids": ["b", "a"]}


@pytest.fixture
def file(tmp_path):
    def write(*records, name="questions.jsonl"):
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), "utf-8")
        return path

    return write


def test_questions_keep_their_order_and_what_is_said_of_them(file):
    other = {"question": "Où?", "answer": "là-bas", "doc_ids": ["c"], "difficulty": 3}
    first, second = read_questions(file(GOOD, "", other)).asked
    assert (first.id, first.text, first.answers, first.doc_ids) == ("q1", "Who?", ("Ada", "Lovelace"), ("b", "a"))
    assert (second.id, second.text, second.answers, second.doc_ids) == ("3", "Où?", ("là-bas",), ("c",))


def test_answers_may_be_absent_where_nobody_needs_them(file):
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
        (without("question"), "line 2, id 'q1': question must be a text, not null or missing"),
        (GOOD | {"question": " "}, "line 2, id 'q1': question must be a text, not an empty text"),
        (GOOD | {"question": 3}, "line 2, id 'q1': question must be a text, not 3"),
        (without("answers"), "line 2, id 'q1': there is no reference answer. Give answers"),
        (GOOD | {"answers": []}, "answers must be a list of at least one text, not an empty list"),
        (GOOD | {"answers": "Ada"}, "answers must be a list of at least one text, not a text"),
        (GOOD | {"answers": ["Ada", ""]}, "answers must be text, not an empty text"),
        (without("answers") | {"answer": ["Ada"]}, "answer must be text, not a list"),
        (without("doc_ids"), "line 2, id 'q1': the question has no documents. Give it doc_ids, a list, or give a run"),
        (GOOD | {"doc_ids": []}, "doc_ids must be a list of at least one text, not an empty list"),
        (GOOD | {"doc_ids": [1]}, "doc_ids must be text, not 1"),
        (GOOD | {"id": True}, "line 2: id must be a string or an integer, not True"),
        (GOOD | {"id": ""}, "line 2: id must be a string or an integer, not an empty text"),
        (GOOD | {"id": "q0"}, "line 2: the id 'q0' stands in line 1 already"),
    ],
)
def test_a_bad_question_is_named(file, record, message):
    path = file(GOOD | {"id": "q0"}, record)
    with pytest.raises(QuestionsError) as caught:
        read_questions(path)
    assert str(caught.value).startswith(f"{path}, ")
    assert message in str(caught.value)


def test_the_number_of_a_line_may_be_taken_already(file):
    with pytest.raises(QuestionsError, match="line 2: the id '2' stands in line 1 already"):
        read_questions(file(GOOD | {"id": 2}, without("id")))


def test_files_that_cannot_be_read(file, tmp_path):
    with pytest.raises(QuestionsError, match="there are no questions in it"):
        read_questions(file(""))
    with pytest.raises(QuestionsError, match="cannot be read: No such file"):
        read_questions(tmp_path / "nothing.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\n\n\xe9")
    with pytest.raises(QuestionsError, match="line 3: not UTF-8"):
        read_questions(tmp_path / "latin.jsonl")


class TestRun:
    def test_documents_come_by_falling_score_and_then_rank(self, file):
        run = file(
            "q1 Q0 low 1 0.5 x", "q1 Q0 tie-2 4 2 x", "q2\tQ0\tdoc#0\t1\t-3\tx", "q1 Q0 tie-1 3 2.0 x",
            "q1 Q0 high 9 1e2 x", "q1 Q0 a\u00a0b 8 -1 x", name="run.trec",
        )  # fmt: skip
        assert read_run(run) == {"q1": ("high", "tie-1", "tie-2", "low", "a\u00a0b"), "q2": ("doc#0",)}

    def test_a_run_stands_in_place_of_the_questions_documents(self, file):
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

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("q1 Q0 d 1 1", "line 2: a line of a TREC run has the 6 fields .* this one has 5"),
            ("q1 Q0 New York 1 1 x", "this one has 7. Ids with white space in them do not fit"),
            ("q1 Q0 d one 1 x", "line 2: rank 'one' and score '1' must be"),
            ("q1 Q0 d 1 nan x", "line 2: rank '1' and score 'nan' must be"),
            ("q1 Q0 c 1 1 x", "line 2: query 'q1' has the document 'c' twice"),
        ],
    )
    def test_a_bad_line_is_named(self, file, line, message):
        with pytest.raises(QuestionsError, match=r"run\.trec, " + f".*{message}"):
            read_run(file("q1 Q0 c 1 1 x", line, name="run.trec"))
