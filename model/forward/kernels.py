"""GPU kernels for attention over packed passages, and the choice between them."""

import logging
from importlib import import_module

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn

from ...configs.names import AttentionName
from ...errors import ConfigError
from .attention import Attention, Spans, attention_operator, padded_attention
from .failures import first_line, is_out_of_memory

log = logging.getLogger(__name__)

# Largest difference from exact attention over random normal values, above the rounding of 16-bit kernels.
_MAX_ERROR = 0.05
# A kernel that is not torch's own must be this much faster to be chosen.
_MARGIN = 1.1
# Largest number of times that the sample is repeated to time a kernel: 130,000 tokens, a usual batch of a large GPU.
_TIMED_REPEATS = 16


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
    device: torch.device,
    dtype: torch.dtype,
    *,
    heads: int,
    key_heads: int,
    head_dim: int,
    name: AttentionName = "auto",
) -> Attention:
    """Return the named attention, or the fastest one that computes correctly on a device.

    Each kernel is compared with ``padded_attention``, then timed.

    Args:
        device: device to compute on.
        dtype: dtype of queries, keys and values.
        heads: number of query heads.
        key_heads: number of key and value heads.
        head_dim: width of a head.
        name: name of the kernel.

    Raises:
        ConfigError: the named kernel cannot be used on this device, or computes wrong values there.
    """
    is_possible = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if name == "padded" or (name == "auto" and not is_possible):
        return padded_attention
    if not is_possible:
        raise _unusable(name, f"it needs a GPU and a dtype of 16 bits, not {device} and {dtype}")
    sample = _Sample(device, dtype, heads, key_heads, head_dim)
    seconds: dict[Attention, float] = {}
    for library, kernel in (("torch", torch_attention), ("flash-attn", flash_attention)):
        if name not in ("auto", library):
            continue
        try:
            if sample.error(kernel) < _MAX_ERROR:
                seconds[kernel] = sample.seconds(kernel)
            elif name == library:
                raise _unusable(name, f"it computes wrong values on {device}")
            else:
                log.warning("The attention of %s computes wrong values on %s and is not used.", library, device)
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            if name == library:
                raise _unusable(name, first_line(error)) from error
            log.debug("The attention of %s cannot be used on %s: %s", library, device, error)
    if not seconds:
        log.warning(
            "No attention kernel for packed rows works on %s; passages are padded for attention, which is slower. "
            "torch's kernel needs an NVIDIA GPU of compute capability 8.0 (Ampere) or newer; for others install "
            "flash-attn.",
            device,
        )
        return padded_attention
    # torch's own comes first. Another one must be clearly faster, so that noise does not change rounding between runs.
    first = next(iter(seconds))
    chosen = min(seconds, key=lambda kernel: seconds[kernel] * (1 if kernel is first else _MARGIN))
    times = ", ".join(f"{_name(kernel)} {1000 * taken:.2f} ms" for kernel, taken in seconds.items())
    log.info("%s uses %s (of %s a call)", device, _name(chosen), times)
    return chosen


def _unusable(name: str, reason: str) -> ConfigError:
    return ConfigError(f"The attention kernel {name} cannot be used: {reason}. Set attention to auto or padded.")


def _name(kernel: Attention) -> str:
    return getattr(kernel, "__name__", str(kernel))


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
        """Return the seconds of a call with 130,000 tokens by the device's clock, or with as many as fit its memory.

        Raises:
            RuntimeError: not even the sample fits the device's memory.
        """
        repeats = _TIMED_REPEATS
        while True:
            try:
                return self._seconds(attention, times, repeats)
            except RuntimeError as error:
                if not is_out_of_memory(error) or repeats == 1:
                    raise
            torch.cuda.empty_cache()
            repeats //= 2

    def _seconds(self, attention: Attention, times: int, repeats: int) -> float:
        lengths = self.keys.starts.diff().repeat(repeats)
        starts = nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        spans = Spans.of(starts, int(self.keys.longest))
        query, key, value = (states.repeat(repeats, 1, 1) for states in (self.query, self.key, self.value))
        stream = torch.cuda.current_stream(self.query.device)
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for step in range(times + 2):
            # The first calls load the kernel.
            if step == 2:
                began.record(stream)
            attention(query, key, value, spans, spans, scale=self.scale)
        ended.record(stream)
        ended.synchronize()
        return began.elapsed_time(ended) / 1000 / times
