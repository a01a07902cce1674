"""Questions are read in the forms that data sets have; what is wrong is named with file, line and id."""

import gzip
import json
import os

import pytest

from pisco_index import read_questions
from pisco_index.errors import QuestionsError
from pisco_index.reader.questions import Question, find_documents
from pisco_index.reader.questions.runs import RunFile
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


def test_only_line_feeds_end_lines_and_marks_at_their_beginning_are_dropped(tmp_path):
    path = tmp_path / "questions.tsv"
    path.write_bytes("\ufeffid\tquestion\n\ufeff1\tWho\u2028is\x0bthis?\r\n2\tWhy\u0085\ufeffnot\fme?\n".encode())
    asked = read_questions(path, answered=False, documented=False).asked
    assert [(each.id, each.text) for each in asked] == [
        ("1", "Who\u2028is\x0bthis?"),
        ("2", "Why\u0085\ufeffnot\x0cme?"),
    ]
    path.write_bytes("\ufeffq1 Q0 d\u20281 1 2.0 t\n\ufeffq2 Q0 d2 1 2.0 t\n".encode())
    assert [RunFile(path).retrieve({q: ""}, hits=1)[q][0].doc_id for q in ("q1", "q2")] == ["d\u20281", "d2"]
    path.write_bytes(b"1\tWho?\r2\tWhy?\r")
    with pytest.raises(QuestionsError, match="end in carriage returns"):
        read_questions(path, answered=False, documented=False)


def without(field):
    return {name: value for name, value in GOOD.items() if name != field}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"question": "\\ud800"}', "line 2: not JSON"),
        ("[]", "line 2: a question is a JSON object, not an empty list"),
        (without("question"), "line 2, id 'q1': no field holds the question; found 'id', 'answers', 'doc_ids'."),
        (GOOD | {"question": " "}, "line 2, id 'q1': question must be a string, the question's text, not an empty"),
        (GOOD | {"question": 3}, "line 2, id 'q1': question must be a string, the question's text, not 3"),
        (without("answers"), "line 2, id 'q1': the question has no reference answer. Add answers"),
        (GOOD | {"answers": []}, "line 2, id 'q1': answers holds no reference answer. Add answers"),
        (GOOD | {"answers": ["Ada", ""]}, "answers must hold strings or numbers, not an empty string"),
        (GOOD | {"answers": True}, "answers must be a string, a number, a list of these, or an object with text"),
        (GOOD | {"answers": {"x": 1}}, "or with value and aliases (TriviaQA), not an object"),
        (without("doc_ids"), "line 2, id 'q1': the question has no documents. Add doc_ids (a list), or give a run"),
        (GOOD | {"doc_ids": []}, "doc_ids must be a list of ids, at least one, not an empty list"),
        (GOOD | {"doc_ids": "d"}, "doc_ids must be a list of ids, at least one, not a string"),
        (GOOD | {"doc_ids": [None]}, "doc_ids must hold strings or integers, not null or missing"),
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
    with pytest.raises(QuestionsError, match="No such file"):
        read_questions(tmp_path / "nothing.jsonl")
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ""):
        with pytest.raises(QuestionsError, match="not a regular file"):
            read_questions(tmp_path / name)
    (tmp_path / "latin.jsonl").write_bytes(b"\n\n\xe9")
    with pytest.raises(QuestionsError, match="line 3: not UTF-8"):
        read_questions(tmp_path / "latin.jsonl")


BEIR = {"_id": "q1", "text": "Who?", "metadata": {}}
KILT = {"id": "q1", "input": "Who?", "output": [{"answer": "Ada", "provenance": []}, {"provenance": []}]}
SQUAD = {"id": "q1", "title": "Ada", "question": "Who?", "answers": {"text": ["Ada", "Ada"], "answer_start": [0, 0]}}
TRIVIA = {"question_id": "q1", "question": "Who?", "answer": {"value": "Ada", "aliases": ["Ada", "Countess"]}}


