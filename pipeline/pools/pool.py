"""The seam between the driver and its workers: what a pool offers, wherever its workers run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...errors import InputError
from ...store import MeasuredDivergence, MemorySample
from ..planning.plan import Shard
from ..steps import Pulse
from ..watch.progress import WorkerState
from ..worker import ShardResult


class WorkerStartError(InputError):
    """A worker cannot open what it is given: the checkpoint, corpus or device is not there on its node."""


@dataclass(frozen=True)
class Outcome:
    """The end of a submitted shard: a result, an error, or neither if ``stop`` cancelled it.

    Attributes:
        shard: shard that was submitted.
        result: the worker's report.
        error: error that the shard failed with.
        charged: False if the shard is not to blame for its error: its worker was busy with another shard, or its node
            died.
    """

    shard: Shard
    result: ShardResult | None = None
    error: Exception | None = None
    charged: bool = True


class Pool(Protocol):
    """Workers that take shards and report their outcomes in any order.

    A ``with`` block closes the pool. The calls ``count``, ``attempt``, ``run``, ``sample``, ``sensitivity`` and
    ``divergence`` wait for a worker that does nothing else, so nothing may be submitted meanwhile. ``count``,
    ``attempt`` and ``run`` isolate a shard: a worker that breaks during the call is replaced, and one that was broken
    before it is replaced without failing the call.

    Attributes:
        description: description of where the pool runs, for users.
    """

    description: str

    @property
    def capacity(self) -> int:
        """Number of shards to keep submitted, so that no worker waits."""
        ...

    @property
    def crashes(self) -> Mapping[int, int]:
        """Number of earlier processes that crashed while they worked on a shard, by the shard's number."""
        ...

    def submit(self, shard: Shard) -> None:
        """Give a shard to a worker."""
        ...

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return the outcomes that have come in; if there are none, wait for some until the timeout.

        Raises:
            BuildHungError: a worker hangs that cannot be replaced.
        """
        ...

    def workers(self) -> list[WorkerState]:
        """Return the activity of each worker, at most about a second old."""
        ...

    def count(self, shard: Shard) -> int:
        """Return the number of a shard's documents.

        Raises:
            WorkerDiedError: the worker died, or took no step for too long and was ended.
            Exception: error of ``ShardWorker.count``.
        """
        ...

    def attempt(self, shard: Shard, start: int, stop: int) -> None:
        """Try to compress the documents of a shard from place ``start`` up to ``stop``, and discard the result.

        Raises:
            WorkerDiedError: the worker died, or took no step for too long and was ended.
            Exception: error of ``ShardWorker.attempt``.
        """
        ...

    def run(self, shard: Shard, quarantined: Mapping[int, str]) -> ShardResult:
        """Do a shard without the documents at the given places, whose errors are stored in their rows.

        Raises:
            WorkerDiedError: the worker died, or took no step for too long and was ended.
            Exception: error of ``ShardWorker.run``.
        """
        ...

    def sample(self, shard: Shard, vectors: int) -> MemorySample:
        """Return memory of some documents of a shard, as ``ShardWorker.sample`` does.

        Raises:
            WorkerDiedError: the worker died, or took no step for too long and was ended.
            Exception: error of ``ShardWorker.sample``.
        """
        ...

    def sensitivity(self, sample: MemorySample) -> np.ndarray:
        """Let the decoder read a sample on a worker's device, as ``DecoderReader.sensitivity`` does.

        Raises:
            WorkerDiedError: the worker died, or took no step for too long and was ended.
            Exception: error of ``DecoderReader.sensitivity``.
        """
        ...

    def divergence(self, sample: MemorySample, decoded: np.ndarray) -> MeasuredDivergence:
        """Measure on a worker's device what a codec loses, as ``DecoderReader.divergence`` does.

        Raises:
            WorkerDiedError: the worker died, or took no step for too long and was ended.
            Exception: error of ``DecoderReader.divergence``.
        """
        ...

    def stop(self) -> None:
        """Cancel the shards whose computation has not begun. Each of them still has its outcome."""
        ...

    def __enter__(self) -> "Pool": ...

    def __exit__(self, *exc: object) -> None: ...


class NamedCalls:
    """The named calls of a pool that makes each of them to any idle worker, by ``_call``."""

    def count(self, shard: Shard) -> int:
        """Return the number of a shard's documents."""
        return self._call("count", shard)

    def attempt(self, shard: Shard, start: int, stop: int) -> None:
        """Try to compress some documents of a shard."""
        self._call("attempt", shard, start, stop)

    def run(self, shard: Shard, quarantined: Mapping[int, str]) -> ShardResult:
        """Do a shard without the documents at the given places."""
        return self._call("run", shard, quarantined)

    def sample(self, shard: Shard, vectors: int) -> MemorySample:
        """Return memory of some documents of a shard."""
        return self._call("sample", shard, vectors)

    def sensitivity(self, sample: MemorySample) -> np.ndarray:
        """Let the decoder read a sample on a worker's device."""
        return self._call("sensitivity", sample)

    def divergence(self, sample: MemorySample, decoded: np.ndarray) -> MeasuredDivergence:
        """Measure on a worker's device what a codec loses."""
        return self._call("divergence", sample, decoded)

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call a method of an idle worker."""
        raise NotImplementedError


def state_of(name: str, pulse: Pulse) -> WorkerState:
    """Return the state of a worker from its name and pulse."""
    return WorkerState(name, pulse.doing, pulse.shard, pulse.documents, pulse.tokens, pulse.part)
