"""Answers that come and go are those that greedy decoding gives each of them alone."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pisco_index import Decoder
from pisco_index.errors import PromptError
from pisco_index.model.decoding import running
from pisco_index.model.decoding.live import generate_live
from pisco_index.model.memory import Memory


@pytest.fixture(scope="module")
def decoder(made):
    return Decoder.load(made, dtype=torch.float32)


@pytest.fixture
def small_steps(monkeypatch):
    """The cache grows and shrinks often."""
    monkeypatch.setattr(running, "_GROWTH", 2)


class Answer:
    def __init__(self, prompt, memory, limit, given_up_after=None):
        self.prompt, self.memory, self.limit = prompt, memory, limit
        self.given_up_after = given_up_after
        self.tokens, self.reason, self.error = [], None, None

    def is_wanted(self):
        return self.given_up_after is None or len(self.tokens) < self.given_up_after

    def add(self, tokens):
        assert self.reason is None
        self.tokens += tokens

    def end(self, reason):
        self.reason = reason

    def fail(self, error):
        self.error = error


def coming(answers, steps):
    """A function that gives each answer at its step."""
    waiting = sorted(zip(steps, answers, strict=True), key=lambda each: each[0])
    step = 0

    def take(in_progress, patience):
        nonlocal step
        assert (patience is None) == (not in_progress)
        step += 1
        if not waiting and not in_progress:
            return None
        # Nothing is in progress: the next answer is waited for.
        step = step if in_progress else max(step, waiting[0][0])
        due = [answer for at, answer in waiting if at <= step]
        del waiting[: len(due)]
        return due

    return take


def nothing(decoder):
    return Memory(torch.empty(0, 32), (), "hidden", decoder.memory_digest)


@pytest.mark.parametrize("architecture", ["qwen3", "mistral", "gpt2"], indirect=True)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    questions=st.lists(
        st.tuples(
            st.lists(st.integers(5, 250), min_size=1, max_size=30),
            st.integers(1, 9),
            st.integers(0, 12),
            st.sampled_from([None, None, None, 0, 2]),
        ),
        min_size=1,
        max_size=8,
    ),
    penalty=st.sampled_from([1.0, 1.3]),
)
def test_answers_do_not_depend_on_what_comes_and_goes(decoder, small_steps, questions, penalty):
    memory = nothing(decoder)
    before = decoder.generation
    whole = [
        decoder.generate([p], [memory], max_new_tokens=n, repetition_penalty=penalty)[0] for p, n, _, _ in questions
    ]
    ends = tuple({ids[len(ids) // 2] for ids in whole[::3]})
    decoder.generation = type(before)(ends, penalty)
    try:
        expected = [decoder.generate([p], [memory], max_new_tokens=n)[0] for p, n, _, _ in questions]
        answers = [Answer(p, memory, n, given_up) for p, n, _, given_up in questions]
        generate_live(decoder, coming(answers, [step for _, _, step, _ in questions]))
    finally:
        decoder.generation = before
    for answer, ids in zip(answers, expected, strict=True):
        if answer.given_up_after is None:
            assert answer.tokens == ids
            assert answer.reason == ("stop" if ids[-1] in ends else "length")
        else:
            assert answer.tokens == ids[: len(answer.tokens)]


class TestOneModel:
    @pytest.fixture(scope="class")
    @staticmethod
    def decoder(tiny):
        return Decoder.load(tiny, dtype=torch.float32)

    def test_what_cannot_be_answered_fails_alone(self, decoder, monkeypatch):
        memory = nothing(decoder)
        slots = decoder.tokenizer.convert_tokens_to_ids("<MEM>")
        width = decoder.model.config.hidden_size
        bad = Memory(torch.full((1, width), torch.nan), (1,), "embedding", decoder.memory_digest)
        answers = [
            Answer([7, 8, 9], memory, 4),
            Answer([7, slots], bad, 4),
            Answer([7, 7, 7], memory, 4),
            Answer([9, 8], memory, 4),
        ]
        embed_batch = decoder.embed_batch

        def broken(prompts, memories):
            """As if a layer computed no numbers for one prompt."""
            found = embed_batch(prompts, memories)
            return [each * torch.nan if p == [7, 7, 7] else each for p, each in zip(prompts, found, strict=True)]

        monkeypatch.setattr(decoder, "embed_batch", broken)
        generate_live(decoder, coming(answers, [0, 0, 0, 0]))
        assert "not finite" in str(answers[1].error)
        assert isinstance(answers[2].error, PromptError)
        good = [answers[0], answers[3]]
        assert [each.tokens for each in good] == decoder.generate(
            [each.prompt for each in good], [memory] * 2, max_new_tokens=4
        )
        with pytest.raises(PromptError, match="not numbers"):
            decoder.generate([answers[2].prompt], [memory], max_new_tokens=4)
