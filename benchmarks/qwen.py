"""Models of Qwen3-0.6B's width with random weights, passages for them, and the work that a passage takes."""

import numpy as np
import torch
from transformers import Qwen3Config

RATE, VOCABULARY = 16, 151_670
MEMORY, PAD = VOCABULARY - 1, 0


def qwen_config(layers: int, vocabulary: int = VOCABULARY) -> Qwen3Config:
    """Return the shape of Qwen3-0.6B, which has 28 layers, with another number of layers."""
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )


def make_passages(count: int, seed: int = 0) -> list[list[int]]:
    """Return passages of about 125 random tokens, with the spread of paragraphs of prose, and their memory tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.empty(count).log_normal_(4.75, 0.4, generator=generator).clamp(16, 512).int().tolist()
    return [torch.randint(1, MEMORY, (n,), generator=generator).tolist() + [MEMORY] * (n // RATE + 1) for n in lengths]


def flop(shape: Qwen3Config, passages: list[list[int]]) -> float:
    """Return the number of multiplications and additions that the memory of some passages requires.

    The last layer counts at memory tokens only. Padding and logits do not count.
    """
    hidden, heads, width = shape.hidden_size, shape.num_attention_heads, shape.head_dim
    key_value = 2 * hidden * shape.num_key_value_heads * width
    query_output_mlp = 2 * hidden * heads * width + 3 * hidden * shape.intermediate_size
    lengths = np.array(list(map(len, passages)), dtype=np.float64)
    memory = np.array([passage.count(MEMORY) for passage in passages], dtype=np.float64)
    # Scores and weighted sums of each token with the tokens before it.
    attention = 2 * heads * width * lengths * lengths
    whole_layers = (shape.num_hidden_layers - 1) * (2 * (key_value + query_output_mlp) * lengths + attention)
    last_layer = 2 * key_value * lengths + 2 * query_output_mlp * memory + 4 * heads * width * lengths * memory
    return float((whole_layers + last_layer).sum())
