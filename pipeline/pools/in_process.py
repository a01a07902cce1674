"""A pool of one worker in this process."""

import gc
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ...errors import SUMMARY_CHARACTERS, BuildHungError, InputError, error_summary
from ...store import MeasuredDivergence, MemorySample
from ..planning.plan import Shard
from ..watch.progress import WorkerState
from ..worker import ShardCancelledError, ShardResult, ShardWorker, WorkerSpec, depth
from .child import ChildWorker
from .crashes import CrashLog
from .pool import Outcome, WorkerStartError, state_of
from .watchdog import Watchdog, WorkerDiedError, is_worker_broken

NONE_QUARANTINED: Mapping[int, str] = MappingProxyType({})
# Child processes that may die while they start, before that ends the build.
STARTS = 3


class InProcessPool:
    """One worker in threads of this process. Isolated shards are done by a worker in a child process.

    If the device fails for good, such as a GPU after an illegal access, this process cannot use it again. The worker
    then gives its shards back, and a child process does them, one at a time.

    A document may kill or hang this process. The pool therefore notes next to the store which shards are in flight, so
    that the next process knows them. A sample is computed in this process as well, and noted in the same way.

    Args:
        spec: everything the worker requires.
        hang_s: seconds without a step after which a worker hangs.
        attempts: number of crashes to record for a shard that hangs, so that the next process isolates it.
        on_lost: callback that is given the name of each worker that was lost, and the reason.
    """

    NAME = "this process"

    def __init__(self, spec: WorkerSpec, *, hang_s: float, attempts: int, on_lost: Callable[[str, str], None]):
        self._spec = spec
        self._hang_s = hang_s
        self._attempts = attempts
        self._on_lost = on_lost
        worker = ShardWorker(spec)
        batch = "" if spec.at_question else f", {worker.token_budget:,} tokens per batch"
        self.description = f"this process, {spec.device}{batch}"
        self._worker: ShardWorker | None = worker
        self._threads = ThreadPoolExecutor(depth(spec.reader_limit), thread_name_prefix="shard")
        self._running: dict[Future[ShardResult], Shard] = {}
        self._watchdog = Watchdog(hang_s)
        self._child: ChildWorker | None = None
        self._hangs = False
        self._failure: Exception | None = None
        self._crash_log = CrashLog(spec.uri)

    @property
    def capacity(self) -> int:
        """Number of shards to keep submitted: none while a worker whose device failed gives its shards back."""
        if self._worker is None:
            return 1
        return 0 if self._failure else depth(self._worker.pulse().readers)

    @property
    def crashes(self) -> Mapping[int, int]:
        """Number of earlier processes that crashed while they worked on a shard, by the shard's number."""
        return self._crash_log.counts

    def submit(self, shard: Shard) -> None:
        """Give a shard to the worker."""
        self._note(shard, *self._running.values())
        future = (
            self._threads.submit(self._worker.run, shard) if self._worker else self._threads.submit(self.run, shard)
        )
        self._running[future] = shard

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return the outcomes that have come in.

        Raises:
            BuildHungError: the worker hangs.
        """
        finished, _ = wait(self._running, timeout_s, FIRST_COMPLETED)
        outcomes = [self._outcome(self._running.pop(future), future) for future in finished]
        if self._failure and not self._running:
            self._close_worker()
        if outcomes:
            self._note(*self._running.values())
        for outcome in outcomes:
            if outcome.result is not None:
                self._crash_log.forget(outcome.shard.number)
        if self._worker is not None:
            pulse = self._worker.pulse()
            if self._watchdog.is_hung(pulse.steps, busy=bool(self._running)) and not outcomes:
                self._hangs = True
                # The shard that is computed, or the oldest one if no thread has begun any.
                shard = next(iter(self._running.values())).number if pulse.shard is None else pulse.shard
                self._crash_log.counts[shard] = self._attempts
                raise BuildHungError(
                    f"shard {shard} has taken no step for {self._hang_s:.0f} s while {pulse.doing}, and a thread "
                    "cannot be ended. Finished shards are committed. Run the same command again: that shard's "
                    "documents are then tried one by one. With --ray local a worker that hangs is replaced.",
                    shard,
                )
        return outcomes

    def workers(self) -> list[WorkerState]:
        """Return the activity of the worker."""
        worker = self._child or self._worker
        return [state_of(self.NAME, worker.pulse())] if worker is not None else []

    def count(self, shard: Shard) -> int:
        """Return the number of a shard's documents, as a child process counts them."""
        return self._call("count", shard)

    def attempt(self, shard: Shard, start: int, stop: int) -> None:
        """Try in a child process to compress some documents of a shard."""
        self._call("attempt", shard, start, stop)

    def run(self, shard: Shard, quarantined: Mapping[int, str] = NONE_QUARANTINED) -> ShardResult:
        """Do a shard in a child process, without the documents at the given places."""
        result = self._call("run", shard, quarantined)
        self._crash_log.forget(shard.number)
        return result

    def sample(self, shard: Shard, vectors: int) -> MemorySample:
        """Return memory of some documents of a shard, computed in this process."""
        assert self._worker is not None
        self._note(shard)
        try:
            return self._worker.sample(shard, vectors)
        finally:
            self._crash_log.close()

    def sensitivity(self, sample: MemorySample) -> np.ndarray:
        """Let the decoder read a sample in this process."""
        assert self._worker is not None
        return self._worker.sensitivity(sample)

    def divergence(self, sample: MemorySample, decoded: np.ndarray) -> MeasuredDivergence:
        """Measure in this process what a codec loses."""
        assert self._worker is not None
        return self._worker.divergence(sample, decoded)

    def stop(self) -> None:
        """Cancel the shards whose computation has not begun."""
        if self._worker is not None:
            self._worker.stop()

    def __enter__(self) -> "InProcessPool":
        return self

    def __exit__(self, *exc: object) -> None:
        self._crash_log.close()
        if self._child is not None:
            self._child.end()
        if self._worker is not None:
            self._worker.stop()
            self._threads.shutdown(wait=not self._hangs, cancel_futures=True)
            self._worker.close(wait=not self._hangs)

    def _note(self, *shards: Shard) -> None:
        self._crash_log.note({shard.number for shard in shards})

    def _outcome(self, shard: Shard, future: Future[ShardResult]) -> Outcome:
        """Return the outcome of a shard. Once the device has failed, no further shard is charged with that."""
        error = future.exception()
        if error is not None and not isinstance(error, Exception):
            raise error
        is_charged = self._failure is None
        if self._worker is not None and is_charged and is_worker_broken(error):
            assert error is not None
            self._failure = error
            self._worker.stop()
            self._on_lost(self.NAME, error_summary(error, SUMMARY_CHARACTERS))
        if isinstance(error, ShardCancelledError):
            # Not by ``stop``, if the device failed: the shard is to be done in a child process.
            return Outcome(shard, error=self._failure, charged=False)
        if error is None:
            return Outcome(shard, future.result())
        return Outcome(shard, error=error, charged=is_charged or self._worker is None)

    def _close_worker(self) -> None:
        """End the worker in this process, and make room on its device for a child process."""
        if self._worker is None:
            return
        self._worker.close()
        self._worker = None
        if self._spec.device.startswith("cuda"):
            # The allocator keeps freed memory of the device, which the child needs. A failed device frees none.
            gc.collect()
            with suppress(RuntimeError):
                torch.cuda.empty_cache()

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call a method of a worker in a child process. The worker in this process makes room for it."""
        self._close_worker()
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
                # The child does one thing at a time. It reads itself, to be the process that a document kills.
                self._child = ChildWorker(replace(self._spec, reader_processes=0), hang_s=self._hang_s)
                return self._child
            except WorkerDiedError as error:
                failure = error
                self._on_lost(self.NAME, error_summary(error, SUMMARY_CHARACTERS))
            except InputError:
                raise
            except Exception as error:
                # For example a device without room for it. No shard is to blame for that.
                raise WorkerStartError(
                    f"a worker could not start in a child process: {error_summary(error, SUMMARY_CHARACTERS)}. What "
                    "was finished is committed. Run the same command again to resume."
                ) from error
        raise WorkerStartError(f"a worker could not start in a child process, {STARTS} times: {failure}")

    def _lose_child(self, error: Exception) -> None:
        assert self._child is not None
        self._child.end()
        self._child = None
        self._on_lost(self.NAME, error_summary(error, SUMMARY_CHARACTERS))
