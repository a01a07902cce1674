"""A batch of prompts with the keys and values of their tokens, for the causal architectures that most models have."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from ..forward.native import NativeModel, rotate

# Padded tokens of the prompts that are read at once, by type of device. On a CPU, the states of more tokens leave its
# cache; on a GPU, fewer tokens do not fill it.
_READ_AT_ONCE = {"cpu": 1024}
_READ_AT_ONCE_ELSEWHERE = 16_384
# Tokens by which the cache grows when it is full.
_GROWTH = 32

Rotary = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the tokens' positions, ``(rows or 1, tokens, head_dim)``."""


class RunningBatch:
    """Prompts and the tokens that follow them, padded on the right.

    A row's own tokens are never after padding. So causal attention over prompts needs no mask, and no row depends on
    the length or the values of another.

    Args:
        model: a causal LM that ``supports`` accepts.
        prompts: input embeddings of each prompt, ``(length, hidden)``, from the shortest to the longest.
    """

    def __init__(self, model: Any, prompts: Sequence[torch.Tensor]):
        base = model.get_decoder()
        self._embedding: Any = model.get_input_embeddings()
        self._head: Any = model.get_output_embeddings()
        self._rotary: Any = base.rotary_emb
        self._norm: Any = base.norm
        self._prompts = prompts
        # Number of tokens of each row, which the CPU knows without waiting for a GPU.
        self._sizes = [len(prompt) for prompt in prompts]
        self._lengths = torch.tensor(self._sizes, device=self._embedding.weight.device)
        shape = len(prompts), max(self._sizes) + _GROWTH
        self._layers = [_Layer(layer, base.config, shape, prompts[0]) for layer in base.layers]
        self._windows = {layer.window for layer in self._layers}

    @staticmethod
    def supports(model: Any) -> bool:
        """Return True if the model's layers have the form computed here."""
        base = model.get_decoder()
        rope = (getattr(base.config, "rope_parameters", None) or {}).get("rope_type")
        # These rotary positions depend on the longest row of a batch.
        return NativeModel.supports(base) and rope not in ("dynamic", "longrope")

    def read(self) -> torch.Tensor:
        """Read the prompts and return the logits after each, ``(rows, vocabulary)``."""
        return torch.cat([self._read(rows) for rows in self._parts()])

    def append(self, ids: torch.Tensor) -> torch.Tensor:
        """Append a token ``(rows,)`` to each row and return the logits after it, ``(rows, vocabulary)``."""
        positions = self._lengths
        self._lengths = positions + 1
        self._sizes = [size + 1 for size in self._sizes]
        states = self._embedding(ids)[:, None]
        rotary = self._rotary(states, positions[:, None])
        masks = {window: _visible(positions, max(self._sizes), window, states.dtype) for window in self._windows}
        rows = torch.arange(len(ids), device=ids.device)
        for layer in self._layers:
            states = layer.append(states, rotary, (rows, positions), masks[layer.window])
        return self._head(self._norm(states[:, 0]))

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but some, given by their numbers; at least one."""
        kept = torch.tensor(rows, device=self._lengths.device)
        self._lengths = self._lengths[kept]
        self._sizes = [self._sizes[row] for row in rows]
        for layer in self._layers:
            layer.keep(kept, max(self._sizes) + _GROWTH)

    def join(self, other: "RunningBatch", rows: Sequence[int]) -> None:
        """Drop all rows but some, at least one, and append those of another batch, which has read its prompts."""
        kept = torch.tensor(rows, device=self._lengths.device)
        self._lengths = torch.cat([self._lengths[kept], other._lengths])
        filled = max(self._sizes[row] for row in rows)
        self._sizes = [*(self._sizes[row] for row in rows), *other._sizes]
        for layer, joined in zip(self._layers, other._layers, strict=True):
            layer.join(kept, filled, joined, max(self._sizes) + _GROWTH)

    def _parts(self) -> Iterator[slice]:
        """Yield the rows of the prompts to read at once."""
        limit = _READ_AT_ONCE.get(self._lengths.device.type, _READ_AT_ONCE_ELSEWHERE)
        begin = 0
        for end, prompt in enumerate(self._prompts):
            if (end + 1 - begin) * len(prompt) > limit and end > begin:
                yield slice(begin, end)
                begin = end
        yield slice(begin, len(self._prompts))

    def _read(self, rows: slice) -> torch.Tensor:
        states = pad_sequence(list(self._prompts[rows]), batch_first=True)
        positions = torch.arange(states.shape[1], device=states.device)
        rotary = self._rotary(states, positions[None])
        masks = {window: _causal(positions, window) for window in self._windows}
        *layers, top = self._layers
        for layer in layers:
            states = layer.read(states, rotary, rows, masks[layer.window])
        last = self._lengths[rows] - 1
        mask = _visible(last, states.shape[1], top.window, states.dtype)
        return self._head(self._norm(top.read_for_last(states, rotary, rows, last, mask)))


class _Layer:
    """A layer of the model, and the keys and values of all rows, ``(rows, key heads, capacity, head_dim)``."""

    def __init__(self, layer: Any, config: Any, shape: tuple[int, int], like: torch.Tensor):
        self._attention: Any = layer.self_attn
        self._input_norm: Any = layer.input_layernorm
        self._mlp_norm: Any = layer.post_attention_layernorm
        self._mlp: Any = layer.mlp
        self._q_norm: Any = getattr(self._attention, "q_norm", nn.Identity())
        self._k_norm: Any = getattr(self._attention, "k_norm", nn.Identity())
        # Mistral's configuration has one window for all layers, a Qwen layer has its own, and Llama has none.
        source = config if config.model_type == "mistral" else self._attention
        self.window: int | None = getattr(source, "sliding_window", None)
        rows, capacity = shape
        width: int = self._attention.head_dim
        # Zeros, because values that are masked get the weight zero, and NaN times zero is NaN.
        self._keys = like.new_zeros(rows, self._attention.k_proj.out_features // width, capacity, width)
        self._values = torch.zeros_like(self._keys)

    def keep(self, rows: torch.Tensor, capacity: int) -> None:
        self._keys, self._values = self._keys[:, :, :capacity][rows], self._values[:, :, :capacity][rows]

    def join(self, rows: torch.Tensor, filled: int, other: "_Layer", capacity: int) -> None:
        self._keys = _joined(self._keys, rows, filled, other._keys, capacity)
        self._values = _joined(self._values, rows, filled, other._values, capacity)

    def read(self, states: torch.Tensor, rotary: Rotary, rows: slice, mask: torch.Tensor | None) -> torch.Tensor:
        """Read whole prompts ``(rows, tokens, hidden)``; no mask stands for causal attention."""
        normed = self._input_norm(states)
        keys, values = self._remember(normed, rotary, rows)
        return self._finish(states, self._attend(self._queries(normed, rotary), keys, values, mask))

    def read_for_last(
        self, states: torch.Tensor, rotary: Rotary, rows: slice, last: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Read whole prompts and return the states ``(rows, hidden)`` at the last position of each."""
        normed = self._input_norm(states)
        keys, values = self._remember(normed, rotary, rows)
        cos, sin = (table[0, last][:, None] for table in rotary)
        row = torch.arange(len(last), device=last.device)
        query = self._queries(normed[row, last][:, None], (cos, sin))
        return self._finish(states[row, last][:, None], self._attend_one(query, keys, values, mask))[:, 0]

    def append(
        self, states: torch.Tensor, rotary: Rotary, places: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        """Read a token of each row, ``(rows, 1, hidden)``, at its place: row and position."""
        normed = self._input_norm(states)
        key, value = self._pairs(normed, rotary)
        length = mask.shape[-1]
        if length > self._keys.shape[2]:
            self._keys, self._values = _grown(self._keys), _grown(self._values)
        row, position = places
        self._keys[row, :, position] = key[:, :, 0]
        self._values[row, :, position] = value[:, :, 0]
        keys, values = self._keys[:, :, :length], self._values[:, :, :length]
        return self._finish(states, self._attend_one(self._queries(normed, rotary), keys, values, mask))

    def _queries(self, normed: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        return _rotated(self._q_norm(self._heads(self._attention.q_proj(normed))), rotary)

    def _pairs(self, normed: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        key = _rotated(self._k_norm(self._heads(self._attention.k_proj(normed))), rotary)
        return key, self._heads(self._attention.v_proj(normed)).transpose(1, 2)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self._attention.head_dim))

    def _remember(self, normed: torch.Tensor, rotary: Rotary, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the keys and values of whole prompts, and return them."""
        length = normed.shape[1]
        keys, values = self._keys[rows, :, :length], self._values[rows, :, :length]
        for stored, computed in zip((keys, values), self._pairs(normed, rotary), strict=True):
            stored.copy_(computed)
        return keys, values

    def _attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        groups = query.shape[1] // keys.shape[1]
        if groups > 1 and query.is_cuda:
            # CUDA's kernels for float32 do not support grouped heads.
            keys, values = (states.repeat_interleave(groups, 1) for states in (keys, values))
        return nn.functional.scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._attention.scaling,
            enable_gqa=query.shape[1] != keys.shape[1],
        )

    def _attend_one(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Attend from one token. The heads of a key head become several tokens of it, so that no key is repeated."""
        grouped = query.view(len(query), keys.shape[1], -1, query.shape[3])
        return self._attend(grouped, keys, values, mask).reshape(query.shape)

    def _finish(self, residual: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        residual = residual + self._attention.o_proj(attended.transpose(1, 2).flatten(2))
        return residual + self._mlp(self._mlp_norm(residual))


def _rotated(states: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    cos, sin = (table[:, :, None] for table in rotary)
    return rotate(states, cos, sin).transpose(1, 2)


def _grown(cache: torch.Tensor) -> torch.Tensor:
    return nn.functional.pad(cache, (0, 0, 0, max(_GROWTH, cache.shape[2] // 4)))


def _joined(cache: torch.Tensor, rows: torch.Tensor, filled: int, other: torch.Tensor, capacity: int) -> torch.Tensor:
    """Return some rows of a cache, of which only the first tokens are filled, and the rows of another, in one copy."""
    joined = cache.new_zeros(len(rows) + len(other), cache.shape[1], capacity, cache.shape[3])
    joined[: len(rows), :, :filled] = cache[rows, :, :filled]
    length = min(capacity, other.shape[2])
    joined[len(rows) :, :, :length] = other[:, :, :length]
    return joined


def _causal(positions: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """Return the mask of whole prompts ``(tokens, tokens)`` bool; None if it is just causal."""
    if window is None or len(positions) <= window:
        return None
    distance = positions[:, None] - positions
    return (distance >= 0) & (distance < window)


def _visible(positions: torch.Tensor, length: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to the scores of the token at each row's position, ``(rows, 1, 1, length)``."""
    distance = positions[:, None] - torch.arange(length, device=positions.device)
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    added = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return added.masked_fill_(hidden, -torch.inf)[:, None, None]
