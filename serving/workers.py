"""Several processes that serve at one address: each loads the models and has a queue of its own."""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from ..errors import InputError, PiscoIndexError
from .metrics import SHARED_FOLDER, forget_process

# Seconds between two looks at the workers, and before a worker that died is started again.
_LOOK = 0.2
_PAUSE = 2.0

_log = logging.getLogger(__name__)
_spawn = multiprocessing.get_context("spawn")

Work = Callable[[socket.socket, Callable[[], object]], None]
"""Function that serves at a socket until a signal, and calls another once it listens. It can be pickled."""


def run_workers(work: Work, listening: socket.socket, count: int, started: Callable[[], object]) -> None:
    """Serve with several processes until SIGINT or SIGTERM, and start those again that die. SIGHUP goes to all.

    Args:
        work: function that each process calls.
        listening: socket that is bound to the address.
        count: number of processes.
        started: callback that is called once all of them listen.

    Raises:
        InputError: a process ended before it listened.
    """
    signals: list[int] = []
    # prometheus_client shares the numbers of the processes in this folder.
    with tempfile.TemporaryDirectory(prefix="pisco-index-metrics-") as shared, _catching(signals):
        os.environ[SHARED_FOLDER] = shared
        workers = [_Worker(work, listening) for _ in range(count)]
        try:
            while not all(worker.has_started() for worker in workers):
                if any(number != signal.SIGHUP for number in signals):
                    return
                time.sleep(_LOOK)
            started()
            _watch(workers, signals)
        finally:
            for worker in workers:
                worker.signal(signal.SIGTERM)
            for worker in workers:
                worker.join()
            del os.environ[SHARED_FOLDER]


def _watch(workers: Sequence["_Worker"], signals: list[int]) -> None:
    """Pass signals on, and start workers again, until a signal ends the server."""
    while True:
        while signals:
            number = signals.pop(0)
            if number != signal.SIGHUP:
                return
            for worker in workers:
                worker.signal(number)
        for worker in workers:
            worker.revive()
        time.sleep(_LOOK)


class _Worker:
    """A process, and the next ones if it dies."""

    def __init__(self, work: Work, listening: socket.socket):
        self._arguments = work, listening
        self._listens = False
        self._start()

    def _start(self) -> None:
        self._told, telling = _spawn.Pipe(duplex=False)
        self._process = _spawn.Process(target=_serve, args=(*self._arguments, telling))
        # The child inherits the mask. Without a handler, a signal to reload would end a worker that is still loading.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        telling.close()

    def has_started(self) -> bool:
        """Return True if the process listens.

        Raises:
            InputError: it ended before.
        """
        if not self._listens and self._told.poll():
            try:
                problem = self._told.recv()
            except EOFError:
                self._process.join()
                problem = f"a worker died with exit code {self._process.exitcode} before it listened."
            if problem is not None:
                raise InputError(problem)
            self._listens = True
        return self._listens

    def revive(self) -> None:
        if not self._process.is_alive():
            said = self._last_words()
            _log.error("worker %s died with exit code %s%s", self._process.pid, self._process.exitcode, said)
            forget_process(self._process.pid)
            self._told.close()
            # Not at once, in case that the reason lasts.
            time.sleep(_PAUSE)
            self._start()

    def _last_words(self) -> str:
        """Return the problem that the process told before it ended, after a colon; nothing if it told none."""
        said = ""
        with suppress(EOFError, OSError):
            while self._told.poll():
                problem = self._told.recv()
                said = f": {problem}" if problem else ""
        return said

    def signal(self, number: int) -> None:
        if self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def join(self) -> None:
        self._process.join()


def reload_all() -> None:
    """Let the other processes of the server open their stores anew, if there are any."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        os.kill(parent.pid, signal.SIGHUP)


def _serve(work: Work, listening: socket.socket, telling: Connection) -> None:
    # Ctrl-C reaches all processes of a terminal; the parent passes it on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work(listening, lambda: telling.send(None))
    except PiscoIndexError as error:
        telling.send(str(error))
        sys.exit(1)


@contextmanager
def _catching(signals: list[int]) -> Iterator[None]:
    """Collect the signals that come, in the order in which they come."""

    def catch(number: int, _frame: Any) -> None:
        signals.append(number)

    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
