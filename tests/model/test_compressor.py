from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from pisco_index import Compressor
from pisco_index.model.forward import native
from pisco_index.model.forward.packing import Passages
from pisco_index.model.passages import PassageTokenizer

TEXTS = ["", "a", "hello world", "<MEM>", "é" * 9, "x y z " * 21, "the end"]
WHOLE_LAST_LAYER = pytest.mark.parametrize("whole_last_layer", [False, True], ids=["memory-tokens", "whole-last-layer"])
NATIVE = pytest.mark.parametrize("architecture", ["qwen3", "qwen2", "llama", "llama3", "mistral"], indirect=True)


def passages_of(checkpoint, texts=TEXTS):
    tokenizer = PassageTokenizer(checkpoint.compressor_tokenizer, rate=checkpoint.rate, max_length=40)
    return [passage for document in tokenizer.tokenize(texts) for passage in document.passages]


def by_definition(checkpoint, passages, *, rounded=False):
    """Memory by its definition: the whole causal LM, one passage at a time, with eager attention and a mask."""
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.path / "compressor",
        dtype=torch.bfloat16 if rounded else torch.float32,
        attn_implementation="eager",
        local_files_only=True,
    )
    model.eval().float()
    parts = []
    for passage in passages:
        ids = torch.tensor([passage])
        with torch.inference_mode():
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        parts.append(output.hidden_states[-1][0, ids[0] == checkpoint.memory_token_id])
    return torch.cat(parts)


def assert_close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


class TestAnyArchitecture:
    @WHOLE_LAST_LAYER
    def test_memory_is_the_last_hidden_states(self, made, whole_last_layer):
        passages = passages_of(made)
        compressor = Compressor.load(made, dtype=torch.float32, token_budget=90, whole_last_layer=whole_last_layer)
        memory = compressor.compress(passages)
        expected = by_definition(made, passages)
        assert memory.lengths == tuple(passage.count(made.memory_token_id) for passage in passages)
        assert_close(memory.values, expected)
        assert_close(compressor.compress(passages, stage="embedding").values, made.connector(expected))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["in-bfloat16", "in-float32"])
    def test_so_it_is_with_weights_in_bfloat16(self, made, dtype, monkeypatch):
        monkeypatch.setattr(native, "compute_dtype", lambda *_: dtype)
        passages = passages_of(made)
        memory = Compressor.load(made, dtype=torch.bfloat16).compress(passages)
        assert memory.values.dtype == torch.bfloat16
        # Compared with exact values, since two computations in bfloat16 are each this far from them.
        exact = by_definition(made, passages)
        assert torch.cosine_similarity(memory.values.float(), exact).min() >= 0.999


@NATIVE
def test_a_cpu_may_compute_in_float32_with_weights_in_bfloat16(made, monkeypatch):
    passages = passages_of(made)
    exact = by_definition(made, passages, rounded=True)
    errors = {}
    for dtype in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(native, "compute_dtype", lambda *_, dtype=dtype: dtype)
        compressor = Compressor.load(made, dtype=torch.bfloat16)
        assert {weight.dtype for weight in compressor._forward.layers.parameters()} == {torch.bfloat16}
        assert compressor.compress(passages, stage="embedding").values.dtype == torch.bfloat16
        errors[dtype] = (compressor.compress(passages).values.float() - exact).norm() / exact.norm()
    # In float32 only the last rounding remains, to 8 bits.
    assert errors[torch.float32] < 2**-8 < errors[torch.bfloat16]


@pytest.fixture(scope="module")
def compressor(fake):
    return Compressor.load(fake, dtype=torch.float32)


@pytest.fixture(scope="module")
def memory_token(fake):
    return fake.memory_token_ids[0]


