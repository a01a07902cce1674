"""Check fragments in several processes: Python checks rows on one core per process, however many threads it has."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

from ...children import serve_command
from .check_fragment import Checked, FragmentCheck, FragmentChecker

# Files that are checked at a time in this process. Lance reads ahead in threads of its own, so a second file is enough
# to overlap reading with checksums.
_THREADS = 2


def check_fragments(
    check: FragmentCheck, checker: FragmentChecker, numbers: Sequence[int], processes: int
) -> Iterator[Checked]:
    """Check fragments, and yield the results in their order.

    A process that ends, for example because memory ran out, is not replaced: this process does its work.

    Args:
        check: the check.
        checker: the same check, opened in this process.
        numbers: ids of the fragments.
        processes: number of processes to start; 0 to check in this process.

    Raises:
        StoreError: files cannot be read for a reason that lies elsewhere, such as the network.
    """
    with _started(check, processes) as started:
        free = SimpleQueue[_Process | None]()
        for process in started or [None] * _THREADS:
            free.put(process)

        def run(number: int) -> Checked:
            process = free.get()
            try:
                if process is not None:
                    return process.check(number)
            except _EndedError:
                process = None
            finally:
                free.put(process)
            return checker.check(number)

        pool = ThreadPoolExecutor(len(started) or _THREADS)
        try:
            yield from pool.map(run, numbers)
        finally:
            pool.shutdown(cancel_futures=True)


class _EndedError(Exception):
    """The process has ended."""


class _Process:
    """A process that checks one fragment at a time."""

    def __init__(self, check: FragmentCheck):
        command = serve_command(__name__)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
        self._send(check)

    def check(self, number: int) -> Checked:
        """Check a fragment.

        Raises:
            _EndedError: the process has ended.
            StoreError: the files cannot be read for a reason that lies elsewhere.
        """
        self._send(number)
        assert self._process.stdout is not None
        try:
            result = pickle.load(self._process.stdout)  # noqa: S301  of our own process
        except (EOFError, OSError, pickle.UnpicklingError):
            raise _EndedError from None
        if isinstance(result, Exception):
            raise result
        return result

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # The answer will not come either.
            pickle.dump(value, self._process.stdin)
            self._process.stdin.flush()


@contextmanager
def _started(check: FragmentCheck, count: int) -> Iterator[list[_Process]]:
    processes: list[_Process] = []
    try:
        # Without room for another process, fewer of them do the work.
        with suppress(OSError):
            while len(processes) < count:
                processes.append(_Process(check))
        yield processes
    finally:
        for process in processes:
            process.end()


def serve() -> None:
    """Run a process: check the fragments whose ids come from the standard input, until it ends."""
    # A terminal sends its signals to all processes of a command. The first one decides when the others end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reading, writing = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # Nothing else may write between the answers.
    os.dup2(2, 1)
    check: FragmentCheck = pickle.load(reading)  # noqa: S301  of our own process
    checker: FragmentChecker | None = None
    with suppress(EOFError, OSError):
        while True:
            number = pickle.load(reading)  # noqa: S301  of our own process
            try:
                checker = checker or check.open()
                result: Checked | Exception = checker.check(number)
            except Exception as error:  # noqa: BLE001  the first process raises it
                result = error
            pickle.dump(result, writing)
            writing.flush()
