"""The readers of a worker: the thread that asks, or as many processes as it takes to feed the device."""

import math
import os
import signal
import threading
from collections import deque
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from ...errors import PiscoIndexError
from ...interrupt import SIGNALS
from ..planning.plan import Shard
from ..steps import Steps
from .process import ReaderDiedError, ReaderProcess
from .shard import Reading, ReadShard, ShardReader

# Number of times that a shard is read if its reader process dies.
READS = 2
# Largest part of the time of computing that reading may take in the worker's own thread. Beyond it, reading would slow
# down the other threads.
_IN_THREAD = 0.5
# Part of a further core by which a further process speeds up reading.
_SCALING = 0.8
# A process takes a second to start, so a build that has read for less time gets none.
_WORTH_S = 2.0
# Number of shards that are compared. The least of them counts, since a shard may be slow by chance.
_COMPARED = 3


class ShardCancelledError(PiscoIndexError):
    """The worker was stopped before it began to compute the shard."""


def readers_limit(asked: int | None, cores: int | None) -> int:
    """Return the largest number of reader processes of a worker.

    Args:
        asked: number that the user set; None leaves it to the worker, which keeps a core for itself.
        cores: number of CPU cores of the worker; None means those that this process may use.
    """
    if asked is not None:
        return asked
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max((cores or available) - 1, 0)


class Readers:
    """Reads the shards of a worker. Several threads may call ``read``; each process reads a shard of its own.

    A process that dies or hangs is replaced, and its shard is read again. So a document that kills its reader costs an
    attempt of its shard, as if it had raised an error.

    Args:
        reading: everything that reading requires.
        count: number of processes; None starts as many as it takes, once reading turns out too slow for the device.
        limit: largest number of processes.
        hang_s: seconds without a step after which a process hangs.
        steps: steps of the worker. Waiting for a process counts as steps, since its own are watched here.

    Attributes:
        here: reader for the calling thread.
        count: number of processes that may read at a time; 0 if the worker's threads read.
    """

    def __init__(self, reading: Reading, *, count: int | None, limit: int, hang_s: float, steps: Steps):
        self._reading = reading
        self._adapts = count is None
        self._limit = limit
        self._hang_s = hang_s
        self._steps = steps
        self.here = ShardReader(reading, steps.take)
        self.count = 0
        self._in_thread = threading.Lock()
        self._free = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._idle: list[ReaderProcess] = []
        self._stopped = threading.Event()
        self._ratios: deque[float] = deque(maxlen=_COMPARED)
        self._read_s = 0.0
        # Linux kills a process when the thread that started it ends, so one thread starts them all. They inherit its
        # blocked signals: a terminal sends its signals to all processes of a command, but the driver ends the readers.
        self._starter = ThreadPoolExecutor(1, "readers", signal.pthread_sigmask, (signal.SIG_BLOCK, SIGNALS))
        self._raise_to(count or 0)

    def read(self, shard: Shard, left_out: Collection[int] = ()) -> ReadShard:
        """Read a shard, as ``ShardReader.read`` does, when a reader is free.

        Raises:
            ReaderDiedError: the processes that read the shard died or hung.
            ShardCancelledError: ``stop`` was called.
            CorpusError: the corpus cannot be read as it was planned.
        """
        if not self.count:
            with self._in_thread:
                # Meanwhile processes may have been started.
                if not self.count:
                    self._require_running()
                    with self._steps.doing("reading", shard):
                        return self.here.read(shard, left_out)
        with self._free, self._steps.doing("reading", shard):
            return self._read_in_process(shard, left_out)

    def compare(self, read_s: float, computed_s: float) -> None:
        """Start more processes if reading is too slow for the device.

        Args:
            read_s: seconds that a reader took for a shard.
            computed_s: seconds that the device took for it.
        """
        with self._lock:
            self._read_s += read_s
            self._ratios.append(read_s / max(computed_s, 1e-9))
            if not self._adapts or self._read_s < _WORTH_S or len(self._ratios) < 2:
                return
            ratio = min(self._ratios)
            if self.count or ratio > _IN_THREAD:
                self._raise_to(min(math.ceil(ratio / _SCALING), self._limit))

    def stop(self) -> None:
        """Cancel what is being read."""
        self._stopped.set()

    def close(self) -> None:
        """End the processes that are idle now, and those that read at the next look at them."""
        self._stopped.set()
        while process := self._take():
            process.end()
        self._starter.shutdown()

    def _raise_to(self, count: int) -> None:
        for _ in range(count - self.count):
            self._free.release()
        if count > self.count:
            self.count = count
            # Those of the other number of readers do not count.
            self._ratios.clear()

    def _read_in_process(self, shard: Shard, left_out: Collection[int]) -> ReadShard:
        failure: ReaderDiedError | None = None
        for _ in range(READS):
            self._require_running()
            try:
                process = self._take() or self._start()
                try:
                    read = process.read(shard, left_out)
                except BaseException:
                    process.end()
                    raise
            except ReaderDiedError as error:
                failure = error
                continue
            self._put_back(process)
            return read
        raise ReaderDiedError(
            f"shard {shard.number} was read {READS} times, and each time a reader process {failure}. If the machine is "
            "short of memory, give fewer reader processes (--reader-processes)."
        )

    def _take(self) -> ReaderProcess | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _start(self) -> ReaderProcess:
        process = self._starter.submit(ReaderProcess, self._hang_s, self._require_running).result()
        try:
            process.open(self._reading)
        except BaseException:
            process.end()
            raise
        return process

    def _put_back(self, process: ReaderProcess) -> None:
        with self._lock:
            if not self._stopped.is_set():
                self._idle.append(process)
                return
        process.end()

    def _require_running(self) -> None:
        self._steps.take()
        if self._stopped.is_set():
            raise ShardCancelledError("the worker was stopped before it began to compute the shard")
