"""Our own forward pass: its last layer, and its compiled layers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from pisco_index import Compressor


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2", "llama", "llama3", "mistral"], indirect=True)
def test_the_last_layer_is_computed_at_memory_tokens_only(made):
    model = made.load_compressor(dtype=torch.float32)
    memory_token, read = 5, []
    model.layers[-1].post_attention_layernorm.register_forward_hook(lambda _, inputs, __: read.append(len(inputs[0])))
    compressor = Compressor(model, made.connector, memory_token_ids=(memory_token,))
    compressor.compress([[1, 2, 3, memory_token], [1, 4, memory_token, memory_token]])
    assert read == [3]
    # With text after a memory token, every token is computed.
    compressor.compress([[1, 2, 3, memory_token], [1, memory_token, memory_token, 4]])
    assert read == [3, 8]


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def passages_of(lengths, memory_token):
    return [[1 + i % 90 for i in range(n)] + [memory_token] * (1 + n // 16) for n in lengths]


# Compiled layers as on a GPU. The graphs are made and run without generating code, which takes minutes.


@pytest.fixture(scope="module", autouse=True)
def graphs_only() -> Iterator[None]:
    torch.compiler.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        yield


@pytest.fixture(scope="module")
def compiled(fake):
    before = graphs()
    compiled = Compressor.load(fake, dtype=torch.float32, token_budget=320, compiled=True)
    # Two for each of three sizes, one of them for the last layer, made when the compressor is loaded.
    assert graphs() == before + 6
    return compiled


@pytest.fixture(scope="module")
def passages(fake):
    return passages_of([3 * (1 + i % 5) for i in range(40)], fake.memory_token_ids[0])


def test_compiled_layers_give_the_same_and_nothing_more_is_compiled(fake, compiled, passages):
    before = graphs()
    expected = Compressor.load(fake, dtype=torch.float32).compress(passages)
    with ThreadPoolExecutor(1) as another:
        for found in (compiled.compress(passages), another.submit(compiled.compress, passages).result()):
            assert found.lengths == expected.lengths
            torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-5)
    assert graphs() == before


def test_few_sizes_are_computed(compiled, passages, monkeypatch):
    sizes, run = [], compiled._run
    # As with a kernel for packed rows.
    monkeypatch.setattr(compiled, "_pads", False)
    monkeypatch.setattr(
        compiled,
        "_run",
        lambda batch, stage: sizes.append((len(batch.ids), int(batch.starts[-1]))) or run(batch, stage),
    )
    compiled.compress(passages)
    assert {rows for rows, _ in sizes} == {320, 80, 20}
    assert sum(tokens for _, tokens in sizes) == sum(map(len, passages))
    assert all(rows - tokens < max(map(len, passages)) for rows, tokens in sizes[:-1])


def test_a_passage_longer_than_all_sizes_is_not_compiled(fake, compiled):
    before = graphs()
    passages = passages_of([400], fake.memory_token_ids[0])
    expected = Compressor.load(fake, dtype=torch.float32).compress(passages)
    torch.testing.assert_close(compiled.compress(passages).values, expected.values, rtol=0, atol=1e-5)
    assert graphs() == before


@pytest.mark.parametrize("architecture", ["qwen3", "llama3"], indirect=True)
def test_two_graphs_serve_all_layers(made):
    before = graphs()
    compiled = Compressor.load(made, dtype=torch.float32, token_budget=2000, compiled=True)
    assert len(compiled._forward.layers) == 3
    assert graphs() == before + 6
    # Other numbers and lengths of passages have the same size, and so the same graph.
    for lengths in ([30, 25, 20], [31, 22, 21, 29], [40] * 50):
        compiled.compress(passages_of(lengths, made.memory_token_id))
    compiled.compress([[1, made.memory_token_id]])
    assert graphs() == before + 6
