"""Architectures without a native forward pass, which transformers computes."""

import copy
from random import Random

import pytest
import torch
from transformers import AutoModel, BertConfig, Qwen2MoeConfig, Qwen3Config

from pisco_index import Compressor
from pisco_index.model.connector import Connector
from pisco_index.model.forward.fallback import PackedFallback, PaddedFallback


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "phi", "gemma2"], indirect=True)
def test_they_are_packed(made):
    assert isinstance(Compressor.load(made, dtype=torch.float32)._forward, PackedFallback)


@pytest.mark.parametrize("architecture", ["phi", "gemma2"], indirect=True)
def test_passages_are_sorted_by_length_if_scores_are_capped(made):
    """Attention with a cap of its scores pads."""
    capped = bool(getattr(made.compressor_config, "attn_logit_softcapping", None))
    forward = Compressor.load(made, dtype=torch.float32)._forward
    assert forward.pads == capped == (made.compressor_config.model_type == "gemma2")


class TestEncoders:
    """Bidirectional models."""

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

    def test_a_token_attends_to_all_of_its_passage_and_to_no_other(self, bert, passages):
        expected = self.expected(bert, passages)
        compressor = Compressor(copy.deepcopy(bert), Connector(32, 8, 8), memory_token_ids=(5,), token_budget=70)
        assert isinstance(compressor._forward, PackedFallback)
        torch.testing.assert_close(compressor.compress(passages).values, expected, rtol=0, atol=1e-5)

    def test_a_causal_architecture_may_be_configured_as_bidirectional(self, passages):
        torch.manual_seed(1)
        sizes = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "head_dim": 8}
        config = Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)
        config.is_causal = False
        model = AutoModel.from_config(config).eval()
        expected = self.expected(model, passages)
        compressor = Compressor(model, Connector(32, 8, 8), memory_token_ids=(5,), token_budget=70)
        torch.testing.assert_close(compressor.compress(passages).values, expected, rtol=0, atol=1e-5)

    def test_a_window_that_is_only_in_the_mask_is_not_lost(self):
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
        compressor = Compressor(model, Connector(32, 8, 8), memory_token_ids=(5,))
        torch.testing.assert_close(compressor.compress(passages).values, expected, rtol=0, atol=1e-4)

    def test_a_model_that_cannot_be_packed_is_padded(self, bert, passages, monkeypatch):
        expected = self.expected(bert, passages)
        monkeypatch.setattr(PackedFallback, "__call__", lambda self, batch: torch.ones(len(batch.memory), 32))
        compressor = Compressor(copy.deepcopy(bert), Connector(32, 8, 8), memory_token_ids=(5,), token_budget=70)
        assert isinstance(compressor._forward, PaddedFallback)
        torch.testing.assert_close(compressor.compress(passages).values, expected, rtol=0, atol=1e-5)
