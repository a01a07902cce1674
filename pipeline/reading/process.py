"""The worker's side of a reader process."""

import os
import socket
import subprocess
from collections.abc import Callable, Collection
from typing import Any

from ...children import ending, serve_command
from ...errors import PiscoIndexError
from ..planning.plan import Shard
from ..pools.watchdog import Watchdog
from . import serving
from .shard import Reading, ReadShard

# Seconds between two looks at a reader process that does not answer.
LOOK_S = 0.5
# Seconds for a reader process to start.
START_S = 120.0
# Seconds for a process that has closed its channel to end.
_END_S = 5.0
# A reader process has one core: several of them use the others.
_ONE_CORE = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class ReaderDiedError(PiscoIndexError):
    """A reader process ended, or took no step for too long and was ended."""


class ReaderProcess:
    """A process that reads shards, one at a time. It ends with the thread that started it. End it after an error.

    Args:
        hang_s: seconds without a step after which the reader hangs.
        on_wait: callback every half second of waiting, and at every step.

    Raises:
        ReaderDiedError: the process cannot start.
    """

    def __init__(self, hang_s: float, on_wait: Callable[[], None]):
        self._hang_s = hang_s
        self._on_wait = on_wait
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603  this interpreter
                    serve_command(serving.__name__, theirs.fileno(), os.getpid()),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=os.environ | _ONE_CORE,
                    pass_fds=[theirs.fileno()],
                )
            except OSError as error:
                ours.close()
                raise ReaderDiedError(f"cannot start: {error}") from None
        ours.settimeout(LOOK_S)
        self._channel = serving.Channel(ours)

    def open(self, reading: Reading) -> None:
        """Open the sources, before the first shard is read.

        Raises:
            ReaderDiedError: the process ended, or hangs.
            Exception: error of opening them.
        """
        self._call(reading, limit_s=max(self._hang_s, START_S))

    def read(self, shard: Shard, left_out: Collection[int]) -> ReadShard:
        """Read a shard, as ``ShardReader.read`` does.

        Raises:
            ReaderDiedError: the process ended, or hangs.
            CorpusError: the corpus cannot be read as it was planned.
        """
        return self._call(shard, left_out, limit_s=self._hang_s)

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        self._channel.close()

    def _call(self, *arguments: Any, limit_s: float) -> Any:
        watchdog, steps = Watchdog(limit_s), 0

        def wait() -> None:
            self._on_wait()
            if watchdog.is_hung(steps, busy=True):
                raise ReaderDiedError(f"took no step for {limit_s:.0f} s and was ended")

        try:
            self._channel.send(arguments, wait)
            while True:
                kind, value = self._channel.receive(wait)
                steps += 1
                self._on_wait()
                if kind == "returned":
                    return value
                if kind == "raised":
                    raise value
        except serving.PeerEndedError:
            raise self._died() from None

    def _died(self) -> ReaderDiedError:
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return ReaderDiedError("closed its connection and was ended")
        return ReaderDiedError(ending(code))
