"""Noticing workers that died or hang."""

import time
from collections.abc import Callable

import torch

from ...errors import PiscoIndexError, without_credentials

_LONGEST = 500


class WorkerDiedError(PiscoIndexError):
    """A worker's process or node went away with its shards."""


class WorkerHungError(WorkerDiedError):
    """A worker took no step for too long, and was ended."""


def describe(error: BaseException) -> str:
    """An error in a line: its kind and the first line of what it says."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {without_credentials(lines[0])}"[:_LONGEST]


def is_worker_broken(error: BaseException) -> bool:
    """Whether a worker that raised this can do nothing more: a device that failed an assertion fails ever after."""
    return isinstance(error, (WorkerDiedError, torch.AcceleratorError))


class Watchdog:
    """Notices a worker that takes no step for too long.

    Time counts only between looks that are close together: a driver that was itself stopped blames nobody.

    Args:
        limit_s: how long is too long.
        clock: seconds from some beginning, never set back.
    """

    LONGEST_LOOK_S = 5.0

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic):
        self.limit_s = limit_s
        self._clock = clock
        self._steps: int | None = None
        self._looked = clock()
        self._idle_s = 0.0

    def is_hung(self, steps: int | None, *, busy: bool) -> bool:
        """Look at the worker: the steps it has taken by its last answer, and whether it has anything to do."""
        now = self._clock()
        self._idle_s += min(now - self._looked, self.LONGEST_LOOK_S)
        self._looked = now
        if not busy or steps != self._steps:
            self._steps, self._idle_s = steps, 0.0
        return self._idle_s > self.limit_s
