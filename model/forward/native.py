"""Our own forward pass over packed passages, for the causal architectures that most models have."""

from collections.abc import Callable, Container, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from ..device import compute_dtype
from ..loading.lora import LoraLinear
from .attention import Attention, Spans
from .packing import PackedBatch, offsets

# Architectures whose layers are norm, attention with q/k/v/o projections and rotary positions, norm, and a gated MLP.
NATIVE_ARCHITECTURES = frozenset({"qwen3", "qwen2", "llama", "mistral"})
_ACTIVATION = "silu"
# Limit of compiled graphs per layer function: several batch sizes, each with and without a sliding window. torch's own
# limit of 8 would stop compiling too early.
_MAX_GRAPHS = 64


class NativeModel(nn.Module):
    """A model of a supported architecture, with fused projections and a last layer computed only at memory tokens.

    Memory is read from the last layer at the memory tokens, and nothing after that layer mixes positions. So the last
    layer's queries, output projection and MLP are computed at those tokens only; its keys and values at all tokens.

    The weights are fused in place: those of the base model become views of them, so that it can still be used and
    memory never holds them twice.

    Args:
        model: the base model.
        attention: attention to use.
        whole_last_layer: True to compute the last layer at every token.

    Attributes:
        compiled_rows: numbers of rows for which layers are compiled, when the first such batch comes: one graph for
            the last layer and one for all other layers.
    """

    def __init__(self, model: Any, attention: Attention, *, whole_last_layer: bool = False):
        super().__init__()
        self.embedding = model.embed_tokens
        self.rotary: Any = model.rotary_emb
        self.layers: Any = nn.ModuleList()
        for layer in model.layers:
            self.layers.append(_Layer(layer, model.config))
        # Another model may share the weights of the base model, so it must stay alive. It is not a module of this one,
        # whose fused weights it sees. A model with updates beside its weights is a copy that nobody else uses.
        has_updates = any(isinstance(module, LoraLinear) for module in model.modules())
        self._source = () if has_updates else (model,)
        self.norm: Any = model.norm
        self.attention = attention
        self.whole_last_layer = whole_last_layer
        self.compute_dtype = compute_dtype(self.embedding.weight.device, self.embedding.weight.dtype)
        self.compiled_rows: Container[int] = ()

    @cached_property
    def _compiled(self) -> tuple[Callable[..., tuple[torch.Tensor, torch.Tensor]], Callable[..., torch.Tensor]]:
        options: dict[str, Any] = {"dynamic": False, "recompile_limit": _MAX_GRAPHS}
        return torch.compile(run_layer, **options), torch.compile(run_layer_at_memory, **options)

    @staticmethod
    def supports(model: Any) -> bool:
        """Return True if the model's layers have the form computed here."""
        return (
            model.config.model_type in NATIVE_ARCHITECTURES
            and getattr(model.config, "hidden_act", None) == _ACTIVATION
            and getattr(model, "rotary_emb", None) is not None
            # Some bidirectional encoders have such an architecture, and is_causal false in their configuration.
            and getattr(model.config, "is_causal", True) is not False
        )

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Return the last hidden states at the memory tokens, in the order of rows: ``(memory tokens, hidden)``."""
        spans = Spans.of(batch.starts, batch.longest)
        run, run_last = run_layer, run_layer_at_memory
        # torch specialises on a size of 1, so a single memory token would need a graph of its own.
        if len(batch.ids) in self.compiled_rows and len(batch.memory) > 1:
            run, run_last = self._compiled
            # A graph is made for a number of rows, but for any number of passages and of memory tokens.
            for tensor in (batch.starts, batch.memory, batch.memory_starts):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        residual = nn.functional.embedding(batch.ids, self.embedding.weight).to(self.compute_dtype)
        # The first layer has nothing to add, and gets zeros of the usual shape so that one graph serves all layers.
        update = torch.zeros_like(residual)
        rotary = tuple(table[0, :, None] for table in self.rotary(residual, batch.positions))
        *layers, last = self.layers
        for layer in layers:
            residual, update = run(layer, residual, update, rotary, spans, self.attention)
        if batch.memory_last and not self.whole_last_layer:
            queries = Spans.of(batch.memory_starts, batch.most_memory)
            states = run_last(last, residual, update, rotary, batch.memory, queries, spans, self.attention)
        else:
            residual, update = run(last, residual, update, rotary, spans, self.attention)
            states = residual[batch.memory] + update[batch.memory]
        return self.norm(states)


class _Layer(nn.Module):
    def __init__(self, layer: Any, config: Any):
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim: int = attention.head_dim
        self.scale: float = attention.scaling
        # Mistral's configuration has one window for all layers, a Qwen layer has its own, and Llama has none.
        self.window: int | None = getattr(
            config if config.model_type == "mistral" else attention, "sliding_window", None
        )
        self.input_norm: Any = layer.input_layernorm
        self.q_norm: Any = getattr(attention, "q_norm", nn.Identity())
        self.k_norm: Any = getattr(attention, "k_norm", nn.Identity())
        self.query_width: int = attention.q_proj.out_features
        self.qkv = _fuse(attention.q_proj, attention.k_proj, attention.v_proj)
        self.output: Any = attention.o_proj
        self.mlp_norm: Any = layer.post_attention_layernorm
        self.gate_and_up = _fuse(mlp.gate_proj, mlp.up_proj)
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
    """Compute one layer: return the residual after attention, and the MLP's output.

    The next layer adds the output to the residual, so that the addition and its norm are one kernel.
    """
    residual = residual + update
    projected = _linear(layer.input_norm(residual), layer.qkv)
    key_width = (projected.shape[-1] - layer.query_width) // 2
    query, key, value = map(layer.heads, projected.split([layer.query_width, key_width, key_width], -1))
    cos, sin = rotary
    query, key = rotate(layer.q_norm(query), cos, sin), rotate(layer.k_norm(key), cos, sin)
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
    """Compute the last layer at the memory tokens, the last tokens of their passages: ``(memory tokens, hidden)``."""
    residual = residual + update
    normed = layer.input_norm(residual)
    query = layer.heads(_linear(normed[memory], layer.qkv, slice(layer.query_width)))
    key, value = map(layer.heads, _linear(normed, layer.qkv, slice(layer.query_width, None)).chunk(2, -1))
    cos, sin = rotary
    query, key = rotate(layer.q_norm(query), cos[memory], sin[memory]), rotate(layer.k_norm(key), cos, sin)
    attended = attention(query, key, value, queries, keys, scale=layer.scale, window=layer.window)
    residual = residual[memory] + _linear(attended.flatten(1), layer.output)
    return residual + layer.mlp(residual)


class _Fused(nn.Module):
    """One linear map in the place of several maps of the same input.

    Attributes:
        weight: ``(Σ out, in)``.
        bias: ``(Σ out,)``, or None.
        lora_down: ``(Σ rank, in)`` if the maps have updates beside their weights, else None.
        lora_up: ``(Σ out, Σ rank)``, or None.
    """

    def __init__(self, linears: Sequence[nn.Linear]):
        super().__init__()
        self.weight = nn.Parameter(_joined([linear.weight for linear in linears]), requires_grad=False)
        self.bias = self.lora_down = self.lora_up = None
        if linears[0].bias is not None:
            self.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]), requires_grad=False)
        updates = [linear for linear in linears if isinstance(linear, LoraLinear)]
        if updates:
            assert len(updates) == len(linears)
            self.lora_down = nn.Parameter(torch.cat([each.lora_down for each in updates]), requires_grad=False)
            self.lora_up = nn.Parameter(torch.block_diag(*(each.lora_up for each in updates)), requires_grad=False)


def _fuse(*linears: nn.Linear) -> _Fused:
    return _Fused(linears)


def _joined(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return weights one after another, and make each of them a view of the result, so that none is held twice."""
    first = weights[0]
    begins = int(first.storage_offset()) + offsets(np.array([weight.numel() for weight in weights]))
    if all(
        weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and weight.is_contiguous()
        and weight.storage_offset() == begin
        for weight, begin in zip(weights, begins[:-1].tolist(), strict=True)
    ):
        # Another compressor has fused them already.
        rows = sum(weight.shape[0] for weight in weights)
        return first.data.as_strided((rows, first.shape[1]), (first.shape[1], 1), first.storage_offset())
    joined = torch.cat([weight.data for weight in weights])
    for weight, view in zip(weights, joined.split([len(weight) for weight in weights]), strict=True):
        weight.data = view
    return joined


def _linear(states: torch.Tensor, linear: Any, outputs: slice = slice(None)) -> torch.Tensor:
    """Compute some outputs of a linear map, in the dtype of its input."""
    bias = None if linear.bias is None else linear.bias[outputs].to(states.dtype)
    result = nn.functional.linear(states, linear.weight[outputs].to(states.dtype), bias)
    down = getattr(linear, "lora_down", None)
    if down is not None:
        update = nn.functional.linear(states, down.to(states.dtype))
        result = result + nn.functional.linear(update, linear.lora_up[outputs].to(states.dtype))
    return result


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions to queries or keys ``(…, head_dim)``, given the cosines and sines of their angles."""
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat((-second, first), -1) * sin
