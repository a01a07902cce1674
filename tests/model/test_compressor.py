import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, Qwen2MoeConfig, Qwen3Config

from pisco_index import Checkpoint, Compressor, Connector, PassageTokenizer
from pisco_index.model.forward import packed
from pisco_index.model.forward.budget import KnownBudgets
from pisco_index.model.forward.other_models import PackedModel, PaddedModel
from pisco_index.model.forward.packing import Passages

TEXTS = ["", "a", "hello world", "<MEM>", "é" * 9, "x y z " * 21, "the end"]


def passages_of(checkpoint, texts=TEXTS):
    tokenizer = PassageTokenizer(checkpoint.compressor_tokenizer, rate=checkpoint.rate, max_length=40)
    return [passage for document in tokenizer.tokenize(texts) for passage in document.passages]


def plainly(checkpoint, passages, *, rounded=False):
    """What memory is by definition: the whole causal LM, one passage at a time, eager attention and a mask."""
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.path / "compressor",
        dtype=torch.bfloat16 if rounded else torch.float32,
        attn_implementation="eager",
        local_files_only=True,
    )
    model.eval().float()
    memory_token = checkpoint.compressor_tokenizer.convert_tokens_to_ids("<MEM>")
    parts = []
    for passage in passages:
        ids = torch.tensor([passage])
        with torch.inference_mode():
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        parts.append(output.hidden_states[-1][0, ids[0] == memory_token])
    return torch.cat(parts)


KNOWN = pytest.mark.parametrize("architecture", ["qwen3", "qwen2", "llama", "llama3", "mistral"], indirect=True)


