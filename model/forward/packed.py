"""The forward pass of a causal decoder over packed passages, for the architectures that most models are of."""

from collections.abc import Callable, Container
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..device import arithmetic_for
from .attention import Attention, Spans
from .packing import Packed

# Layers of norm, attention with q/k/v/o projections and rotary positions, norm, and a gated MLP.
KNOWN_ARCHITECTURES = frozenset({"qwen3", "qwen2", "llama", "mistral"})
_ACTIVATION = "silu"
# A few sizes of batches, and for each a window or none; torch would stop compiling at eight.
_MOST_GRAPHS = 64


class PackedDecoder(nn.Module):
    """A model of a known architecture, taken over: projections fused, the last layer computed where it is read.

    Memory is read from the last layer at the memory tokens, and nothing behind that layer mixes positions. So its
    queries, output projection and MLP are needed at those tokens alone; keys and values at all of them.

    Args:
        model: the base model, which is of no use any more.
        attention: what attends.
        whole_last_layer: compute the last layer at every token.

    Attributes:
        compiled_rows: for which numbers of rows layers are compiled, when the first such batch comes: one graph for the
            last layer, and one for all others.
    """

    def __init__(self, model: Any, attention: Attention, *, whole_last_layer: bool = False):
        super().__init__()
        self.embedding = model.embed_tokens
        self.rotary: Any = model.rotary_emb
        self.layers: Any = nn.ModuleList()
        for index in range(len(model.layers)):
            self.layers.append(_Layer(model.layers[index], model.config))
            # Freed at once, so that the weights are not there twice.
            model.layers[index] = nn.Identity()
        self.norm: Any = model.norm
        self.attention = attention
        self.whole_last_layer = whole_last_layer
        self.arithmetic = arithmetic_for(self.embedding.weight.device, self.embedding.weight.dtype)
        self.compiled_rows: Container[int] = ()

    @cached_property
    def _compiled(self) -> tuple[Callable[..., tuple[torch.Tensor, torch.Tensor]], Callable[..., torch.Tensor]]:
        options: dict[str, Any] = {"dynamic": False, "recompile_limit": _MOST_GRAPHS}
        return torch.compile(run_layer, **options), torch.compile(run_layer_at_memory, **options)

    @staticmethod
    def knows(model: Any) -> bool:
        """Whether the model's layers are of the form computed here."""
        return (
            model.config.model_type in KNOWN_ARCHITECTURES
            and getattr(model.config, "hidden_act", None) == _ACTIVATION
            and getattr(model, "rotary_emb", None) is not None
            # Some encoders are such models with this said in their configuration.
            and getattr(model.config, "is_causal", True) is not False
        )

    def forward(self, packed: Packed) -> torch.Tensor:
        """The last hidden states at the memory tokens: ``(memory tokens, hidden)``, in the order of their rows."""
        spans = Spans.of(packed.starts, packed.longest)
        run, run_last = run_layer, run_layer_at_memory
        # One memory token would be a graph of its own.
        if len(packed.ids) in self.compiled_rows and len(packed.memory) > 1:
            run, run_last = self._compiled
            # The number of rows is what a graph is made for; those of passages and memory tokens are not.
            for tensor in (packed.starts, packed.memory, packed.memory_starts):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        residual = nn.functional.embedding(packed.ids, self.embedding.weight).to(self.arithmetic)
        # Of the shape that it has for later layers, so that one graph serves all.
        update = torch.zeros_like(residual)
        rotary = tuple(table[0, :, None] for table in self.rotary(residual, packed.positions))
        *layers, last = self.layers
        for layer in layers:
            residual, update = run(layer, residual, update, rotary, spans, self.attention)
        if packed.memory_last and not self.whole_last_layer:
            queries = Spans.of(packed.memory_starts, packed.most_memory)
            states = run_last(last, residual, update, rotary, packed.memory, queries, spans, self.attention)
        else:
            residual, update = run(last, residual, update, rotary, spans, self.attention)
            states = residual[packed.memory] + update[packed.memory]
        return self.norm(states)


