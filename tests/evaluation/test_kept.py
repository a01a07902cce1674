"""Batches of an evaluation survive a stop, and none is taken from a file that is torn or belongs to another one."""

import pytest

from pisco_index.errors import InputError
from pisco_index.evaluation.kept import Answers, KeptBatches
from pisco_index.evaluation.results import EvaluatedAnswer

SETTINGS = {"questions": "q.jsonl", "codecs": ["int8"]}


def batch(question: str) -> list[Answers]:
    scores = {"match": 1.0, "exact_match": 1.0, "f1": 1.0, "nll": 0.1, "kl": 0.0, "answer_tokens": 2}
    answer = EvaluatedAnswer(question, "stored", "hidden", "int8", "Who?", "Ada", ("Ada",), **scores)
    return [Answers([answer], {"d": 10})]


@pytest.fixture
def path(tmp_path):
    kept = KeptBatches(tmp_path / "kept", SETTINGS)
    kept.keep(0, batch("q1"))
    kept.keep(1, batch("q2"))
    return tmp_path / "kept"


def test_finished_batches_are_read_again(path):
    kept = KeptBatches(path, SETTINGS)
    assert (kept.get(0), kept.get(1), kept.get(2)) == (batch("q1"), batch("q2"), None)


@pytest.mark.parametrize("line", ['{"first": 1, "ba', '{"batch": []}\n', '{"first": 1, "batch": [{}]}\n', "[]\n"])
def test_a_line_without_a_batch_is_written_anew(path, line):
    whole = path.read_bytes()
    first = b"".join(whole.splitlines(keepends=True)[:2])
    path.write_bytes(first + line.encode())
    kept = KeptBatches(path, SETTINGS)
    assert (kept.get(0), kept.get(1)) == (batch("q1"), None)
    kept.keep(1, batch("q2"))
    assert path.read_bytes() == whole


def test_other_settings_are_refused(path):
    with pytest.raises(InputError, match=r"codecs \['int8'\], not \['int4'\]"):
        KeptBatches(path, SETTINGS | {"codecs": ["int4"]})


@pytest.mark.parametrize("content", ["some text\n", '{"id": 1}\n', "\x00"])
def test_another_file_is_not_overwritten(tmp_path, content):
    (tmp_path / "kept").write_text(content)
    with pytest.raises(InputError, match="something else than an evaluation"):
        KeptBatches(tmp_path / "kept", SETTINGS)
    assert (tmp_path / "kept").read_text() == content
