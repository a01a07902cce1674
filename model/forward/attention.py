"""Attention over packed passages: each token attends to its own passage only.

Queries, keys and values are ``(rows, heads, head_dim)``, the rows of one passage after those of another. There may be
fewer queries than keys; the queries of a passage then belong to its last tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Protocol

import torch
from torch import nn


@dataclass(frozen=True, eq=False)
class Spans:
    """The rows of each passage.

    Attributes:
        starts: row at which each passage begins, and the end of the last one, ``(passages + 1,)`` int32
            (``cu_seqlens`` in flash-attn).
        longest: number of rows of the longest passage, ``()`` int64 on the CPU. It is a tensor so that a compiled
            graph does not depend on its value.
    """

    starts: torch.Tensor
    longest: torch.Tensor

    @classmethod
    def of(cls, starts: torch.Tensor, longest: int) -> "Spans":
        """Make spans with ``longest`` given as a number."""
        return cls(starts, torch.tensor(longest))

    def padded(self) -> torch.Tensor:
        """Return the row of each token of the padded passages, ``(passages * longest,)``; padding gets any row."""
        token = torch.arange(int(self.longest), device=self.starts.device)
        return (self.starts[:-1, None] + token).clamp(max=self.starts[-1] - 1).flatten()

    def unpadded(self, rows: int) -> torch.Tensor:
        """Return the padded token of each row, ``(rows,)``; rows after the last passage get any token."""
        row = torch.arange(rows, device=self.starts.device)
        passage = torch.searchsorted(self.starts[1:], row, right=True).clamp(max=len(self.starts) - 2)
        longest = int(self.longest)
        return passage * longest + (row - self.starts[passage]).clamp(max=longest - 1)


class Attention(Protocol):
    """An attention function over packed passages."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        queries: Spans,
        keys: Spans,
        *,
        scale: float,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """Return the output, ``(query rows, heads, head_dim)``. Rows after the last passage may hold anything.

        Args:
            query: ``(query rows, heads, head_dim)``.
            key: ``(key rows, key heads, head_dim)``; each key head serves ``heads / key heads`` heads.
            value: ``(key rows, key heads, head_dim)``.
            queries: passages of the query rows.
            keys: passages of the key and value rows.
            scale: factor of the scores.
            causal: True if a token attends only to itself and to the tokens before it.
            window: number of last tokens that a token attends to, itself included; None for all.
            softcap: bound of the scores in some models; only ``padded_attention`` supports it.
        """
        ...


def attention_operator(kernel: Callable[..., torch.Tensor]) -> Attention:
    """Make a torch operator of a kernel.

    A compiled layer is then a single graph, which does not depend on the number and lengths of the passages.
    """

    # torch reads the operator's schema from these annotations.
    @torch.library.custom_op(f"pisco_index::{kernel.__name__}", mutates_args=())
    def operator(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        query_starts: torch.Tensor,
        longest_query: torch.Tensor,
        key_starts: torch.Tensor,
        longest_key: torch.Tensor,
        scale: float,
        causal: bool,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        queries, keys = Spans(query_starts, longest_query), Spans(key_starts, longest_key)
        terms = {} if softcap is None else {"softcap": softcap}
        return kernel(query, key, value, queries, keys, scale, causal, window, **terms)

    @operator.register_fake
    def _(query: torch.Tensor, _key: torch.Tensor, value: torch.Tensor, *_: object) -> torch.Tensor:
        return query.new_empty(*query.shape[:2], value.shape[2])

    @wraps(kernel)
    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        queries: Spans,
        keys: Spans,
        *,
        scale: float,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        spans = queries.starts, queries.longest, keys.starts, keys.longest
        return operator(query, key, value, *spans, scale, causal, window, softcap)

    return attention


@attention_operator
def padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: Spans,
    keys: Spans,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attend over passages padded to the longest, for devices and dtypes without a kernel for packed rows.

    Only attention is padded; the rest of a layer computes packed rows.
    """
    passages = len(keys.starts) - 1
    padded_query, padded_key, padded_value = (
        states.flatten(1)[spans.padded()].view(passages, int(spans.longest), -1, states.shape[2]).transpose(1, 2)
        for states, spans in ((query, queries), (key, keys), (value, keys))
    )
    # Causal attention needs no mask for padding on the right: no token attends to what follows it.
    needs_no_mask = causal and window is None and len(query) == len(key)
    visible = None if needs_no_mask else _visible(queries, keys, causal, window)[:, None]
    if query.is_cuda or softcap is not None:
        # CUDA's kernels for float32 do not support grouped heads.
        groups = query.shape[1] // key.shape[1]
        padded_key, padded_value = (states.repeat_interleave(groups, 1) for states in (padded_key, padded_value))
    if softcap is None:
        attended = nn.functional.scaled_dot_product_attention(
            padded_query,
            padded_key,
            padded_value,
            attn_mask=visible,
            is_causal=needs_no_mask,
            scale=scale,
            enable_gqa=padded_query.shape[1] != padded_key.shape[1],
        )
    else:
        attended = _softcapped(padded_query, padded_key, padded_value, visible, scale, softcap)
    return attended.transpose(1, 2).flatten(0, 1)[queries.unpadded(len(query))]


def _visible(queries: Spans, keys: Spans, causal: bool, window: int | None) -> torch.Tensor:
    """Return the mask of the keys that each query attends to, ``(passages, longest query, longest key)`` bool."""
    device = keys.starts.device
    lengths = keys.starts.diff()[:, None, None]
    skipped = lengths - queries.starts.diff()[:, None, None]
    position = skipped + torch.arange(int(queries.longest), device=device)[:, None]
    other = torch.arange(int(keys.longest), device=device)
    visible = other < lengths.clamp(min=1)
    if causal:
        visible = visible & (other <= position)
    if window is not None:
        distance = (position - other).abs()
        visible = visible & (distance < window)
    # Padding attends to the first key, since softmax over no key is not a number.
    return visible | ((position >= lengths) & (other == 0))


def _softcapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor | None,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    scores = torch.tanh(query @ key.transpose(2, 3) * scale / softcap) * softcap
    if visible is None:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1, dtype=torch.float32)
    return weights.to(value.dtype) @ value
