"""A file of answers is always a beginning of the whole result, and is continued with the same settings only."""

import os
import random
import resource
from dataclasses import asdict, replace
from pathlib import Path

import orjson
import pytest
import torch

from pisco_index.errors import AnsweringInterruptedError, InputError, QuestionsError
from pisco_index.reader.answering import AnsweredQuestion, Answering, AnswersFile, read_answers
from pisco_index.reader.answering.answers_file import part_path
from pisco_index.reader.answering.continued import read_settings, settings_path
from pisco_index.reader.generator import FakeGenerator
from pisco_index.reader.memory_source import FakeMemorySource
from pisco_index.reader.questions import Question

SETTINGS = {"max_new_tokens": 16, "dtype": "float32"}


def answered(question_id):
    return AnsweredQuestion(question_id, "Who?", "Ada\r\n\u2028", None, ("d",), (0.5,), (), 3, 48, 9, 0.25)


class BatchGenerator(FakeGenerator):
    """A generator whose answers name the batch, so that another batch gives another answer."""

    def answer_batch(self, questions, memories, **options):
        super().answer_batch(questions, memories, **options)
        return [f"{text} beside {questions}" for text in questions]


QUESTIONS = [Question(f"q{i}", f"n{i} " * (1 + i * 7 % 11), doc_ids=("a",)) for i in range(60)]


def answer_into(path: Path, should_stop=lambda: False):
    generator = BatchGenerator({each.text: "" for each in QUESTIONS}, token_budget=60)
    source = FakeMemorySource({"a": torch.ones(2, 4)})
    engine = Answering(source, generator, max_new_tokens=4, window=13)
    with AnswersFile(path, SETTINGS, [each.id for each in QUESTIONS]) as file:
        start, known = len(file.before), file.known
        done = []
        for each in engine.answer(
            QUESTIONS, start=start, known=known, keep=file.keep, progress=lambda n, _: done.append(n),
            should_stop=should_stop,
        ):  # fmt: skip
            file.append(each)
    return done


def without_seconds(path):
    return [replace(each, seconds=0) for each in read_answers(path)]