class _Layer(nn.Module):
    def __init__(self, layer: Any, config: Any):
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim: int = attention.head_dim
        self.scale: float = attention.scaling
        # Mistral has one window for all layers, in its configuration; a Qwen layer has its own, Llama none.
        self.window: int | None = getattr(
            config if config.model_type == "mistral" else attention, "sliding_window", None
        )
        self.input_norm: Any = layer.input_layernorm
        self.q_norm: Any = getattr(attention, "q_norm", nn.Identity())
        self.k_norm: Any = getattr(attention, "k_norm", nn.Identity())
        self.query_width: int = attention.q_proj.out_features
        self.qkv = _fuse(attention.q_proj, attention.k_proj, attention.v_proj)
        attention.q_proj = attention.k_proj = attention.v_proj = None
        self.output: Any = attention.o_proj
        self.mlp_norm: Any = layer.post_attention_layernorm
        self.gate_and_up = _fuse(mlp.gate_proj, mlp.up_proj)
        mlp.gate_proj = mlp.up_proj = None
        self.down: Any = mlp.down_proj

    def heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim))

    def mlp(self, states: torch.Tensor) -> torch.Tensor:
        gate, up = _linear(self.mlp_norm(states), self.gate_and_up).chunk(2, -1)
        return _linear(nn.functional.silu(gate) * up, self.down)


def run_layer(
    layer: _Layer,
    residual: torch.Tensor,
    update: torch.Tensor,
    rotary: tuple[torch.Tensor, ...],
    spans: Spans,
    attention: Attention,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One layer; what it adds to the residual is added by the next, in one kernel with that one's norm."""
    residual = residual + update
    projected = _linear(layer.input_norm(residual), layer.qkv)
    key_width = (projected.shape[-1] - layer.query_width) // 2
    query, key, value = map(layer.heads, projected.split([layer.query_width, key_width, key_width], -1))
    cos, sin = rotary
    query, key = _rotate(layer.q_norm(query), cos, sin), _rotate(layer.k_norm(key), cos, sin)
    attended = attention(query, key, value, spans, spans, scale=layer.scale, window=layer.window)
    residual = residual + _linear(attended.flatten(1), layer.output)
    return residual, layer.mlp(residual)


def run_layer_at_memory(
    layer: _Layer,
    residual: torch.Tensor,
    update: torch.Tensor,
    rotary: tuple[torch.Tensor, ...],
    memory: torch.Tensor,
    queries: Spans,
    keys: Spans,
    attention: Attention,
) -> torch.Tensor:
    """The last layer at the memory tokens, which are the last ones of their passages: ``(memory tokens, hidden)``."""
    residual = residual + update
    normed = layer.input_norm(residual)
    query = layer.heads(_linear(normed[memory], layer.qkv, slice(layer.query_width)))
    key, value = map(layer.heads, _linear(normed, layer.qkv, slice(layer.query_width, None)).chunk(2, -1))
    cos, sin = rotary
    query, key = _rotate(layer.q_norm(query), cos[memory], sin[memory]), _rotate(layer.k_norm(key), cos, sin)
    attended = attention(query, key, value, queries, keys, scale=layer.scale, window=layer.window)
    residual = residual[memory] + _linear(attended.flatten(1), layer.output)
    return residual + layer.mlp(residual)


def _fuse(*linears: nn.Linear) -> nn.Linear:
    """One linear map in place of several of the same input."""
    weight = torch.cat([linear.weight for linear in linears])
    fused = nn.Linear(weight.shape[1], weight.shape[0], bias=linears[0].bias is not None, device="meta")
    fused.weight = nn.Parameter(weight, requires_grad=False)
    if linears[0].bias is not None:
        fused.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]), requires_grad=False)
    return fused


def _linear(states: torch.Tensor, linear: nn.Linear, outputs: slice = slice(None)) -> torch.Tensor:
    """Some outputs of a linear map, in the arithmetic of its input."""
    bias = None if linear.bias is None else linear.bias[outputs].to(states.dtype)
    return nn.functional.linear(states, linear.weight[outputs].to(states.dtype), bias)


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat((-second, first), -1) * sin