@pytest.mark.parametrize("whole_last_layer", [False, True], ids=["memory-tokens-only", "whole-last-layer"])
def test_any_architecture_gives_the_last_hidden_states(made, whole_last_layer):
    passages = passages_of(made)
    compressor = Compressor.load(made, dtype=torch.float32, token_budget=90, whole_last_layer=whole_last_layer)
    memory = compressor.compress(passages)
    expected = plainly(made, passages)
    assert memory.lengths == tuple(
        passage.count(made.compressor_tokenizer.convert_tokens_to_ids("<MEM>")) for passage in passages
    )
    torch.testing.assert_close(memory.values, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        compressor.compress(passages, stage="embedding").values, made.connector(expected), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("arithmetic", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_any_architecture_does_so_in_bfloat16(made, arithmetic, monkeypatch):
    monkeypatch.setattr(packed, "arithmetic_for", lambda *_: arithmetic)
    passages = passages_of(made)
    memory = Compressor.load(made, dtype=torch.bfloat16).compress(passages)
    assert memory.values.dtype == torch.bfloat16
    # The exact values are the judge: two computations in bfloat16 are each this far from them.
    exact = plainly(made, passages)
    assert torch.cosine_similarity(memory.values.float(), exact).min() >= 0.999


@KNOWN
def test_a_cpu_may_compute_in_float32_with_weights_in_bfloat16(made, monkeypatch):
    passages = passages_of(made)
    exact = plainly(made, passages, rounded=True)
    errors = {}
    for arithmetic in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(packed, "arithmetic_for", lambda *_, arithmetic=arithmetic: arithmetic)
        compressor = Compressor.load(made, dtype=torch.bfloat16)
        assert {weight.dtype for weight in compressor._forward.layers.parameters()} == {torch.bfloat16}
        assert compressor.compress(passages, stage="embedding").values.dtype == torch.bfloat16
        errors[arithmetic] = (compressor.compress(passages).values.float() - exact).norm() / exact.norm()
    # The last rounding, to 8 bits, is all that is left.
    assert errors[torch.float32] < 2**-8 < errors[torch.bfloat16]


@KNOWN
def test_known_architectures_compute_their_last_layer_at_memory_tokens_only(made):
    model = made.load_compressor(dtype=torch.float32)
    memory_token, read = 5, []
    model.layers[-1].post_attention_layernorm.register_forward_hook(lambda _, inputs, __: read.append(len(inputs[0])))
    compressor = Compressor(model, made.connector, memory_token_id=memory_token)
    compressor.compress([[1, 2, 3, memory_token], [1, 4, memory_token, memory_token]])
    assert read == [3]
    # A query behind which another token stands is not among a passage's last.
    compressor.compress([[1, 2, 3, memory_token], [1, memory_token, memory_token, 4]])
    assert read == [3, 8]


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return Checkpoint(tiny_folder)


@pytest.fixture(scope="module")
def compressor(tiny):
    return Compressor.load(tiny, dtype=torch.float32)


@pytest.fixture(scope="module")
def memory_token(tiny):
    return tiny.compressor_tokenizer.convert_tokens_to_ids("<MEM>")


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(token_budget=st.integers(1, 400), seed=st.integers(0, 999))
def test_memory_does_not_depend_on_order_or_budget(tiny, compressor, token_budget, seed):
    passages = passages_of(tiny)
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
    torch.testing.assert_close(found.values, reordered.values, rtol=0, atol=1e-5)


def test_a_passage_longer_than_the_budget_is_a_batch_of_its_own(tiny, compressor):
    passages = passages_of(tiny)
    small = Compressor.load(tiny, dtype=torch.float32, token_budget=1)
    torch.testing.assert_close(small.compress(passages).values, compressor.compress(passages).values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", ["hidden", "embedding"])
def test_no_passages_are_empty_memory(tiny, compressor, stage):
    memory = compressor.compress([], stage=stage)
    assert memory.lengths == ()
    assert memory.values.shape == (0, 64 if stage == "hidden" else 96)


@pytest.mark.parametrize("whole_last_layer", [False, True], ids=["memory-tokens-only", "whole-last-layer"])
def test_memory_tokens_stand_anywhere_or_nowhere(tiny, memory_token, whole_last_layer):
    compressor = Compressor.load(tiny, dtype=torch.float32, whole_last_layer=whole_last_layer)
    passages = [
        [memory_token, 7, 8, memory_token, memory_token, 9],
        [1, 2, 3, 4, 5, 6, 7, 8],
        [memory_token],
        [],
        [3, memory_token],
    ]
    memory = compressor.compress(passages)
    assert memory.lengths == (3, 0, 1, 0, 1)
    expected = plainly(tiny, [passage for passage in passages if passage])
    torch.testing.assert_close(memory.values, expected, rtol=0, atol=1e-5)
    assert compressor.compress([[1, 2, 3]]).lengths == (0,)


def test_memory_names_its_connector(tiny, compressor):
    assert compressor.compress([]).connector == tiny.connector.digest


def test_the_checkpoints_connector_keeps_its_dtype(tiny):
    before = tiny.connector.digest
    Compressor.load(tiny, dtype=torch.bfloat16)
    assert tiny.connector.weight.dtype == torch.float32
    assert tiny.connector.digest == before


@pytest.fixture
def small_device(tiny, monkeypatch):
    """Make a compressor on a device whose memory holds batches of so many tokens."""

    def make(room, token_budget=512):
        compressor = Compressor.load(tiny, dtype=torch.float32, token_budget=token_budget)
        run, asked = compressor._run, []

        def run_if_it_fits(packed, stage):
            asked.append(len(packed.ids))
            assert len(asked) < 200
            if asked[-1] > room:
                raise torch.OutOfMemoryError("out of memory")
            return run(packed, stage)

        monkeypatch.setattr(compressor, "_run", run_if_it_fits)
        return compressor, asked

    return make


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(tiny, compressor, small_device, caplog):
    passages = passages_of(tiny)
    small, asked = small_device(room=80)
    torch.testing.assert_close(small.compress(passages).values, compressor.compress(passages).values, rtol=0, atol=1e-5)
    assert asked[1] < asked[0]
    assert "ran out of memory with a batch of" in caplog.text
    # It has learned.
    asked.clear()
    small.compress(passages)
    assert max(asked) <= 80
    # And tries again after a while.
    asked.clear()
    for _ in range(20):
        small.compress(passages)
    assert max(asked) > 80
    assert small.token_budget == 512


def test_a_single_passage_that_was_filled_up_is_tried_as_it_is(tiny, compressor, small_device, monkeypatch):
    passages = passages_of(tiny)[:1]
    small, asked = small_device(room=len(passages[0]))
    monkeypatch.setattr(small, "_compiled_sizes", (512, 128))
    torch.testing.assert_close(small.compress(passages).values, compressor.compress(passages).values, rtol=0, atol=1e-5)
    assert asked == [128, len(passages[0])]


def test_a_batch_that_was_filled_up_is_as_large_as_that(tiny, compressor, small_device, monkeypatch):
    passages = passages_of(tiny) * 3
    small, asked = small_device(room=100)
    monkeypatch.setattr(small, "_compiled_sizes", (256, 128, 64))
    torch.testing.assert_close(small.compress(passages).values, compressor.compress(passages).values, rtol=0, atol=1e-5)
    assert asked[:3] == [256, 128, 64]


@pytest.mark.parametrize("pads", [True, False])
def test_no_more_passages_than_a_kernel_takes(compressor, memory_token, monkeypatch, pads):
    passages = [[memory_token]] * 10
    expected = compressor.compress(passages)
    monkeypatch.setattr("pisco_index.model.compressor._MOST_PASSAGES", 4)
    monkeypatch.setattr(compressor, "_pads", pads)
    told = []
    found = compressor.compress(passages, on_batch=lambda count, tokens: told.append((count, tokens)))
    assert told == [(4, 4), (4, 4), (2, 2)]
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-5)


def test_a_passage_that_does_not_fit_by_itself_is_an_error(tiny, small_device):
    small, asked = small_device(room=30)
    with pytest.raises(torch.OutOfMemoryError):
        small.compress(passages_of(tiny))
    assert asked[-1] == max(len(passage) for passage in passages_of(tiny))


class TestBudgetOnAGpu:
    """The search on a GPU, with this CPU in its place: a token takes 1,000 bytes of those that are free."""

    @pytest.fixture
    def find(self, tiny, tmp_path, monkeypatch):
        class Card:
            name, total_memory = "a card", 80 << 30

        def find(free):
            compressor = Compressor.load(tiny, dtype=torch.float32)
            tried = []
            monkeypatch.setattr(compressor, "_try", tried.append)
            monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
            monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: tried[-1] * 1000)
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80 << 30))
            monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
            for name in ("reset_peak_memory_stats", "synchronize"):
                monkeypatch.setattr(torch.cuda, name, lambda _: None)
            compressor._find_budget(tiny.compressor_config, KnownBudgets(tmp_path / "budgets.json"))
            return compressor.token_budget, tried

        return find

    def test_it_is_what_fits_and_is_remembered(self, find):
        budget = 41 * 1024
        assert find(50_000_000) == (budget, [4096, budget])
        assert find(50_000_000) == (budget, [budget])

    def test_a_card_that_others_use_is_another_card(self, find):
        few, _ = find(50_000_000)
        many, tried = find(90 << 30)
        assert few < many
        assert len(tried) == 2