def interrupt(path, chance):
    """End a run after a number of batches by a signal, or as a kill does: with a torn line or lost blocks."""
    batches = chance.randrange(40)
    calls = iter(range(batches))
    try:
        answer_into(path, should_stop=lambda: next(calls, None) is None)
    except AnsweringInterruptedError:
        for torn in (path, part_path(path)):
            if torn.exists() and chance.random() < 0.5:
                content = torn.read_bytes()
                torn.write_bytes(content[: chance.randint(len(content) // 2, len(content))])


@pytest.mark.fault(
    "`answer` is stopped or killed at any moment.",
    "The same command continues; each answer is as without a stop, and written once.",
)
@pytest.mark.parametrize("seed", range(3))
def test_twenty_interruptions_give_the_same_file(tmp_path, seed):
    answer_into(tmp_path / "whole.jsonl")
    chance = random.Random(seed)
    for _ in range(20):
        interrupt(tmp_path / "stopped.jsonl", chance)
        answers = without_seconds(tmp_path / "stopped.jsonl")
        assert answers == without_seconds(tmp_path / "whole.jsonl")[: len(answers)]
    answer_into(tmp_path / "stopped.jsonl")
    assert without_seconds(tmp_path / "stopped.jsonl") == without_seconds(tmp_path / "whole.jsonl")
    assert len(without_seconds(tmp_path / "whole.jsonl")) == len(QUESTIONS)
    assert not part_path(tmp_path / "stopped.jsonl").exists()


def test_a_stop_loses_no_more_than_the_batch(tmp_path):
    """Every run ends after one batch, and the runs together need no more batches than one run."""
    path = tmp_path / "answers.jsonl"
    batches = len(answer_into(tmp_path / "whole.jsonl"))
    for _ in range(batches - 1):
        calls = iter(range(1))
        with pytest.raises(AnsweringInterruptedError):
            answer_into(path, should_stop=lambda calls=calls: next(calls, None) is None)
    assert answer_into(path) == [len(QUESTIONS)]
    assert without_seconds(path) == without_seconds(tmp_path / "whole.jsonl")


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path, SETTINGS, ["1", "2"]) as file:
        assert file.before == []
        file.append(answered("1"))
        assert read_answers(path) == [answered("1")]
    with AnswersFile(path, SETTINGS, ["1", "2"]) as file:
        assert file.before == [answered("1")]
        file.append(replace(answered("2"), answer=None, error="lost"))
    assert [each.answer for each in read_answers(path)] == ["Ada\r\n\u2028", None]


@pytest.mark.fault("The disk is full while `answer` writes.", "It ends with an error, and the next run continues.")
def test_a_full_disk(tmp_path):
    path = tmp_path / "answers.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    line = len(orjson.dumps(answered("1"))) + 1
    problem = pytest.raises(InputError, match=r"answers\.jsonl: the file cannot be written: File too large")
    try:
        with problem, AnswersFile(path, SETTINGS, ["1", "2"]) as file:
            file.append(answered("1"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (line + 10, limits[1]))
            file.append(answered("2"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size > line
    with AnswersFile(path, SETTINGS, ["1", "2"]) as file:
        assert file.before == [answered("1")]
        file.append(answered("2"))
    assert [each.id for each in read_answers(path)] == ["1", "2"]


@pytest.fixture
def begun(tmp_path):
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path, SETTINGS, ["1", "2"]) as file:
        file.append(answered("1"))
    return path


def test_other_settings_are_refused_with_both_values(begun):
    content = begun.read_bytes()
    with pytest.raises(
        InputError, match=r"other settings: max_new_tokens 16, not 8; run None, not 'x'\. .*--overwrite"
    ):
        AnswersFile(begun, SETTINGS | {"max_new_tokens": 8, "run": "x"}, ["1", "2"])
    assert begun.read_bytes() == content
    with AnswersFile(begun, SETTINGS | {"max_new_tokens": 8}, ["1", "2"], overwrite=True) as file:
        assert file.before == []
        # The old answers are dropped once there is a new one.
        assert begun.read_bytes() == content
        file.append(answered("1"))
    assert begun.read_bytes() == content
    with AnswersFile(begun, SETTINGS | {"max_new_tokens": 8}, ["1", "2"]) as file:
        assert file.before == [answered("1")]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["2", "1"], "line 1: the answer to question '1' stands where '2' belongs"),
        ([], "line 1: the answer to question '1' stands where no further question belongs"),
    ],
)
def test_answers_to_other_questions_are_refused(begun, ids, message):
    with pytest.raises(InputError, match=message):
        AnswersFile(begun, SETTINGS, ids)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("suffix", ["", ".part"])
@pytest.mark.parametrize("content", ['{"question": "Who?"}\n', "[]\n", "\0\0\n", "notes without an end of line"])
def test_another_file_is_left_as_it_is(tmp_path, content, suffix, overwrite):
    path = tmp_path / f"other{suffix}"
    path.write_text(content)
    with pytest.raises((InputError, QuestionsError), match=r"no answer that|something else than answers"):
        AnswersFile(tmp_path / "other", SETTINGS, ["1"], overwrite=overwrite)
    assert path.read_text() == content
    assert not settings_path(path).exists()
    if content.endswith("\n"):
        with pytest.raises(QuestionsError, match="line 1: this is no answer"):
            read_answers(path)


def test_the_types_of_an_answer_are_checked(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(orjson.dumps(asdict(answered("1")) | {"documents": "abc"}) + b"\n")
    with pytest.raises(QuestionsError, match=r"line 1: .* documents: Input should be a valid"):
        read_answers(path)


@pytest.mark.parametrize("damaged", [True, False])
def test_damaged_settings_are_no_obstacle_to_begin_anew(begun, damaged):
    content = begun.read_bytes()
    settings_path(begun).write_text("{" if damaged else "[]")
    with pytest.raises(InputError, match=r"settings\.json, .* is damaged\. .*--overwrite"):
        AnswersFile(begun, SETTINGS, ["1", "2"])
    assert begun.read_bytes() == content
    with AnswersFile(begun, SETTINGS, ["1", "2"], overwrite=True) as file:
        file.append(answered("1"))
    assert read_settings(begun) == SETTINGS


def test_the_place_of_the_store_may_change(tmp_path):
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path, SETTINGS | {"store": "here"}, ["1", "2"]) as file:
        file.append(answered("1"))
    with AnswersFile(path, SETTINGS | {"store": "there"}, ["1", "2"]) as file:
        assert file.before == [answered("1")]


def test_a_deleted_file_is_begun_anew(begun):
    with AnswersFile(begun, SETTINGS, ["1", "2", "3"]) as file:
        file.keep([answered("3")])
    assert part_path(begun).exists()
    begun.unlink()
    with AnswersFile(begun, SETTINGS | {"max_new_tokens": 8}, ["1", "2", "3"]) as file:
        assert (file.before, file.known) == ([], {})


def test_answers_without_their_settings_are_refused(begun):
    settings_path(begun).unlink()
    with pytest.raises(InputError, match=r"answers\.jsonl\.settings\.json, .* is missing"):
        AnswersFile(begun, SETTINGS, ["1", "2"])


def test_two_runs_do_not_write_one_file(begun):
    with (
        AnswersFile(begun, SETTINGS, ["1", "2"]),
        pytest.raises(InputError, match="another run is writing this file"),
    ):
        AnswersFile(begun, SETTINGS, ["1", "2"])


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        AnswersFile(tmp_path / "no" / "answers.jsonl", SETTINGS, ["1"])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        AnswersFile(tmp_path / "pipe", SETTINGS, ["1"])
