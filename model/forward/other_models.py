"""Models of any architecture over packed passages, by transformers' own forward pass."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface

from .attention import Attention, Spans, padded_attention
from .packing import Packed, Passages, pack

log = logging.getLogger(__name__)

# transformers makes no mask for a name that it does not know, and treats names with flash, sdpa or flex in them apart.
_NAME = "pisco_index_packed"
_now: ContextVar[tuple["PackedModel", Spans]] = ContextVar("packed passages")
# What some models give to attention, and only their own knows.
_UNKNOWN_TERMS = ("position_bias", "s_aux", "head_mask")


class PackedModel:
    """transformers' forward pass over packed passages, with another attention in place of its own.

    Args:
        model: the base model, which is changed.
        attention: what attends.

    Attributes:
        windows: what the model told attention of how many tokens are seen, None for all.
    """

    pads = False

    def __init__(self, model: Any, attention: Attention):
        self._model = model
        self.attention = attention
        self.windows: set[int | None] = set()

    def __call__(self, packed: Packed) -> torch.Tensor:
        """The last hidden states at the memory tokens: ``(memory tokens, hidden)``, in the order of their rows."""
        token = _now.set((self, Spans.of(packed.starts, packed.longest)))
        try:
            output = self._model(input_ids=packed.ids.long()[None], position_ids=packed.positions, use_cache=False)
        finally:
            _now.reset(token)
        return output.last_hidden_state[0, packed.memory]


class PaddedModel:
    """transformers' forward pass over passages that are padded to the longest."""

    pads = True

    def __init__(self, model: Any):
        self._model = model

    def __call__(self, packed: Packed) -> torch.Tensor:
        """The last hidden states at the memory tokens: ``(memory tokens, hidden)``, in the order of their rows."""
        spans = Spans.of(packed.starts, packed.longest)
        is_token = torch.arange(packed.longest, device=spans.starts.device) < spans.starts.diff()[:, None]
        output = self._model(
            input_ids=packed.ids.long()[spans.padded()].view(is_token.shape),
            attention_mask=is_token.long(),
            use_cache=False,
        )
        return output.last_hidden_state.flatten(0, 1)[spans.unpadded(len(packed.ids))[packed.memory]]


@torch.inference_mode()
def any_model(model: Any, attention: Attention, memory_token_id: int) -> PackedModel | PaddedModel:
    """The model over packed passages if it gives what it gives by itself, else over padded ones."""
    padded, packed = PaddedModel(model), PackedModel(model, attention)
    device = next(model.parameters()).device
    sample = _sample(memory_token_id, model.config.vocab_size).to(device)
    expected = padded(sample)
    try:
        with _implementation(model, _NAME):
            found = packed(sample)
        # The same numbers added in another order.
        least = 0.9999 if expected.dtype == torch.float32 else 0.99
        # A window that is in the model's mask alone would be lost, and be noticed by longer passages only.
        told = _windows(model.config) <= packed.windows
        agrees = told and torch.cosine_similarity(found.float(), expected.float()).min() >= least
    except Exception as error:  # noqa: BLE001 - whatever an unknown model makes of it
        log.debug("%s cannot be packed: %s", type(model).__name__, error)
        agrees = False
    if not agrees:
        log.info("%s is run on padded passages: it does not give the same on packed ones.", type(model).__name__)
        return padded
    model.set_attn_implementation(_NAME)
    return packed


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: ``(1, heads, rows, head_dim)`` in, ``(1, rows, heads, head_dim)`` out."""
    if unknown := [name for name in _UNKNOWN_TERMS if others.get(name) is not None]:
        raise NotImplementedError(f"attention with {', '.join(unknown)}")
    model, spans = _now.get()
    model.windows.add(sliding_window)
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    options: dict[str, Any] = {
        "scale": query.shape[-1] ** -0.5 if scaling is None else scaling,
        "causal": getattr(module, "is_causal", True) if is_causal is None else is_causal,
        "window": sliding_window,
    }
    if softcap is not None:
        return padded_attention(query, key, value, spans, spans, **options, softcap=softcap)[None], None
    return model.attention(query, key, value, spans, spans, **options)[None], None


AttentionInterface.register(_NAME, _attend)


def _windows(config: Any) -> set[int]:
    """Of how many tokens some layer of a model sees the last."""
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return {window for window in windows if window}


@contextmanager
def _implementation(model: Any, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _sample(memory_token_id: int, vocabulary: int) -> Packed:
    """Passages of any tokens, with a memory token now and then."""
    lengths = np.array([3, 60, 1, 25])
    ids = np.random.default_rng(0).integers(0, vocabulary, lengths.sum())
    ids[::5] = memory_token_id
    ids[np.cumsum(lengths) - 1] = memory_token_id
    return pack(Passages(ids, lengths), np.arange(len(lengths)), memory_token_id)
