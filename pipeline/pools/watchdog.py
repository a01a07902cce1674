"""Detect workers that died or hang."""

import re
import time
from collections.abc import Callable

import torch

from ...errors import PiscoIndexError

# Words for a device that cannot be used again in the same process. A lack of memory is not among them.
_DEVICE_FAILED = re.compile(
    r"(CUDA|HIP) error: (?!out of memory|CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED))"
    r"|CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)|device-side assert"
)


class WorkerDiedError(PiscoIndexError):
    """A worker's process or node ended while it had shards."""


class WorkerHungError(WorkerDiedError):
    """A worker took no step for too long and was ended."""


def is_worker_broken(error: BaseException | None) -> bool:
    """Return True if a worker that raised this error must be replaced: a GPU stays lost after a failed assertion."""
    if isinstance(error, torch.AcceleratorError):
        return "out of memory" not in str(error)
    if isinstance(error, RuntimeError):
        return _DEVICE_FAILED.search(str(error)) is not None
    return isinstance(error, WorkerDiedError)


class Watchdog:
    """Detects that a worker takes no step for too long.

    Long gaps between polls are not counted, so that a paused driver does not make its workers look hung.

    Args:
        limit_s: seconds without a step after which a worker hangs.
        clock: clock in seconds that never goes back.
    """

    LONGEST_GAP_S = 5.0

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic):
        self.limit_s = limit_s
        self._clock = clock
        self._steps: int | None = None
        self._polled = clock()
        self._idle_s = 0.0

    def is_hung(self, steps: int | None, *, busy: bool) -> bool:
        """Poll the worker and return True if it hangs.

        Args:
            steps: number of steps that the worker reported last.
            busy: True if the worker has something to do.
        """
        now = self._clock()
        self._idle_s += min(now - self._polled, self.LONGEST_GAP_S)
        self._polled = now
        if not busy or steps != self._steps:
            self._steps, self._idle_s = steps, 0.0
        return self._idle_s > self.limit_s