def test_each_batch_is_told(tiny):
    passages = passages_of(tiny)
    told = []
    compressor = Compressor.load(tiny, dtype=torch.float32, token_budget=90)
    compressor.compress(passages, on_batch=lambda count, tokens: told.append((count, tokens)))
    assert len(told) > 1
    assert tuple(map(sum, zip(*told, strict=True))) == (len(passages), sum(map(len, passages)))


def test_several_may_be_launched_before_the_first_is_finished(tiny, compressor):
    parts = passages_of(tiny)[:3], passages_of(tiny)[3:], []
    expected = [compressor.compress(part) for part in parts]
    launched = [compressor.launch(part) for part in parts]
    for each, memory in reversed(list(zip(launched, expected, strict=True))):
        found = each.finish()
        assert found.lengths == memory.lengths
        assert torch.equal(found.values, memory.values)


def test_passages_in_one_array_are_passages_in_lists(tiny, compressor):
    passages = passages_of(tiny)
    expected, found = compressor.compress(passages), compressor.compress(Passages.of(passages))
    assert found.lengths == expected.lengths
    assert torch.equal(found.values, expected.values)


class TestCompiled:
    """Compiled, as on a GPU: here the graphs are made and run as they are, for making code of them takes minutes."""

    @pytest.fixture(autouse=True)
    def graphs(self, monkeypatch):
        torch.compiler.reset()
        counters.clear()
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        return lambda: counters["stats"]["unique_graphs"]

    @pytest.fixture
    def compiled(self, tiny):
        return Compressor.load(tiny, dtype=torch.float32, token_budget=320, compiled=True)

    @pytest.fixture
    def passages(self, tiny):
        return passages_of(tiny, ["one two three four " * (1 + i % 5) for i in range(40)])

    def test_gives_the_same_from_graphs_for_each_size(self, compiled, compressor, passages, graphs):
        assert graphs() == 6
        expected, found = compressor.compress(passages), compiled.compress(passages)
        assert found.lengths == expected.lengths
        torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-5)
        assert graphs() == 6

    @pytest.mark.parametrize("architecture", ["qwen3", "llama3"], indirect=True)
    def test_two_graphs_serve_all_layers(self, made, graphs):
        compiled = Compressor.load(made, dtype=torch.float32, token_budget=5000, compiled=True)
        compiled.compress(passages_of(made, ["x" * 30, "y" * 25, "z" * 20]))
        assert len(compiled._forward.layers) == 3
        # Two for each size, one of them of the last layer, made when it was loaded.
        assert graphs() == 6
        # Another number of passages, of other lengths: the same size is the same graph.
        compiled.compress(passages_of(made, ["x" * 31, "y" * 22, "z" * 21, "w" * 29]))
        compiled.compress(passages_of(made, ["x y " * 500]))
        compiled.compress([[1, compiled._memory_token_id]])
        assert graphs() == 6

    def test_another_thread_than_the_one_that_loaded_it_compiles_nothing(self, compiled, passages, graphs):
        before = graphs()
        with ThreadPoolExecutor(1) as thread:
            thread.submit(compiled.compress, passages).result()
        assert graphs() == before

    def test_few_sizes_are_computed(self, compiled, passages, monkeypatch):
        sizes, run = [], compiled._run
        # As with a kernel for packed rows.
        monkeypatch.setattr(compiled, "_pads", False)
        monkeypatch.setattr(
            compiled,
            "_run",
            lambda packed, stage: sizes.append((len(packed.ids), int(packed.starts[-1]))) or run(packed, stage),
        )
        compiled.compress(passages)
        assert {rows for rows, _ in sizes} == {320, 80, 20}
        assert sum(tokens for _, tokens in sizes) == sum(map(len, passages))
        assert all(rows - tokens < max(map(len, passages)) for rows, tokens in sizes[:-1])

    def test_sizes_that_do_not_fit_when_they_are_compiled_are_halved(self, small_device):
        small, asked = small_device(room=100)
        small._compile(small._forward)
        assert small.token_budget == 64
        assert set(small._forward.compiled_rows) == {64, 16, 4}
        assert asked == [512, 256, 128, 64, 16, 4]
        nowhere, _ = small_device(room=0)
        with pytest.raises(torch.OutOfMemoryError):
            nowhere._compile(nowhere._forward)

    def test_a_passage_longer_than_all_sizes_is_not_compiled(self, tiny, compressor, graphs):
        small = Compressor.load(tiny, dtype=torch.float32, token_budget=16, compiled=True)
        before = graphs()
        passages = [[7] * 30 + [small._memory_token_id]]
        torch.testing.assert_close(
            small.compress(passages).values, compressor.compress(passages).values, rtol=0, atol=1e-5
        )
        assert graphs() == before


