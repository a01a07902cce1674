"""Training data: every format that is read, every line that is refused, and records in any order and process."""

import json
import pickle

import pytest

from pisco_index.configs import CorpusConfig
from pisco_index.errors import CorpusError, TrainingError
from pisco_index.training.data import BATCH_RECORDS, Records, read_conversations, read_texts, write_records

DOCUMENTS = [{"title": "T", "text": "one"}, {"text": "two"}]
GOOD = {"documents": DOCUMENTS, "question": "Why?", "answer": "So."}
TURNS = [{"question": "Why?", "answer": "So."}, {"question": "Who?", "answer": "Ada"}]


def without(field):
    return {name: value for name, value in GOOD.items() if name != field}


def test_a_question_is_read_as_one_turn(lines):
    path = lines(
        "\ufeff" + json.dumps(GOOD | {"id": 3}), "", json.dumps({"documents": DOCUMENTS, "turns": TURNS}) + "\r"
    )
    read = write_records(path.with_suffix(".arrow"), read_conversations([str(path)]))
    single, several = read[0], read[1]
    assert (single.pop("origin"), several.pop("origin")) == (f"{path}:1", f"{path}:3")
    assert single == {"documents": DOCUMENTS, "turns": TURNS[:1]}
    assert several == {"documents": DOCUMENTS, "turns": TURNS}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "not JSON"),
        (b"\xff\xfe", "not UTF-8: invalid start byte"),
        ("[]", "the record: input should be"),
        (without("documents"), "documents: field required"),
        (GOOD | {"documents": []}, "documents: must not be empty"),
        (GOOD | {"documents": [{"title": "T"}]}, r"documents\.0\.text: field required"),
        (GOOD | {"documents": [*DOCUMENTS, {"text": " "}]}, r"documents\.2\.text: must not be empty"),
        (GOOD | {"documents": [{"text": 3}]}, r"documents\.0\.text: input should be a valid string"),
        (GOOD | {"documents": "one"}, "documents: input should be a valid tuple"),
        (without("question"), r"turns\.0\.question: field required"),
        (GOOD | {"question": ""}, r"turns\.0\.question: must not be empty"),
        (without("answer"), r"turns\.0\.answer: field required"),
        (GOOD | {"answer": "\n"}, r"turns\.0\.answer: must not be empty"),
        ({"documents": DOCUMENTS}, "turns: field required"),
        ({"documents": DOCUMENTS, "turns": []}, "turns: must not be empty"),
        ({"documents": DOCUMENTS, "turns": [TURNS[0], {"question": "Who?"}]}, r"turns\.1\.answer: field required"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_with_its_file_and_number(lines, record, message):
    line = record if isinstance(record, str | bytes) else json.dumps(record)
    path = lines(json.dumps(GOOD), line)
    with pytest.raises(TrainingError, match=rf"^{path}:2: {message}"):
        list(read_conversations([str(path)]))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"nothing: cannot be read: No such file"):
        list(read_conversations([str(tmp_path / "nothing")]))
    with pytest.raises(CorpusError, match="nothing"):
        list(read_texts([str(tmp_path / "nothing")], CorpusConfig()))


@pytest.mark.parametrize(
    ("name", "content", "config"),
    [
        ("c.jsonl", ['{"_id": "a", "title": "T", "text": "one"}', '{"_id": "b", "text": "two"}'], {}),
        ("c.tsv", ["a\tT\tone", "b\t\ttwo"], {"format": "tsv", "columns": ["id", "title", "text"]}),
    ],
)
def test_the_documents_of_a_corpus_are_records(lines, name, content, config):
    path = lines(*content, name=name)
    (where, first), (_, second) = read_texts([str(path)], CorpusConfig(**config))
    assert where == f"{name}, a"
    assert first == {"title": "T", "text": "one"}
    assert (second["title"] or None, second["text"]) == (None, "two")


def test_empty_documents_are_skipped(lines):
    path = lines('{"id": "a", "text": "one"}', '{"id": "b", "text": " "}', '{"id": "c", "text": "three"}')
    assert [record["text"] for _, record in read_texts([str(path)], CorpusConfig())] == ["one", "three"]


def test_records_are_read_in_any_order_and_by_other_processes(tmp_path):
    count = 2 * BATCH_RECORDS + 7
    written = write_records(tmp_path / "r.arrow", ((f"o{i}", {"text": f"é{i}"}) for i in range(count)))
    assert len(written) == count
    for records in (written, Records(tmp_path / "r.arrow"), pickle.loads(pickle.dumps(written))):
        for i in (count - 1, 0, BATCH_RECORDS, BATCH_RECORDS - 1):
            assert records[i] == {"text": f"é{i}", "origin": f"o{i}"}
    assert len(pickle.dumps(written)) < 1000


def test_no_records_are_an_error(tmp_path):
    with pytest.raises(TrainingError, match="holds no records"):
        write_records(tmp_path / "r.arrow", iter(()))
    assert not (tmp_path / "r.arrow").exists()


def test_a_file_appears_when_it_is_complete(tmp_path):
    def broken():
        yield "o", {"text": "one"}
        raise TrainingError("broken")

    with pytest.raises(TrainingError, match="broken"):
        write_records(tmp_path / "r.arrow", broken())
    assert not (tmp_path / "r.arrow").exists()
