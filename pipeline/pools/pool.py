"""Pools: where shards are worked on. The driver sees only this seam."""

import gc
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ...errors import BuildHungError, InputError
from ..planning.plan import Shard
from ..watch.progress import WorkerState
from ..worker import DEPTH, Pulse, ShardCancelledError, ShardResult, ShardWorker, WorkerSpec
from .child import ChildWorker
from .watchdog import Watchdog, WorkerDiedError, describe, is_worker_broken

# Children that may die while they start, before that ends the build.
STARTS = 3


class WorkerStartError(InputError):
    """A worker cannot open what it is given: checkpoint, corpus or device are not there on its node."""


@dataclass(frozen=True)
class Outcome:
    """How a submitted shard ended: with a result, or with an error, or (neither) cancelled by ``stop``.

    ``charged`` is False for a shard that its worker did not die of, as far as can be told: one that was only beside
    another, or that went down with its node.
    """

    shard: Shard
    result: ShardResult | None = None
    error: Exception | None = None
    charged: bool = True


class Pool(Protocol):
    """Workers that take shards and report outcomes, in any order.

    A pool is closed by its ``with`` block.
    """

    description: str
    """Where it runs, for people."""

    @property
    def capacity(self) -> int:
        """Shards to keep submitted, so that no worker waits."""
        ...

    def submit(self, shard: Shard) -> None:
        """Give a shard to a worker."""
        ...

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that came in, at once if there are any, else within the time given."""
        ...

    def workers(self) -> list[WorkerState]:
        """What each worker does, as of about a second ago."""
        ...

    def alone(self, method: Literal["count", "attempt", "run"], *arguments: Any) -> Any:
        """Call a method of a ``ShardWorker`` that does nothing else; one that breaks by it is replaced.

        Nothing may be submitted meanwhile. One that broke before, or while it started, is replaced and blames no call.

        Raises:
            WorkerDiedError: the worker's process ended, or took no step for too long and was ended.
            Exception: what the method raises.
        """
        ...

    def sample(self, shard: Shard, vectors: int) -> tuple[np.ndarray, list[int]]:
        """Memory of some of a shard's documents, as ``ShardWorker.sample`` gives it."""
        ...

    def stop(self) -> None:
        """Cancel shards that have not begun to compute; each still has its outcome."""
        ...

    def __enter__(self) -> "Pool": ...

    def __exit__(self, *exc: object) -> None: ...


class InProcessPool:
    """One worker in this process, in threads of its own; what is done alone is done in a child process.

    Args:
        spec: what the worker needs.
        hang_s: for how long a worker may take no step.
        on_lost: told the name of each worker that was lost, and why.
    """

    NAME = "this process"

    def __init__(self, spec: WorkerSpec, *, hang_s: float, on_lost: Callable[[str, str], None]):
        self._spec = spec
        self._hang_s = hang_s
        self._on_lost = on_lost
        worker = ShardWorker(spec)
        self.description = f"this process, {spec.device}, {worker.token_budget:,} tokens a batch"
        self._worker: ShardWorker | None = worker
        self._threads = ThreadPoolExecutor(DEPTH, thread_name_prefix="shard")
        self._running: dict[Future[ShardResult], Shard] = {}
        self._watchdog = Watchdog(hang_s)
        self._child: ChildWorker | None = None
        self._hangs = False

    @property
    def capacity(self) -> int:
        """Shards to keep submitted."""
        return DEPTH

    def submit(self, shard: Shard) -> None:
        """Give a shard to the worker."""
        assert self._worker is not None
        self._running[self._threads.submit(self._worker.run, shard)] = shard

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that came in.

        Raises:
            BuildHungError: the worker hangs.
        """
        finished, _ = wait(self._running, timeout_s, FIRST_COMPLETED)
        outcomes = [_outcome(self._running.pop(future), future) for future in finished]
        if self._worker is not None:
            pulse = self._worker.pulse()
            if self._watchdog.is_hung(pulse.steps, busy=bool(self._running)) and not outcomes:
                self._hangs = True
                # The one it is busy with, or else the oldest that it was given.
                shard = next(iter(self._running.values())).number if pulse.shard is None else pulse.shard
                raise BuildHungError(
                    f"Shard {shard} has taken no step for {self._hang_s:.0f} s while {pulse.doing}, and a thread "
                    "cannot be ended. All that was finished is committed. Run the same command again: that shard's "
                    "documents are then tried one by one. With --ray local a worker that hangs is replaced.",
                    shard,
                )
        return outcomes

    def workers(self) -> list[WorkerState]:
        """What the worker does."""
        worker = self._child or self._worker
        return [state_of(self.NAME, worker.pulse())] if worker is not None else []

    def alone(self, method: Literal["count", "attempt", "run"], *arguments: Any) -> Any:
        """Call a method of a worker in a child process; the one in this process makes room for it."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
            if self._spec.device.startswith("cuda"):
                # What the allocator keeps of its memory is the child's, too.
                gc.collect()
                torch.cuda.empty_cache()
        child = self._answering_child()
        try:
            return child.call(method, *arguments)
        except Exception as error:
            if is_worker_broken(error):
                self._lose_child(error)
            raise

    def _answering_child(self) -> ChildWorker:
        if self._child is not None:
            try:
                self._child.call("pulse")
                return self._child
            except WorkerDiedError as error:
                self._lose_child(error)
        failure: WorkerDiedError | None = None
        for _ in range(STARTS):
            try:
                self._child = ChildWorker(self._spec, hang_s=self._hang_s)
                return self._child
            except WorkerDiedError as error:
                failure = error
                self._on_lost(self.NAME, describe(error))
        raise WorkerStartError(f"A worker could not start in a child process, {STARTS} times: {failure}")

    def _lose_child(self, error: Exception) -> None:
        assert self._child is not None
        self._child.end()
        self._child = None
        self._on_lost(self.NAME, describe(error))

    def sample(self, shard: Shard, vectors: int) -> tuple[np.ndarray, list[int]]:
        """Memory of some of a shard's documents."""
        assert self._worker is not None
        return self._worker.sample(shard, vectors)

    def stop(self) -> None:
        """Cancel shards that have not begun to compute."""
        if self._worker is not None:
            self._worker.stop()

    def __enter__(self) -> "InProcessPool":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._child is not None:
            self._child.end()
        if self._worker is not None:
            self._worker.stop()
            self._threads.shutdown(wait=not self._hangs, cancel_futures=True)
            self._worker.close(wait=not self._hangs)


def state_of(name: str, pulse: Pulse) -> WorkerState:
    """A worker's pulse, for people."""
    return WorkerState(name, pulse.doing, pulse.shard, pulse.documents, pulse.tokens, pulse.part)


def _outcome(shard: Shard, future: Future[ShardResult]) -> Outcome:
    error = future.exception()
    if isinstance(error, ShardCancelledError):
        return Outcome(shard)
    if error is not None and not isinstance(error, Exception):
        raise error
    return Outcome(shard, error=error) if error else Outcome(shard, future.result())