class TestEncoders:
    """Bidirectional models, which transformers runs."""

    @pytest.fixture(scope="class")
    @classmethod
    def bert(cls):
        torch.manual_seed(1)
        config = BertConfig(
            vocab_size=90,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
        return AutoModel.from_config(config).eval()

    @pytest.fixture(scope="class")
    @classmethod
    def passages(cls):
        random = Random(3)
        return [[random.randrange(10, 90) for _ in range(n)] + [5, 5] for n in (1, 60, 7, 7, 0, 30)]

    def expected(self, bert, passages):
        with torch.inference_mode():
            return torch.cat([bert(torch.tensor([each])).last_hidden_state[0, -2:] for each in passages])

    def test_all_tokens_of_a_passage_are_seen_and_none_of_another(self, bert, passages):
        expected = self.expected(bert, passages)
        compressor = Compressor(copy.deepcopy(bert), Connector(32, 8, 8), memory_token_id=5, token_budget=70)
        assert isinstance(compressor._forward, PackedModel)
        torch.testing.assert_close(compressor.compress(passages).values, expected, rtol=0, atol=1e-5)

    def test_a_causal_architecture_that_is_said_not_to_be(self, passages):
        torch.manual_seed(1)
        sizes = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "head_dim": 8}
        config = Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)
        config.is_causal = False
        model = AutoModel.from_config(config).eval()
        expected = self.expected(model, passages)
        compressor = Compressor(model, Connector(32, 8, 8), memory_token_id=5, token_budget=70)
        torch.testing.assert_close(compressor.compress(passages).values, expected, rtol=0, atol=1e-5)

    def test_a_window_that_is_in_the_mask_alone_is_not_lost(self):
        torch.manual_seed(1)
        sizes = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
        experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
        window = {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 2}
        config = Qwen2MoeConfig(
            **sizes, **experts, **window, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3
        )
        model = AutoModel.from_config(config).eval()
        passages = [[7 + i % 50 for i in range(300)] + [5, 5], [8, 9, 5, 5]]
        expected = self.expected(model, passages)
        compressor = Compressor(model, Connector(32, 8, 8), memory_token_id=5)
        torch.testing.assert_close(compressor.compress(passages).values, expected, rtol=0, atol=1e-4)

    def test_what_cannot_be_packed_is_padded(self, bert, passages, monkeypatch):
        expected = self.expected(bert, passages)
        monkeypatch.setattr(PackedModel, "__call__", lambda self, packed: torch.ones(len(packed.memory), 32))
        compressor = Compressor(copy.deepcopy(bert), Connector(32, 8, 8), memory_token_id=5, token_budget=70)
        assert isinstance(compressor._forward, PaddedModel)
        torch.testing.assert_close(compressor.compress(passages).values, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "phi", "gemma2"], indirect=True)
def test_architectures_that_are_not_known_are_packed_all_the_same(made):
    assert isinstance(Compressor.load(made, dtype=torch.float32)._forward, PackedModel)
