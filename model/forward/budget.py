"""The token budget: the largest number of tokens in a batch. On a GPU it is found by trying, and cached."""

import json
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

from ...configs.names import AttentionName
from .failures import is_out_of_memory

log = logging.getLogger(__name__)

# Larger batches do not fill a GPU any better, and leave less memory to other processes.
MAX_TOKENS = 131_072
# Share of the free memory to use: fragmentation and other libraries need the rest.
_USED_SHARE = 0.85
# Tokens of the batch whose memory is measured first.
_PROBE = 4096
# Budgets are multiples of this, and at least this.
_STEP = 1024


def gpu_token_budget(
    device: torch.device,
    model_config: Any,
    dtype: torch.dtype,
    run: Callable[[int], None],
    cache: "BudgetCache",
    attention: AttentionName = "auto",
) -> int:
    """Return the largest token budget that fits a GPU, from the cache or by trying.

    Args:
        device: the GPU.
        model_config: transformers configuration of the compressor, which names the budget in the cache.
        dtype: dtype of the compressor.
        run: function that computes a batch of a given number of tokens.
        cache: budgets found before.
        attention: name of the attention kernel; part of the name in the cache.

    Raises:
        torch.OutOfMemoryError: not even 1,024 tokens fit.
    """

    def peak_of(tokens: int) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run(tokens)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before

    # The first batch also loads libraries and kernels, whose memory belongs to no batch.
    run(_STEP)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    # A GPU that other processes use too has another budget.
    key = f"{_name_of(device, model_config, dtype)}, {free >> 30} GiB free"
    key += "" if attention == "auto" else f", {attention}"
    cached = cache.get(key)
    budget = find_token_budget(peak_of, free, cached)
    if budget != cached:
        cache.set(key, budget)
    log.info("%s computes batches of up to %d tokens", device, budget)
    return budget


def find_token_budget(peak_of: Callable[[int], int], free: int, cached: int | None = None) -> int:
    """Return the largest token budget whose batch fits, a multiple of 1,024 up to 131,072. A batch of it was run.

    Args:
        peak_of: function that runs a batch of a given number of tokens and returns its peak GPU memory in bytes.
        free: free GPU memory in bytes.
        cached: budget found before, which is tried first.

    Raises:
        torch.OutOfMemoryError: not even 1,024 tokens fit.
    """
    start = cached
    if start is None:
        try:
            per_token = max(peak_of(_PROBE), 1) / _PROBE
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            start = _PROBE // 2
        else:
            start = min(int(free * _USED_SHARE / per_token), MAX_TOKENS)
    budget = max(start // _STEP, 1) * _STEP
    while True:
        try:
            peak_of(budget)
        except RuntimeError as error:
            if not is_out_of_memory(error) or budget == _STEP:
                raise
            budget = max(budget // 2 // _STEP, 1) * _STEP
        else:
            return budget


def _name_of(device: torch.device, model_config: Any, dtype: torch.dtype) -> str:
    """Return a cache key: everything that the GPU memory of a batch depends on."""
    properties = torch.cuda.get_device_properties(device)
    sizes = "x".join(
        str(getattr(model_config, name, "?")) for name in ("num_hidden_layers", "hidden_size", "intermediate_size")
    )
    return f"{properties.name}, {properties.total_memory >> 20} MiB, {model_config.model_type} {sizes}, {dtype}"


class TokenBudget:
    """A token budget that shrinks when a batch does not fit, and is restored later.

    Another process may have taken the memory for a moment, so the budget is restored after some calls. Each time that
    it does not fit again, the number of calls doubles, since the budget may be too large for good.

    Args:
        limit: the budget.

    Attributes:
        limit: the budget.
        current: largest current number of tokens in a batch.
    """

    def __init__(self, limit: int):
        self.limit = self.current = limit
        self._calls_left, self._patience = 0, 1
        self._failed = False

    def begin_call(self) -> None:
        """Note that a call of several batches begins."""
        if self._calls_left > 0:
            self._calls_left -= 1
        else:
            if self.current == self.limit:
                self._patience = 1
            self.current = self.limit
        self._failed = False

    def halve(self, failed: int) -> None:
        """Note that a batch of ``failed`` tokens did not fit, and halve the budget."""
        self.current = max(failed // 2, 1)
        if not self._failed:
            self._calls_left, self._patience = self._patience, 2 * self._patience
        self._failed = True


def _cache_folder() -> Path:
    try:
        return user_cache_path("pisco-index")
    except RuntimeError:
        # A user whom the system does not know may have no home folder. Nothing can be read or written here.
        return Path(os.devnull)


class BudgetCache:
    """Token budgets found before, by device and model, in a file of the user's cache folder.

    The file only saves time: one that cannot be read or written is ignored.
    """

    def __init__(self, path: Path | None = None):
        self._path = path or _cache_folder() / "token-budgets.json"

    def get(self, key: str) -> int | None:
        """Return the budget of a device and model, or None."""
        value = self._read().get(key)
        return value if isinstance(value, int) and 0 < value <= MAX_TOKENS else None

    def set(self, key: str, budget: int) -> None:
        """Store the budget of a device and model."""
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            with os.fdopen(handle, "w") as file:
                json.dump(self._read() | {key: budget}, file, indent=1)
            Path(name).replace(self._path)

    def _read(self) -> dict[str, object]:
        with suppress(OSError, ValueError):
            values = json.loads(self._path.read_text())
            if isinstance(values, dict):
                return values
        return {}
