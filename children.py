"""Child processes that run this package's own code.

They are started by a command. ``multiprocessing`` would run the program of this process again: a script without
``__main__`` guard, or that of a Ray worker.
"""

import ctypes
import pickle
import signal
import sys
import traceback

from .errors import PiscoIndexError

# Option of Linux's prctl: the signal that a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1


def serve_command(module: str, *arguments: int) -> list[str]:
    """Return a command that calls a module's ``serve``. The child finds modules where this process does.

    Args:
        module: full name of the module.
        arguments: arguments of ``serve``.
    """
    called = ", ".join(map(str, arguments))
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import serve; serve({called})"
    return [sys.executable, "-c", code]


def end_with_parent() -> None:
    """Let Linux kill this process when the thread that started it ends. Other systems have no such option.

    A child that hangs or is stopped would not notice by itself that its parent was killed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def ending(code: int | None) -> str:
    """Return how a process ended, by its exit code: "died of SIGKILL", "ended with exit code 1"."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    return f"died of {signal.Signals(-code).name}"


def portable(error: Exception) -> Exception:
    """Return an error that another process can receive: the same one, or one with its traceback as the message."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  made here
    except Exception:  # noqa: BLE001  any class may refuse to be pickled
        return PiscoIndexError("".join(traceback.format_exception(error)))
    return error
