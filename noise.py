"""Keep what Lance prints about damaged bytes off the terminal, where the command's own error says it better."""

import os
import re
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

# Rust prints a panic in several pieces. What comes within this time belongs together, in seconds.
_PAUSE_S = 0.02
_PIECE = 1 << 16
_NOISE = re.compile(
    rb"\[[0-9T:.-]+Z WARN +lance[^\n]*\n|"
    rb"\n?thread '[^'\n]*' (\(\d+\) )?panicked at .*?(note: [^\n]*`RUST_BACKTRACE=[^\n]*\n|\Z)",
    re.DOTALL,
)


@contextmanager
def without_panics() -> Iterator[None]:
    """Drop Rust's panics and Lance's warnings from the standard error of this process; pass on everything else.

    Lance turns a panic into an exception, but Rust has printed it by then, straight to file descriptor 2. That becomes
    a pipe here, which a thread reads; Python writes to a copy of the former one. With LANCE_LOG set, nothing is
    dropped. Only a program's own process may do this, and only one that starts no others that outlive it.
    """
    if "LANCE_LOG" in os.environ or sys.stderr is None:
        yield
        return
    former, stderr = os.dup(2), sys.stderr
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr = os.fdopen(former, "w", 1, encoding=stderr.encoding, errors=stderr.errors, closefd=False)
    thread = Thread(target=_pass_on, args=(reading, former), daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = stderr
        # This closes the pipe, unless another process has it too, which is not waited for.
        os.dup2(former, 2)
        thread.join(timeout=1)


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
