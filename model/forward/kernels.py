"""GPU kernels for attention over packed passages, and the choice between them."""

import logging
import time
from importlib import import_module

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn

from .attention import Attention, Spans, attention_operator, padded_attention

log = logging.getLogger(__name__)

# Largest difference from exact attention over random normal values, above the rounding of 16-bit kernels.
_MAX_ERROR = 0.05


@attention_operator
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
    """Attend with torch's kernel for packed rows: CUDA, 16-bit dtypes."""
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


@attention_operator
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
    """Attend with the kernel of the package flash-attn, if it is installed."""
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


def _window(causal: bool, window: int | None) -> tuple[int, int]:
    """Return the tokens attended to before and after a token, as kernels count: without the token, -1 for all."""
    reach = -1 if window is None else window - 1
    return reach, 0 if causal else reach


def choose_attention(
    device: torch.device, dtype: torch.dtype, *, heads: int, key_heads: int, head_dim: int
) -> Attention:
    """Return the fastest attention that computes correctly on a device.

    Each kernel is compared with ``padded_attention``, then timed.

    Args:
        device: device to compute on.
        dtype: dtype of queries, keys and values.
        heads: number of query heads.
        key_heads: number of key and value heads.
        head_dim: width of a head.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return padded_attention
    sample = _Sample(device, dtype, heads, key_heads, head_dim)
    seconds: dict[Attention, float] = {}
    for library, kernel in (("torch", torch_attention), ("flash-attn", flash_attention)):
        try:
            if sample.error(kernel) < _MAX_ERROR:
                seconds[kernel] = sample.seconds(kernel)
            else:
                log.warning("The attention of %s computes wrong values on %s and is not used.", library, device)
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            log.debug("The attention of %s cannot be used on %s: %s", library, device, error)
    if not seconds:
        log.warning("No attention kernel for packed rows works on %s; passages are padded for attention.", device)
    return min(seconds, key=lambda kernel: seconds[kernel], default=padded_attention)


class _Sample:
    """Passages of random numbers with the lengths of paragraphs."""

    # Enough passages to time a kernel.
    repeats = 20

    def __init__(self, device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, head_dim: int):
        generator = torch.Generator().manual_seed(0)
        lengths = torch.tensor([1, 133, 64, 200, 9] * self.repeats)
        last = torch.tensor([1, 9, 5, 13, 2] * self.repeats)
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
        """Return the largest error over causal, windowed and bidirectional attention, and that of the last queries."""
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
        # Python's max would ignore a NaN.
        return float(torch.tensor(errors).max())

    def seconds(self, attention: Attention, times: int = 20) -> float:
        """Return the seconds that ``times`` calls take."""

        def run(times: int) -> float:
            torch.cuda.synchronize(self.query.device)
            began = time.perf_counter()
            for _ in range(times):
                attention(self.query, self.key, self.value, self.keys, self.keys, scale=self.scale)
            torch.cuda.synchronize(self.query.device)
            return time.perf_counter() - began

        run(2)
        return run(times)
