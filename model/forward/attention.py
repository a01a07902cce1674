"""Attention over packed passages: each token sees its own passage only.

Queries, keys and values are ``(rows, heads, head_dim)``, rows of one passage behind those of another. Queries may
be fewer than keys; those of a passage then belong to its last tokens.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Protocol

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Spans:
    """Which rows belong to which passage.

    Attributes:
        starts: ``(passages + 1,)`` int32, the row where each passage begins, and the end.
        longest: no passage has more rows; ``()`` int64 on the CPU, so that graphs are not made for one number.
    """

    starts: torch.Tensor
    longest: torch.Tensor

    @classmethod
    def of(cls, starts: torch.Tensor, longest: int) -> "Spans":
        """Make them of a number."""
        return cls(starts, torch.tensor(longest))

    def padded(self) -> torch.Tensor:
        """``(passages * longest,)``: the row of each token when all are padded; padding has any."""
        token = torch.arange(int(self.longest), device=self.starts.device)
        return (self.starts[:-1, None] + token).clamp(max=self.starts[-1] - 1).flatten()

    def unpadded(self, rows: int) -> torch.Tensor:
        """``(rows,)``: the padded token of each row; rows in no passage have any."""
        row = torch.arange(rows, device=self.starts.device)
        passage = torch.searchsorted(self.starts[1:], row, right=True).clamp(max=len(self.starts) - 2)
        longest = int(self.longest)
        return passage * longest + (row - self.starts[passage]).clamp(max=longest - 1)


class Attention(Protocol):
    """What attends: ``(query rows, heads, head_dim)`` for every query; rows in no passage hold anything."""

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
        """Attend.

        Args:
            query: ``(query rows, heads, head_dim)``.
            key: ``(key rows, key heads, head_dim)``; each serves ``heads / key heads`` heads.
            value: likewise.
            queries: of the query's rows.
            keys: of the key's and value's rows.
            scale: of the scores.
            causal: whether a token sees only what stands before it, and itself.
            window: of how many tokens it sees the last, itself included; None is all.
            softcap: bound of the scores in some models, which ``padded_attention`` alone knows.
        """
        ...


def _attention(kernel: Callable[..., torch.Tensor]) -> Attention:
    """Make an operator of a kernel, so that a compiled layer is one graph, for any number and length of passages."""

    # The operator's schema is read from these annotations.
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


@_attention
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
    """Pad to the longest passage, for the scores alone: where no kernel for packed rows can be used."""
    passages = len(keys.starts) - 1
    padded_query, padded_key, padded_value = (
        states.flatten(1)[spans.padded()].view(passages, int(spans.longest), -1, states.shape[2]).transpose(1, 2)
        for states, spans in ((query, queries), (key, keys), (value, keys))
    )
    # Causal attention over padding on the right needs no mask: what stands behind is not seen.
    simple = causal and window is None and len(query) == len(key)
    visible = None if simple else _visible(queries, keys, causal, window)[:, None]
    if query.is_cuda or softcap is not None:
        # Of a GPU's kernels those for float32 know no groups.
        groups = query.shape[1] // key.shape[1]
        padded_key, padded_value = (states.repeat_interleave(groups, 1) for states in (padded_key, padded_value))
    if softcap is None:
        attended = nn.functional.scaled_dot_product_attention(
            padded_query,
            padded_key,
            padded_value,
            attn_mask=visible,
            is_causal=simple,
            scale=scale,
            enable_gqa=padded_query.shape[1] != padded_key.shape[1],
        )
    else:
        attended = _softcapped(padded_query, padded_key, padded_value, visible, scale, softcap)
    return attended.transpose(1, 2).flatten(0, 1)[queries.unpadded(len(query))]


def _visible(queries: Spans, keys: Spans, causal: bool, window: int | None) -> torch.Tensor:
    """``(passages, longest query, longest key)``: which keys a query sees."""
    device = keys.starts.device
    lengths = keys.starts.diff()[:, None, None]
    skipped = lengths - queries.starts.diff()[:, None, None]
    position = skipped + torch.arange(int(queries.longest), device=device)[:, None]
    other = torch.arange(int(keys.longest), device=device)
    # What is padding sees the first key, since softmax over nothing is not a number.
    visible = other < lengths.clamp(min=1)
    if causal:
        visible = visible & (other <= position)
    if window is not None:
        distance = (position - other).abs()
        visible = visible & (distance < window)
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


def _window(causal: bool, window: int | None) -> tuple[int, int]:
    """How many tokens before and behind it a token sees, as kernels count: without itself, -1 is all."""
    reach = -1 if window is None else window - 1
    return reach, 0 if causal else reach


@_attention
def torch_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: Spans,
    keys: Spans,
    scale: float,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """The kernel for packed rows in torch: CUDA, 16 bits."""
    attended = varlen_attn(
        query,
        key,
        value,
        queries.starts,
        keys.starts,
        int(queries.longest),
        int(keys.longest),
        scale=scale,
        window_size=_window(causal, window),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(attended, torch.Tensor)
    return attended


@_attention
def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: Spans,
    keys: Spans,
    scale: float,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """The kernel of the package flash-attn, where it is installed."""
    return import_module("flash_attn").flash_attn_varlen_func(
        query,
        key,
        value,
        queries.starts,
        keys.starts,
        int(queries.longest),
        int(keys.longest),
        softmax_scale=scale,
        causal=causal,
        window_size=_window(causal, window),
    )


def choose_attention(
    device: torch.device, dtype: torch.dtype, *, heads: int, key_heads: int, head_dim: int
) -> Attention:
    """The fastest attention that is right here: each kernel is compared with ``padded_attention`` and timed.

    Args:
        device: where it is to run.
        dtype: of queries, keys and values.
        heads: of queries.
        key_heads: of keys and values.
        head_dim: width of a head.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return padded_attention
    sample = _Sample(device, dtype, heads, key_heads, head_dim)
    seconds: dict[Attention, float] = {}
    for whose, kernel in (("torch's", torch_attention), ("flash-attn's", flash_attention)):
        try:
            if sample.error(kernel) < _MOST_ERROR:
                seconds[kernel] = sample.seconds(kernel)
            else:
                log.warning("%s attention gives other values than expected on %s and is not used.", whose, device)
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            log.debug("%s attention cannot be used on %s: %s", whose, device, error)
    if not seconds:
        log.warning("No attention for packed rows can be used on %s; passages are padded for it.", device)
    return min(seconds, key=lambda kernel: seconds[kernel], default=padded_attention)


