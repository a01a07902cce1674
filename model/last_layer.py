"""A decoder layer computed at the memory tokens only.

Memory is read from the last layer at the memory tokens, and nothing behind that layer mixes positions. So its
queries, output projection and MLP are needed at those tokens alone; keys and values at all of them.
"""

from typing import Any

import torch
from torch import nn
from transformers.models.llama.modeling_llama import rotate_half

# Architectures whose layers are norm, attention with q/k/v/o projections and rotary positions, norm, MLP.
KNOWN_ARCHITECTURES = frozenset({"qwen3", "qwen2", "llama", "mistral"})


class LastLayerAtMemory(nn.Module):
    """The last layer and final norm of a known architecture, taken off the model that is given."""

    def __init__(self, model: Any):
        super().__init__()
        self.layer: Any = model.layers[-1]
        self.norm: Any = model.norm
        model.layers = model.layers[:-1]
        model.norm = nn.Identity()
        attention = self.layer.self_attn
        self.head_dim: int = attention.head_dim
        self.scaling: float = attention.scaling
        # Mistral has one window for all layers, in its configuration; a Qwen layer has its own, Llama none.
        owner = model.config if model.config.model_type == "mistral" else attention
        self.window: int | None = getattr(owner, "sliding_window", None)

    @staticmethod
    def knows(model: Any) -> bool:
        """Whether the model's layers are of the form computed here."""
        return model.config.model_type in KNOWN_ARCHITECTURES and getattr(model, "rotary_emb", None) is not None

    def forward(
        self, states: torch.Tensor, is_memory: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Compute the last hidden states at the memory tokens.

        Args:
            states: ``(batch, length, hidden)``, what the layer reads.
            is_memory: ``(batch, length)`` bool; padding stands on the right and is False.
            rotary: cosine and sine, each ``(1, length, head_dim)``.

        Returns:
            ``(memory tokens of the batch, hidden)``, row by row.
        """
        layer, attention = self.layer, self.layer.self_attn
        batch, length, _ = states.shape
        per_row = is_memory.sum(1)
        slots = int(per_row.max())
        # Positions of each row's memory tokens, in order; unused slots point at the row's first tokens.
        position = is_memory.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :slots]
        used = torch.arange(slots, device=states.device) < per_row[:, None]
        row = torch.arange(batch, device=states.device)[:, None]

        normed = layer.input_layernorm(states)
        cos, sin = rotary
        key = _heads(attention.k_proj(normed), self.head_dim)
        value = _heads(attention.v_proj(normed), self.head_dim).transpose(1, 2)
        query = _heads(attention.q_proj(normed[row, position]), self.head_dim)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        key = _rotate(key.transpose(1, 2), cos[:, None], sin[:, None])
        query = _rotate(query.transpose(1, 2), cos[0][position][:, None], sin[0][position][:, None])

        distance = position[:, None, :, None] - torch.arange(length, device=states.device)
        visible = distance >= 0
        if self.window is not None:
            visible &= distance < self.window
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=self.scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        attended = attended.transpose(1, 2)[used].flatten(1)
        hidden = states[row, position][used] + attention.o_proj(attended)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.norm(hidden)


def _heads(projected: torch.Tensor, head_dim: int) -> torch.Tensor:
    return projected.unflatten(-1, (-1, head_dim))


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return states * cos + rotate_half(states) * sin