@pytest.fixture(scope="module")
def passages(memory_token):
    return [[*text.encode("ascii", "replace")] + [memory_token] * (1 + len(text) // 16) for text in TEXTS]


class TestPassages:
    @settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(token_budget=st.integers(1, 400), seed=st.integers(0, 999))
    def test_memory_does_not_depend_on_order_or_budget(self, compressor, passages, token_budget, seed):
        expected = compressor.compress(passages)
        order = list(range(len(passages)))
        Random(seed).shuffle(order)
        compressor.token_budget, before = token_budget, compressor.token_budget
        try:
            found = compressor.compress([passages[i] for i in order])
        finally:
            compressor.token_budget = before
        reordered = expected.select(order)
        assert found.lengths == reordered.lengths
        assert_close(found.values, reordered.values)

    @WHOLE_LAST_LAYER
    def test_memory_tokens_may_be_anywhere_or_nowhere(self, tiny, whole_last_layer):
        compressor = Compressor.load(tiny, dtype=torch.float32, whole_last_layer=whole_last_layer)
        memory_token = tiny.memory_token_id
        passages = [
            [memory_token, 7, 8, memory_token, memory_token, 9],
            [1, 2, 3, 4, 5, 6, 7, 8],
            [memory_token],
            [],
            [3, memory_token],
        ]
        memory = compressor.compress(passages)
        assert memory.lengths == (3, 0, 1, 0, 1)
        assert_close(memory.values, by_definition(tiny, [passage for passage in passages if passage]))
        assert compressor.compress([[1, 2, 3]]).lengths == (0,)

    @pytest.mark.parametrize(("stage", "dim"), [("hidden", 16), ("embedding", 24)])
    def test_no_passages_have_empty_memory(self, compressor, stage, dim):
        memory = compressor.compress([], stage=stage)
        assert memory.lengths == ()
        assert memory.values.shape == (0, dim)

    def test_they_may_be_one_array(self, compressor, passages):
        expected, found = compressor.compress(passages), compressor.compress(Passages.of(passages))
        assert found.lengths == expected.lengths
        assert torch.equal(found.values, expected.values)

    def test_several_groups_may_be_launched_before_the_first_is_finished(self, compressor, passages):
        parts = passages[:3], passages[3:], []
        expected = [compressor.compress(part) for part in parts]
        launched = [compressor.launch(part) for part in parts]
        for pending, memory in reversed(list(zip(launched, expected, strict=True))):
            found = pending.finish()
            assert found.lengths == memory.lengths
            assert torch.equal(found.values, memory.values)

    def test_each_batch_is_reported(self, fake, passages):
        reported = []
        compressor = Compressor.load(fake, dtype=torch.float32, token_budget=90)
        compressor.compress(passages, on_batch=lambda count, tokens: reported.append((count, tokens)))
        assert len(reported) > 1
        assert tuple(map(sum, zip(*reported, strict=True))) == (len(passages), sum(map(len, passages)))

    @pytest.mark.parametrize("pads", [True, False])
    def test_a_batch_has_no_more_passages_than_a_kernel_takes(self, compressor, memory_token, monkeypatch, pads):
        passages = [[memory_token]] * 10
        expected = compressor.compress(passages)
        monkeypatch.setattr("pisco_index.model.compressor._MAX_PASSAGES", 4)
        monkeypatch.setattr(compressor, "_pads", pads)
        reported = []
        found = compressor.compress(passages, on_batch=lambda count, tokens: reported.append((count, tokens)))
        assert reported == [(4, 4), (4, 4), (2, 2)]
        assert_close(found.values, expected.values)


def test_memory_names_the_connector_and_leaves_it_as_it_is(fake):
    before = fake.connector.digest
    assert Compressor.load(fake, dtype=torch.bfloat16).compress([]).connector == before
    assert fake.connector.weight.dtype == torch.float32
    assert fake.connector.digest == before


@pytest.fixture
def small_device(fake, monkeypatch):
    """A function that makes a compressor whose device only has memory for batches of ``room`` tokens."""

    def make(room, token_budget=512):
        compressor = Compressor.load(fake, dtype=torch.float32, token_budget=token_budget)
        run, asked = compressor._run, []

        def run_if_it_fits(batch, stage):
            asked.append(len(batch.ids))
            assert len(asked) < 200
            if asked[-1] > room:
                raise torch.OutOfMemoryError("out of memory")
            return run(batch, stage)

        monkeypatch.setattr(compressor, "_run", run_if_it_fits)
        return compressor, asked

    return make


@pytest.mark.parametrize("architecture", ["qwen3"], indirect=True)
def test_large_batches_on_a_cpu_have_few_sizes(made, passages, monkeypatch):
    """oneDNN compiles code for each number of rows, and keeps it."""
    compressor = Compressor.load(made, dtype=torch.float32, token_budget=1500)
    run, rows = compressor._run, []

    def counted(batch, stage):
        rows.append(len(batch.ids))
        return run(batch, stage)

    monkeypatch.setattr(compressor, "_run", counted)
    many = [passage for passage in passages if len(passage) > 30] * 30
    small = Compressor.load(made, dtype=torch.float32, token_budget=512)
    assert_close(compressor.compress(many).values, small.compress(many).values)
    *full, _ = rows
    assert full
    assert all(each % 64 == 0 for each in full)


class TestOutOfMemory:
    @pytest.mark.fault(
        "A batch does not fit the device's memory.",
        "It is halved; the whole budget is tried again later.",
    )
    def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(self, compressor, passages, small_device, caplog):
        room = max(map(len, passages))
        small, asked = small_device(room)
        assert_close(small.compress(passages).values, compressor.compress(passages).values)
        assert asked[1] < asked[0]
        assert "ran out of memory with a batch of" in caplog.text
        # The next call begins with the smaller budget.
        asked.clear()
        small.compress(passages)
        assert max(asked) <= room
        # After some calls, the whole budget is tried again.
        asked.clear()
        for _ in range(20):
            small.compress(passages)
        assert max(asked) > room
        assert small.token_budget == 512

    def test_a_single_passage_that_was_filled_up_is_tried_without_filling(
        self, compressor, passages, small_device, monkeypatch
    ):
        one = passages[2:3]
        small, asked = small_device(len(one[0]))
        monkeypatch.setattr(small, "_compiled_sizes", (512, 128))
        assert_close(small.compress(one).values, compressor.compress(one).values)
        assert asked == [128, len(one[0])]

    def test_a_batch_that_was_filled_up_counts_with_its_filling(self, compressor, passages, small_device, monkeypatch):
        many = [passage for passage in passages if len(passage) < 64] * 8
        small, asked = small_device(room=100)
        monkeypatch.setattr(small, "_compiled_sizes", (256, 128, 64))
        assert_close(small.compress(many).values, compressor.compress(many).values)
        assert asked[:3] == [256, 128, 64]

    def test_a_passage_that_does_not_fit_alone_is_an_error(self, passages, small_device):
        small, asked = small_device(room=30)
        with pytest.raises(torch.OutOfMemoryError):
            small.compress(passages)
        assert asked[-1] == max(map(len, passages))

    def test_without_a_compiler_the_layers_run_as_they_are(
        self, compressor, passages, small_device, monkeypatch, caplog
    ):
        def fails(*_, **__):
            raise FileNotFoundError("g++: no such file")

        monkeypatch.setattr(torch, "compile", lambda function, **_: fails)
        uncompiled, _ = small_device(room=512)
        uncompiled._compile(uncompiled._forward)
        assert caplog.text.count("cannot be compiled (g++: no such file)") == 1
        assert_close(uncompiled.compress(passages).values, compressor.compress(passages).values)

    @pytest.mark.parametrize("words", ["CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory"])
    def test_other_words_for_a_full_device(self, compressor, passages, monkeypatch, words):
        run, asked = compressor._run, []

        def fits_the_second_time(batch, stage):
            asked.append(len(batch.ids))
            if len(asked) == 1:
                raise RuntimeError(words)
            return run(batch, stage)

        expected = compressor.compress(passages).values
        monkeypatch.setattr(compressor, "_run", fits_the_second_time)
        assert_close(compressor.compress(passages).values, expected)
        assert asked[1] < asked[0]

    def test_compiled_sizes_that_do_not_fit_are_halved(self, small_device, monkeypatch, caplog):
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
        small, asked = small_device(room=100)
        small._compile(small._forward)
        assert small.token_budget == 64
        assert set(small._forward.compiled_rows) == {64, 16, 4}
        assert asked == [512, 256, 128, 64, 16, 4]
        assert "cannot be compiled" not in caplog.text
        nowhere, _ = small_device(room=0)
        with pytest.raises(torch.OutOfMemoryError):
            nowhere._compile(nowhere._forward)


def test_a_passage_longer_than_the_budget_is_a_batch_of_its_own(fake, compressor, passages):
    small = Compressor.load(fake, dtype=torch.float32, token_budget=1)
    assert_close(small.compress(passages).values, compressor.compress(passages).values)
