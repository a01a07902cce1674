"""Answers of a batch are those of greedy decoding by its definition, for any prompts that share the batch."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pisco_index import Decoder
from pisco_index.errors import PromptError
from pisco_index.model.decoding import greedy, running
from pisco_index.model.decoding.penalty import RepetitionPenalty
from pisco_index.model.memory import Memory

OWN = {"qwen3", "qwen2", "llama", "llama3", "mistral"}
NEW_TOKENS = 7


@pytest.fixture(scope="module")
def decoder(made):
    return Decoder.load(made, dtype=torch.float32)


@pytest.fixture
def small_steps(monkeypatch):
    """Prompts are read in several parts, and the cache grows several times."""
    monkeypatch.setitem(running._READ_AT_ONCE, "cpu", 50)
    monkeypatch.setattr(running, "_GROWTH", 2)


def nothing(decoder):
    return Memory(torch.empty(0, 32), (), "hidden", decoder.memory_digest)


def by_definition(decoder, prompt, penalty):
    """Compute the whole sequence again for each token."""
    ids = []
    with torch.inference_mode():
        while len(ids) < NEW_TOKENS:
            logits = decoder.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[:, -1]
            ids.append(int(RepetitionPenalty(penalty)(torch.tensor([ids], dtype=torch.int64), logits).argmax()))
    return ids


def test_the_common_architectures_are_computed_here(decoder, architecture):
    assert running.RunningBatch.supports(decoder.model) == (architecture in OWN)


@pytest.mark.parametrize("architecture", [*sorted(OWN), "gemma2"], indirect=True)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.lists(st.integers(5, 250), min_size=1, max_size=40), min_size=1, max_size=8),
    budget=st.integers(1, 400),
    penalty=st.sampled_from([1.0, 1.3]),
    stop_after=st.integers(0, NEW_TOKENS - 1),
)
def test_answers_do_not_depend_on_the_batch(decoder, small_steps, prompts, budget, penalty, stop_after):
    whole = [by_definition(decoder, prompt, penalty) for prompt in prompts]
    ends = tuple({ids[stop_after] for ids in whole[::2]})
    expected = [greedy._until_end(ids, frozenset(ends)) for ids in whole]
    decoder.token_budget, before = budget, decoder.generation
    decoder.generation = type(before)(ends)
    found = decoder.generate(
        prompts, [nothing(decoder)] * len(prompts), max_new_tokens=NEW_TOKENS, repetition_penalty=penalty
    )
    decoder.generation = before
    assert found == expected


class TestOneModel:
    @pytest.fixture(scope="class")
    @staticmethod
    def decoder(tiny):
        return Decoder.load(tiny, dtype=torch.float32)

    def test_batches_keep_to_the_budget_and_hold_prompts_of_similar_length(self, decoder, monkeypatch):
        batches = []
        monkeypatch.setattr(decoder, "token_budget", 100)
        monkeypatch.setattr(
            "pisco_index.model.decoder.decode",
            lambda _model, prompts, *_, **__: batches.append([len(each) for each in prompts]) or [[1]] * len(prompts),
        )
        lengths = [30, 5, 99, 5, 31, 6]
        decoder.generate([[7] * length for length in lengths], [nothing(decoder)] * 6, max_new_tokens=2)
        assert batches == [[99], [31, 30, 6], [5, 5]]

    def test_finished_rows_are_dropped(self, decoder, monkeypatch):
        rows = []
        append = running.RunningBatch.append
        monkeypatch.setattr(
            running.RunningBatch, "append", lambda self, ids: rows.append(len(ids)) or append(self, ids)
        )
        prompts = [[7, 9, n] for n in range(20, 36)]
        memories = [nothing(decoder)] * len(prompts)
        monkeypatch.setattr(decoder, "generation", type(decoder.generation)(()))
        whole = decoder.generate(prompts, memories, max_new_tokens=6)
        assert rows == [16] * 5
        rows.clear()
        ends = tuple({ids[0] for ids in whole[:12]} - {token for ids in whole[12:] for token in ids})
        monkeypatch.setattr(decoder, "generation", type(decoder.generation)(ends))
        found = decoder.generate(prompts, memories, max_new_tokens=6)
        assert found == [greedy._until_end(ids, frozenset(ends)) for ids in whole]
        assert rows[0] < 16

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_memory_that_is_not_finite_is_an_error_that_names_the_document(self, decoder, value):
        values = torch.zeros(3, decoder.connector.in_dim)
        values[2, 5] = value
        memory = Memory(values, (1, 2), "hidden", decoder.memory_digest, ("good", "bad"))
        good = memory.select([0])
        with pytest.raises(PromptError, match=r"The memory of 'bad' is not finite.*verify"):
            decoder.answer_batch(["Who?", "Who?"], [good, memory])

    def test_a_prompt_that_overflows_does_not_change_its_neighbours(self, decoder):
        usual = Memory(torch.randn(4, decoder.connector.out_dim), (4,), "embedding", decoder.memory_digest)
        huge = Memory(torch.full((2, decoder.connector.out_dim), 3e38), (2,), "embedding", decoder.memory_digest)
        prompts = [decoder.prompt_ids(q, m.lengths) for q, m in (("Who is it?", usual), ("?", huge))]
        alone = decoder.generate(prompts[:1], [usual], max_new_tokens=6)
        assert decoder.generate(prompts, [usual, huge], max_new_tokens=6)[:1] == alone
