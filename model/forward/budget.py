"""How many tokens a batch may have: as many as the device's memory holds, found by trying, and remembered."""

import json
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from platformdirs import user_cache_path

log = logging.getLogger(__name__)

# Larger batches fill no more of a GPU's units and take memory from others.
MOST_TOKENS = 131_072
# Of the memory that is free: fragments and what other libraries take need some, too.
_USED = 0.85
_PROBE = 4096
_STEP = 1024


def find_token_budget(peak_of: Callable[[int], int], free: int, known: int | None = None) -> int:
    """The largest token budget, in steps of 1,024 and up to 131,072, whose batch fits.

    Args:
        peak_of: runs a batch of so many tokens and returns the bytes that it took at most.
        free: bytes that there are.
        known: what was found another time; it is only tried once more.

    Returns:
        the budget. The batch of it was run.

    Raises:
        torch.OutOfMemoryError: if not even 1,024 tokens fit.
    """
    if known is None:
        try:
            per_token = max(peak_of(_PROBE), 1) / _PROBE
        except torch.OutOfMemoryError:
            known = _PROBE // 2
        else:
            known = min(int(free * _USED / per_token), MOST_TOKENS)
    budget = max(known // _STEP, 1) * _STEP
    while True:
        try:
            peak_of(budget)
        except torch.OutOfMemoryError:
            if budget == _STEP:
                raise
            budget = max(budget // 2 // _STEP, 1) * _STEP
        else:
            return budget


class TokenBudget:
    """A token budget that is less after a batch that did not fit, and is tried again later.

    Another process may have taken the memory for a moment, so the budget is restored after some calls: more of them
    each time that it does not fit again, since it may be too large for good.

    Args:
        most: the budget.

    Attributes:
        most: the budget.
        now: most tokens of a batch at present.
    """

    def __init__(self, most: int):
        self.most = self.now = most
        self._calls_left, self._patience = 0, 1
        self._failed = False

    def begin_call(self) -> None:
        """Tell that a call begins, of some batches."""
        if self._calls_left > 0:
            self._calls_left -= 1
        else:
            if self.now == self.most:
                self._patience = 1
            self.now = self.most
        self._failed = False

    def halve(self, failed: int) -> None:
        """Tell that a batch of so many tokens did not fit."""
        self.now = max(failed // 2, 1)
        if not self._failed:
            self._calls_left, self._patience = self._patience, 2 * self._patience
        self._failed = True


class KnownBudgets:
    """Token budgets that were found, by device and model, in a file of the user's cache.

    The file is an aid: one that cannot be read or written is as good as none.
    """

    def __init__(self, path: Path | None = None):
        self._path = path or user_cache_path("pisco-index") / "token-budgets.json"

    def get(self, key: str) -> int | None:
        """What is known of a device and model."""
        value = self._read().get(key)
        return value if isinstance(value, int) and 0 < value <= MOST_TOKENS else None

    def set(self, key: str, budget: int) -> None:
        """Remember it."""
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
