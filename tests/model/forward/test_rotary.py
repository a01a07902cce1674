"""Memory of models that scale their rotary positions by the length of a batch."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from pisco_index import Compressor
from pisco_index.model.forward.rotary import ScaledRotary

LIMIT = 32
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "factor": 4.0,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
    "original_max_position_embeddings": LIMIT,
}


@pytest.fixture(params=[("llama", DYNAMIC), ("llama", LONG), ("phi3", LONG)], ids=["dynamic", "longrope", "fallback"])
def model(request):
    kind, rope = request.param
    config = AutoConfig.for_model(
        kind,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=64,
        pad_token_id=0,
        max_position_embeddings=LIMIT if rope is DYNAMIC else 4 * LIMIT,
        rope_parameters=dict(rope),
        eos_token_id=1,
        # Phi-3 keeps it here.
        **({"original_max_position_embeddings": LIMIT} if kind == "phi3" else {}),
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval()


def test_memory_does_not_depend_on_neighbours(model):
    assert ScaledRotary(model).limit == LIMIT
    compressor = Compressor(model, None, memory_token_ids=(63,), token_budget=1000)
    passages = [[*range(1, length), 63] for length in (10, 50, LIMIT, 60, 20, 50, LIMIT)]
    together = compressor.compress(passages).values
    alone = [compressor.compress([passage]).values for passage in passages]
    torch.testing.assert_close(together, torch.cat(alone))
    # The same passage after shorter and after longer ones.
    torch.testing.assert_close(together[1], together[5])
    torch.testing.assert_close(together[2], together[6])


def test_long_passages_are_scaled(model):
    """The scaling of a passage is the model's own."""
    ids = [*range(1, 60), 63]
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1:]
    compressor = Compressor(model, None, memory_token_ids=(63,), token_budget=1000)
    torch.testing.assert_close(compressor.compress([ids]).values, expected, rtol=1e-3, atol=1e-3)


def test_other_models_have_no_limit(make_base):
    assert ScaledRotary(AutoModel.from_pretrained(make_base("qwen3"))).limit > 10**9
