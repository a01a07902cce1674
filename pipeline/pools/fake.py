"""A pool without workers, for tests of what drives one: every call does what its script says."""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...model.decoding.sensitivity import Divergence
from ...store import MeasuredDivergence, MemorySample
from ..planning.plan import Shard
from ..watch.progress import WorkerState
from ..worker import ShardResult
from .pool import Outcome

Work = Callable[[Shard, Mapping[int, str]], ShardResult]
"""Function that does a shard without the documents whose errors are given by place."""

Action = Exception | Callable[[ShardResult], object]
"""An error to fail with, or a callback that is given the result and may spoil it."""


class FakePool:
    """Does one submitted shard for each ``wait``, in the order of submission.

    Args:
        work: function that does a shard; None if nothing is to be done.
        script: actions by shard number and attempt, counted from 1.
        isolated: actions of ``run`` by shard number.
        poison: errors of documents, by shard number and place.
        documents: number of documents of a shard.
        crashes: number of earlier crashes by shard number.
        unreadable: error of ``divergence``.

    Attributes:
        submitted: numbers of the submitted shards, in order.
        calls: calls of isolated shards, each the name of the method and its arguments, the shard by number.
        stopped: True after ``stop``.
    """

    description = "fake"
    capacity = 3

    def __init__(
        self,
        work: Work | None,
        *,
        script: Mapping[tuple[int, int], Action] | None = None,
        isolated: Mapping[int, Action] | None = None,
        poison: Mapping[tuple[int, int], Exception] | None = None,
        documents: int = 1,
        crashes: Mapping[int, int] | None = None,
        unreadable: Exception | None = None,
    ):
        self.crashes = crashes or {}
        self._unreadable = unreadable
        self.submitted: list[int] = []
        self.calls: list[tuple[Any, ...]] = []
        self.stopped = False
        self._work = work
        self._script = script or {}
        self._isolated = isolated or {}
        self._poison = poison or {}
        self._documents = documents
        self._queue: deque[Shard] = deque()
        self._attempts: Counter[int] = Counter()

    def submit(self, shard: Shard) -> None:
        """Queue a shard."""
        self._queue.append(shard)
        self.submitted.append(shard.number)
        assert len(self._queue) <= self.capacity

    def wait(self, timeout_s: float) -> list[Outcome]:  # noqa: ARG002
        """Do the oldest shard of the queue."""
        if not self._queue:
            return []
        shard = self._queue.popleft()
        self._attempts[shard.number] += 1
        action = self._script.get((shard.number, self._attempts[shard.number]))
        if self.stopped and action is None:
            return [Outcome(shard)]
        try:
            return [Outcome(shard, self._do(shard, {}, action))]
        except Exception as error:  # noqa: BLE001  the script may hold any error
            return [Outcome(shard, error=error)]

    def workers(self) -> list[WorkerState]:
        """Return one worker."""
        return [WorkerState("fake", "compressing", None, 0, 0)]

    def count(self, shard: Shard) -> int:
        """Return the number of documents."""
        self._call("count", shard)
        return self._documents

    def attempt(self, shard: Shard, start: int, stop: int) -> None:
        """Raise the error of the first poisonous document."""
        self._call("attempt", shard, start, stop)
        for place in range(start, stop):
            if error := self._poison.get((shard.number, place)):
                raise error

    def run(self, shard: Shard, quarantined: Mapping[int, str]) -> ShardResult:
        """Do a shard."""
        self._call("run", shard)
        return self._do(shard, quarantined, self._isolated.get(shard.number))

    def sample(self, shard: Shard, vectors: int) -> MemorySample:
        """Return vectors of width 4, or raise the error of a poisonous document."""
        self._call("sample", shard, vectors)
        for (number, _), error in self._poison.items():
            if number == shard.number:
                raise error
        values = np.arange(vectors * 4, dtype=np.float32).reshape(vectors, 4)
        return MemorySample(values, [1] * vectors, [f"text {number}" for number in range(vectors)])

    def sensitivity(self, sample: MemorySample) -> np.ndarray:
        """Return the identity."""
        self.calls.append(("sensitivity", len(sample.lengths)))
        return np.eye(sample.values.shape[1])

    def divergence(self, sample: MemorySample, decoded: np.ndarray) -> MeasuredDivergence:
        """Return the mean squared error as KL, or raise the error that the pool was given."""
        self.calls.append(("divergence", len(sample.lengths)))
        if self._unreadable is not None:
            raise self._unreadable
        error = float(np.square(sample.values - decoded).mean())
        return Divergence(error, 2 * error, 1.0, 0.0, len(sample.lengths))

    def stop(self) -> None:
        """Cancel the queued shards."""
        self.stopped = True

    def __enter__(self) -> "FakePool":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def _call(self, method: str, shard: Shard, *arguments: Any) -> None:
        assert not self._queue, "a shard is in flight while another one is isolated"
        self.calls.append((method, shard.number, *arguments))

    def _do(self, shard: Shard, quarantined: Mapping[int, str], action: Action | None) -> ShardResult:
        if isinstance(action, Exception):
            raise action
        assert self._work is not None
        result = self._work(shard, quarantined)
        if action is not None:
            action(result)
        return result