@pytest.mark.parametrize(
    ("content", "form", "expected"),
    [
        (json.dumps(BEIR), "JSON lines: _id, text", Question("q1", "Who?")),
        (json.dumps(KILT), "JSON lines: id, input, output", Question("q1", "Who?", ("Ada",))),
        ('{"question": "Who?", "answer": ["Ada", 7]}', "JSON lines: question, answer",
         Question("1", "Who?", ("Ada", "7"))),
        (json.dumps(SQUAD), "JSON lines: id, question, answers", Question("q1", "Who?", ("Ada",))),
        (json.dumps(TRIVIA), "JSON lines: question_id, question, answer", Question("q1", "Who?", ("Ada", "Countess"))),
        ('{"query_id": 3.0, "query": "Who?"}', "JSON lines: query_id, query", Question("3", "Who?")),
        ('{"qid": 1, "title": "Ada", "narrative": "x"}', "JSON lines: qid, title", Question("1", "Ada")),
        ('{"question": "Who?", "answer": 12, "doc_ids": [7, "b"]}', "JSON lines: question, answer, doc_ids",
         Question("1", "Who?", ("12",), ("7", "b"))),
        ('{"question": "Who?", "answers": null, "golden_answers": ["Ada"]}', "JSON lines: question, golden_answers",
         Question("1", "Who?", ("Ada",))),
        (json.dumps([GOOD], indent=1), "JSON array: id, question, answers, doc_ids",
         Question("q1", "Who?", ("Ada", "Lovelace"), ("b", "a"))),
        ('{\n"data": [{"question": "Who?"}]}', "JSON array: question", Question("1", "Who?")),
        ("1048585\tWho?\r", "text with tabs: id, question", Question("1048585", "Who?")),
        ("Who?\t['Ada', \"Ada's\"]", "text with tabs: question, answers", Question("1", "Who?", ("Ada", "Ada's"))),
        ('q1\t"Who ""is"" it?"\t"[""Ada""]"', "text with tabs: id, question, answers",
         Question("q1", 'Who "is" it?', ("Ada",))),
        ('q1\t"Who" is it?', "text with tabs: id, question", Question("q1", '"Who" is it?')),
        ("qid\tquery\tanswer\nq1\tWho?\tAda", "text with tabs and a header: qid, query, answer",
         Question("q1", "Who?", ("Ada",))),
        ("id\tquestion\tdifficulty\nq1\t[Who?]\teasy", "text with tabs and a header: id, question",
         Question("q1", "[Who?]")),
        ('id\tquestion\nq1\t"Who ""is"" it?"', "text with tabs and a header: id, question",
         Question("q1", 'Who "is" it?')),
        ('q1\t"Who is ""it""?"', "text with tabs: id, question", Question("q1", 'Who is "it"?')),
        ("query-id\tQuery\nq1\tWho?", "text with tabs and a header: query-id, query", Question("q1", "Who?")),
        ("number\tquestion\n7\tWho?", "text with tabs and a header: id, question", Question("7", "Who?")),
        ('id,question,answers\nq1,"Who, ""Ada""?","[""Ada""]"', "text with commas and a header: id, question, answers",
         Question("q1", 'Who, "Ada"?', ("Ada",))),
        ("id\tquestion\tanswers\tdoc_ids\nq1\tWho?\t[1912, 1913]\t[12, 57]",
         "text with tabs and a header: id, question, answers, doc_ids",
         Question("q1", "Who?", ("1912", "1913"), ("12", "57"))),
        ("id\tquestion\tanswers\nq1\tWho?\t[sic]", "text with tabs and a header: id, question, answers",
         Question("q1", "Who?", ("[sic]",))),
        (",id,question\n0,q1,Who?", "text with commas and a header: id, question", Question("q1", "Who?")),
        ('"ID";"Question"\n"q1";"Who?"', "text with semicolons and a header: id, question", Question("q1", "Who?")),
        ('{"id": 7, "question": "Who?", "possible_answers": "[\\"Ada\\", \\"Bo\\"]"}',
         "JSON lines: id, question, possible_answers", Question("7", "Who?", ("Ada", "Bo"))),
        ('{"question": "Where?", "answer": "[1, 2]"}', "JSON lines: question, answer",
         Question("1", "Where?", ("[1, 2]",))),
        ('{"Data": [{"QuestionId": "q1", "Question": "Who?", "Answer": {"Value": "Ada", "Aliases": ["Bo"]}}]}',
         "JSON lines: questionid, question, answer", Question("q1", "Who?", ("Ada", "Bo"))),
        ('{"question": "Who?", "answer": "Ada", "answer_aliases": ["Bo", "Ada"]}', "JSON lines: question, answer",
         Question("1", "Who?", ("Ada", "Bo"))),
        ("Who?, he asked", "a question per line: question", Question("1", "Who?, he asked")),
        ('Who?\t["Ada", null]', "text with tabs: question, answers", Question("1", "Who?", ("Ada",))),
        ('Who?\t["\\ud83d\\ude00", "a\\/b"]', "text with tabs: question, answers",
         Question("1", "Who?", ("😀", "a/b"))),
        ('["Who?"]', "JSON array: question", Question("1", "Who?")),
        (json.dumps({"data": [{"title": "Ada", "paragraphs": [{"qas": [SQUAD | {"answers": [{"text": "Ada"}]}]}]}]}),
         "JSON lines: id, question, answers", Question("q1", "Who?", ("Ada",))),
        (json.dumps([{"question": "Who?", "paragraphs": [], "data": [1]}]), "JSON array: question",
         Question("1", "Who?")),
        ("\n Who? \n", "a question per line: question", Question("2", " Who? ")),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "encode", [str.encode, lambda text: gzip.compress(text.encode()), lambda t: t.encode("utf-16")]
)
def test_forms_of_data_sets(tmp_path, content, form, expected, encode):
    (tmp_path / "file").write_bytes(encode(content))
    read = read_questions(tmp_path / "file", answered=False, documented=False)
    assert (read.asked, read.form) == ((expected,), form)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\tWho?\n2\tWho\tnot?", "line 2: the line has 3 fields, not 2 (id, question)"),
        ("1\tWho?\n2\t", "line 2, id '2': question must be a string"),
        ("1\tWho?\n1\tWhy?", "line 2: the id '1' is already used in line 1"),
        (
            '[{"question": "Who?"}, {"id": 5}]',
            "item 2, id '5': no field holds the question; found 'id'.",
        ),
        ('[{"question": "Who?"},\n{"id": 5]', "line 2: not JSON"),
        ("Who?\t['Ada' 'Bo']", "line 1: \"['Ada' 'Bo']\" is in brackets, but is no list"),
        ("id\tquestion\tanswers\n1\tWho?\t['Ada' 'Bo']", "line 2: \"['Ada' 'Bo']\" is in brackets, but is no list"),
        ("Who?\t['\\ud83d']", "is in brackets, but is no list"),
        ('Who?\t["Ada"]\nWhy?\t["Ada", x]', "line 2: '[\"Ada\", x]' is in brackets, but is no list"),
        ('Who?\t["Ada"]\n"Why?\t["Bo"]', "line 2: the quotation marks do not enclose whole cells"),
        ('Who?\t["Ada"]\nWhy?', "line 2: the line has 1 field, not 2 (question, answers)"),
        ("qid,utterance\n1,Who?", "line 1: the header ['qid', 'utterance'] names no column of questions"),
        ("qid\tutterance\n1\tWho?", "line 1: the header ['qid', 'utterance'] names no column of questions"),
        ("[1] Who?", "A file that begins with a brace or bracket is read as JSON"),
        ("{x} Who?", "line 1: not JSON"),
        ("\u00a0", "the file holds no questions"),
        ("q1 Q0 doc-1 1 12.5 bm25\n", "line 1: this is a line of a TREC run, not a question. Give the run as --run"),
        ("q1\tQ0\tdoc-1\t1\t12.5\tbm25\n", "line 1: this is a line of a TREC run"),
        ("<topics/>", "the file is XML. Write it as JSON lines or as text with tabs"),
        ("PAR1\x15\x04", "the file is a Parquet file"),
    ],
)
def test_what_is_wrong_in_other_forms_is_named(tmp_path, content, message):
    (tmp_path / "file").write_text(content, "utf-8")
    with pytest.raises(QuestionsError) as caught:
        read_questions(tmp_path / "file", answered=False, documented=False)
    assert str(caught.value).startswith(f"{tmp_path / 'file'}")
    assert message in str(caught.value)


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

    def test_lines_that_repeat_a_document_are_reported(self, file):
        run = file("q1 Q0 d 1 2 x", "q1 Q0 d 2 3 x", name="run.trec")
        (warning,) = read_questions(file(GOOD), run=run).warnings
        assert "lines that repeat a document of their query: 1 ('q1 d')" in warning

    def test_a_question_that_the_run_lacks_is_named(self, file):
        run = file("q2 Q0 d 1 1 x", name="run.trec")
        with pytest.raises(QuestionsError, match=r"run\.trec: the run has no documents for 1 of the 2 .*: 'q1'\."):
            read_questions(file(GOOD, GOOD | {"id": "q2"}), run=run)
