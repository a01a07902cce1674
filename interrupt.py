"""Stop by signal: the first asks for an orderly end, the second ends the process at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

from .errors import BuildInterruptedError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Catches SIGINT and SIGTERM inside a ``with`` block of the main thread; in other threads it catches nothing.

    Attributes:
        requested: True if a signal came.
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
            # A softer end would wait for threads in native code. What is committed is safe.
            os._exit(BuildInterruptedError.exit_code)
        self.requested = True
