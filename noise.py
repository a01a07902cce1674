"""Keep what Lance prints about damaged bytes off the terminal, where the command's own error says it better."""

import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Rust prints a panic in several pieces. What comes within this time belongs together, in seconds.
_PAUSE_S = 0.02
_PIECE = 1 << 16
# Longest time to wait for the last output to be passed on, in seconds.
_END_S = 1.0
_NOISE = re.compile(
    rb"\[[0-9T:.-]+Z WARN +lance[^\n]*\n|"
    rb"(?:^\n)?thread '[^'\n]*' (?:\(\d+\) )?panicked at [^\n]*\n"
    # The message of a panic: its first line and indented ones, such as the two sides of a comparison; then a backtrace.
    rb"[^\n]*(?:\n|\Z)(?: [^\n]*\n)*(?:stack backtrace:\n(?: [^\n]*\n)*)?(?:note: [^\n]*`RUST_BACKTRACE=[^\n]*\n)?",
    re.MULTILINE,
)


@contextmanager
def without_panics() -> Iterator[None]:
    """Drop Rust's panics and Lance's warnings from the standard error of this process; pass on everything else.

    Lance turns a panic into an exception, but Rust has printed it by then, straight to file descriptor 2. That becomes
    a pipe here, which a child process reads; Python writes to a copy of the former one. A child process, unlike a
    thread, also passes on the last words of native code that ends this process. With LANCE_LOG set, nothing is dropped.
    Only a program's own process may do this, before it starts any thread.
    """
    if "LANCE_LOG" in os.environ or sys.stderr is None or not hasattr(os, "fork"):
        yield
        return
    former, stderr = os.dup(2), sys.stderr
    reading, writing = os.pipe()
    stderr.flush()
    child = os.fork()
    if not child:
        _serve(reading, writing, former)
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr = os.fdopen(former, "w", 1, encoding=stderr.encoding, errors=stderr.errors, closefd=False)
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = stderr
        # This closes the pipe, so that the child ends. If another process has the pipe too, it is not waited for.
        os.dup2(former, 2)
        until = time.monotonic() + _END_S
        while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < until:
            time.sleep(0.001)


def _serve(reading: int, writing: int, to: int) -> None:
    """Pass on a pipe in a child process until nobody can write to it any more, and end."""
    try:
        # A terminal and `timeout` send their signals to all processes of a command.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        # The pipe ends when all others have closed it. So does the command's output, for whoever reads that.
        for number in (0, 1, 2, writing):
            os.close(number)
        _pass_on(reading, to)
    finally:
        os._exit(0)


def _pass_on(reading: int, to: int) -> None:
    """Copy from a pipe to a file, without panics and warnings, until the pipe is closed."""
    while piece := os.read(reading, _PIECE):
        while len(piece) < _PIECE and select.select([reading], [], [], _PAUSE_S)[0]:
            if not (more := os.read(reading, _PIECE)):
                break
            piece += more
        # Reading goes on if the terminal is gone: a full pipe would block whoever writes to it.
        with suppress(OSError):
            os.write(to, _NOISE.sub(b"", piece))
