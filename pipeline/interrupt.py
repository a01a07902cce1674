"""Stopping a build by signal: the first drains it, the second ends the process at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

from ..errors import BuildInterruptedError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Catches SIGINT and SIGTERM while it is entered; in a thread other than the main one it catches nothing.

    Attributes:
        requested: whether a signal came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._catch) for number in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _catch(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            # Threads in native code would hold up any softer end; what is committed is safe.
            os._exit(BuildInterruptedError.exit_code)
        self.requested = True
