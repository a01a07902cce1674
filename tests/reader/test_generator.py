"""A generator answers questions from memory and says how long a prompt is."""

import pytest
import torch

from pisco_index import Decoder
from pisco_index.reader.generator import FakeGenerator, Generator
from pisco_index.reader.memory_source import FakeMemorySource

QUESTIONS = ["Which city is it?", "Who?"]


@pytest.fixture(params=["decoder", "fake"])
def generator(request, checkpoint):
    if request.param == "decoder":
        return Decoder.load(checkpoint, dtype=torch.float32)
    return FakeGenerator({QUESTIONS[0]: "Oslo, in the north", QUESTIONS[1]: "Ada Lovelace"})


@pytest.fixture
def memories(generator):
    connector = generator.connector.digest if isinstance(generator, Decoder) else ""
    source = FakeMemorySource({"a": torch.ones(3, 96), "b": torch.zeros(2, 96)}, connector=connector)
    return list(source.memories([(QUESTIONS[0], ["a", "b"]), (QUESTIONS[1], ["b"])]))


def test_questions_are_answered_in_order(generator: Generator, memories):
    answers = generator.answer_batch(QUESTIONS, memories, max_new_tokens=3)
    for question, memory, answer in zip(QUESTIONS, memories, answers, strict=True):
        assert generator.answer_batch([question], [memory], max_new_tokens=3) == [answer]
    assert generator.answer_batch([], []) == []


def test_a_prompt_has_a_token_for_each_memory_vector(generator: Generator):
    empty, short, long = (len(generator.prompt_ids(QUESTIONS[0], shown)) for shown in ([0], [3], [40]))
    assert (short - empty, long - empty) == (3, 40)


def test_each_question_needs_its_memory(generator: Generator, memories):
    with pytest.raises(ValueError, match=r"1$|shorter"):
        generator.answer_batch(QUESTIONS, memories[:1])
