"""Behaviour that only a GPU shows. The rest of the compressor is tested on a CPU, which runs the same code."""

import copy
from random import Random

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModel, Qwen3Config

from pisco_index import Compressor
from pisco_index.model.connector import Connector
from pisco_index.model.forward.attention import padded_attention
from pisco_index.model.forward.kernels import choose_attention

MEMORY = 499

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # torch itself warns when it compiles.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]


@pytest.fixture(scope="module")
def device():
    # Parts of torch require the index.
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=500,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        initializer_range=0.1,
    )
    return AutoModel.from_config(config).eval()


@pytest.fixture(scope="module")
def passages():
    random = Random(0)
    lengths = [1, 600, *(random.randrange(2, 200) for _ in range(200))]
    return [[random.randrange(MEMORY) for _ in range(n)] + [MEMORY] * (n // 16 + 1) for n in lengths]


@pytest.fixture(scope="module")
def expected(model, passages):
    return make(model, torch.device("cpu"), torch.float32).compress(passages)


def make(model, device, dtype, **options):
    model = copy.deepcopy(model).to(device, dtype)
    return Compressor(model, Connector(256, 8, 8), memory_token_ids=(MEMORY,), **options)


def test_a_kernel_for_packed_rows_is_chosen(device):
    # Every GPU that computes bfloat16 has one.
    chosen = choose_attention(device, torch.bfloat16, heads=16, key_heads=8, head_dim=128)
    assert chosen is not padded_attention


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("token_budget", [None, 1000], ids=["found", "small"])
def test_it_computes_what_a_cpu_computes(model, device, passages, expected, token_budget, compiled):
    compressor = make(model, device, torch.bfloat16, token_budget=token_budget, compiled=compiled)
    reported = []
    found = compressor.compress(passages, on_batch=lambda count, tokens: reported.append((count, tokens)))
    assert found.lengths == expected.lengths
    assert found.values.device.type == "cpu"
    assert tuple(map(sum, zip(*reported, strict=True))) == (len(passages), sum(map(len, passages)))
    # The copies of one call do not end in the memory of another.
    again = compressor.compress(passages[::-1]).select(range(len(passages))[::-1])
    for memory in (found, again):
        assert torch.cosine_similarity(memory.values.float(), expected.values).min() > 0.99


def test_in_float32_it_does_so_almost_exactly(model, device, passages, expected):
    found = make(model, device, torch.float32, token_budget=4000).compress(passages)
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-3)


def test_only_finished_batches_are_waited_for(model, device, passages):
    compressor = make(model, device, torch.bfloat16, token_budget=1000)
    compressor.compress(passages)
    try:
        torch.cuda.set_sync_debug_mode("error")
        compressor.compress(passages)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_is_compiled_after_loading(model, device, passages):
    compressor = make(model, device, torch.bfloat16, token_budget=4096, compiled=True)
    before = counters["stats"]["unique_graphs"]
    compressor.compress(passages)
    compressor.compress(passages[:1])
    compressor.compress([[1] * 5000 + [MEMORY] * 2, *passages[:7]])
    assert counters["stats"]["unique_graphs"] == before > 0


def test_a_batch_that_does_not_fit_is_computed_in_smaller_ones(model, device, passages, expected, caplog):
    compressor = make(model, device, torch.bfloat16, token_budget=1 << 22)
    many = passages * 40
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + (600 << 20)) / total, device)
    try:
        found = compressor.compress(many)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert "ran out of memory" in caplog.text
    similar = torch.cosine_similarity(found.values.float(), expected.values.repeat(40, 1))
    assert similar.min() > 0.99


def test_the_budget_that_is_found_fits_and_is_cached(model, device, tmp_path):
    first = make(model, device, torch.bfloat16).token_budget
    assert first > 1024
    assert make(model, device, torch.bfloat16).token_budget == first
    assert list(tmp_path.rglob("token-budgets.json"))
