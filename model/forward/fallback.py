"""The forward pass of any architecture, by transformers: over packed passages where that is right, else padded ones."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface

from .attention import Attention, Spans, padded_attention
from .packing import PackedBatch, Passages, pack

log = logging.getLogger(__name__)

# transformers makes no mask for an attention name that it does not know. The name must not contain flash, sdpa or flex,
# which transformers treats specially.
_NAME = "pisco_index_packed"
_running: ContextVar[tuple["PackedFallback", Spans]] = ContextVar("running model and spans")
# Arguments that some models give to their own attention, and that no attention here supports.
_UNSUPPORTED = ("position_bias", "s_aux", "head_mask")


class PackedFallback:
    """transformers' forward pass over packed passages, with another attention in the place of the model's own.

    Args:
        model: the base model, which is changed.
        attention: attention to use.

    Attributes:
        windows: sliding-window sizes that the model passed to attention; None: no window.
        pads: True once the model has asked for attention that pads its passages.
    """

    def __init__(self, model: Any, attention: Attention):
        self._model = model
        self.attention = attention
        self.windows: set[int | None] = set()
        self.pads = False

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """Return the last hidden states at the memory tokens, in the order of rows: ``(memory tokens, hidden)``."""
        token = _running.set((self, Spans.of(batch.starts, batch.longest)))
        try:
            output = self._model(input_ids=batch.ids.long()[None], position_ids=batch.positions, use_cache=False)
        finally:
            _running.reset(token)
        return output.last_hidden_state[0, batch.memory]


class PaddedFallback:
    """transformers' forward pass over passages padded to the longest.

    Args:
        model: the base model.

    Attributes:
        needs_positions: True to give the model the passages' positions, if they are not those that it would count.
    """

    pads = True

    def __init__(self, model: Any):
        self._model = model
        self.needs_positions = False

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """Return the last hidden states at the memory tokens, in the order of rows: ``(memory tokens, hidden)``."""
        spans = Spans.of(batch.starts, batch.longest)
        is_token = torch.arange(batch.longest, device=spans.starts.device) < spans.starts.diff()[:, None]
        given = (
            {"position_ids": batch.positions[0, spans.padded()].view(is_token.shape)} if self.needs_positions else {}
        )
        output = self._model(
            input_ids=batch.ids.long()[spans.padded()].view(is_token.shape),
            attention_mask=is_token.long(),
            use_cache=False,
            **given,
        )
        return output.last_hidden_state.flatten(0, 1)[spans.unpadded(len(batch.ids))[batch.memory]]


@torch.inference_mode()
def choose_fallback(
    model: Any, attention: Attention, memory_token_ids: Sequence[int]
) -> PackedFallback | PaddedFallback:
    """Return the packed forward pass if it computes what the model computes on padded passages, else the padded one."""
    padded, packed = PaddedFallback(model), PackedFallback(model, attention)
    device = next(model.parameters()).device
    sample = _sample(memory_token_ids[0], model.config.vocab_size).to(device)
    expected = padded(sample)
    try:
        with _attention_implementation(model, _NAME):
            found = packed(sample)
        # Both add the same numbers in another order, so they differ by rounding.
        least = 0.9999 if expected.dtype == torch.float32 else 0.99
        # A window that the model only puts into its mask would be lost. The sample is too short to show that.
        agrees = _windows(model.config) <= packed.windows and (
            torch.cosine_similarity(found.float(), expected.float()).min() >= least
        )
    except Exception as error:  # noqa: BLE001 - an unknown model may fail in any way
        log.debug("%s cannot compute packed passages: %s", type(model).__name__, error)
        agrees = False
    if not agrees:
        log.info("%s computes padded passages, since packed ones give other values.", type(model).__name__)
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
    """Attend as transformers calls attention: ``(1, heads, rows, head_dim)`` in, ``(1, rows, heads, head_dim)`` out."""
    if unsupported := [name for name in _UNSUPPORTED if others.get(name) is not None]:
        raise NotImplementedError(f"attention with {', '.join(unsupported)}")
    model, spans = _running.get()
    model.windows.add(sliding_window)
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    options: dict[str, Any] = {
        "scale": query.shape[-1] ** -0.5 if scaling is None else scaling,
        "causal": getattr(module, "is_causal", True) if is_causal is None else is_causal,
        "window": sliding_window,
    }
    if softcap is not None:
        # Passages of similar length are computed together then, so that little of a batch is padding.
        model.pads = True
        return padded_attention(query, key, value, spans, spans, **options, softcap=softcap)[None], None
    return model.attention(query, key, value, spans, spans, **options)[None], None


AttentionInterface.register(_NAME, _attend)


def _windows(config: Any) -> set[int]:
    """Return the sliding-window sizes, in tokens, that the model's layers use."""
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return {window for window in windows if window}


@contextmanager
def _attention_implementation(model: Any, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _sample(memory_token_id: int, vocabulary: int) -> PackedBatch:
    """Return a batch of random passages with memory tokens in the middle and at the end."""
    lengths = np.array([3, 60, 1, 25])
    ids = np.random.default_rng(0).integers(0, vocabulary, lengths.sum())
    ids[::5] = memory_token_id
    ids[np.cumsum(lengths) - 1] = memory_token_id
    return pack(Passages(ids, lengths), np.arange(len(lengths)), (memory_token_id,))