# Of values of a normal distribution in 16 bits.
_MOST_ERROR = 0.05


class _Sample:
    """Passages of random numbers, of the length of paragraphs."""

    def __init__(self, device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, head_dim: int):
        generator = torch.Generator().manual_seed(0)
        lengths = torch.tensor([1, 133, 64, 200, 9] * 20)
        last = torch.tensor([1, 9, 5, 13, 2] * 20)
        self.keys, self.queries = (
            Spans.of(nn.functional.pad(each.cumsum(0), (1, 0)).to(device, torch.int32), int(each.max()))
            for each in (lengths, last)
        )
        self.query, self.key, self.value, self.last_query = (
            torch.randn(int(rows.sum()), count, head_dim, generator=generator).to(device, dtype)
            for rows, count in ((lengths, heads), (lengths, key_heads), (lengths, key_heads), (last, heads))
        )
        self.scale = head_dim**-0.5

    def error(self, attention: Attention) -> float:
        """The largest, over full, bidirectional and windowed attention, and the last queries alone."""
        errors = []
        for query, queries, causal, window in (
            (self.query, self.keys, True, None),
            (self.query, self.keys, True, 7),
            (self.query, self.keys, False, None),
            (self.last_query, self.queries, True, None),
        ):
            options = {"scale": self.scale, "causal": causal, "window": window}
            found = attention(query, self.key, self.value, queries, self.keys, **options)
            expected = padded_attention(
                query.float(), self.key.float(), self.value.float(), queries, self.keys, **options
            )
            errors.append(float((found.float() - expected).abs().max()))
        # Python's max would pass over what is not a number.
        return float(torch.tensor(errors).max())

    def seconds(self, attention: Attention, repeats: int = 20) -> float:
        def run(times: int) -> float:
            torch.cuda.synchronize(self.query.device)
            began = time.perf_counter()
            for _ in range(times):
                attention(self.query, self.key, self.value, self.keys, self.keys, scale=self.scale)
            torch.cuda.synchronize(self.query.device)
            return time.perf_counter() - began

        run(2)
        return run(repeats)
