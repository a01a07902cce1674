"""Pools: where shards are worked on. The driver sees only this seam."""

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .plan import Shard
from .worker import DEPTH, ShardCancelledError, ShardResult, ShardWorker, WorkerSpec


@dataclass(frozen=True)
class Outcome:
    """How a submitted shard ended: with a result, or with an error, or (neither) cancelled by ``stop``.

    ``charged`` is False for a shard that was only beside the one that its worker died of.
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

    def sample(self, shard: Shard, vectors: int) -> tuple[np.ndarray, list[int]]:
        """Memory of some of a shard's documents, as ``ShardWorker.sample`` gives it."""
        ...

    def stop(self) -> None:
        """Cancel shards that have not begun to compute; each still has its outcome."""
        ...

    def __enter__(self) -> "Pool": ...

    def __exit__(self, *exc: object) -> None: ...


class InProcessPool:
    """One worker in this process, in threads of its own."""

    def __init__(self, spec: WorkerSpec):
        self.description = f"this process, {spec.device}"
        self._worker = ShardWorker(spec)
        self._threads = ThreadPoolExecutor(DEPTH, thread_name_prefix="shard")
        self._running: dict[Future[ShardResult], Shard] = {}

    @property
    def capacity(self) -> int:
        """Shards to keep submitted."""
        return DEPTH

    def submit(self, shard: Shard) -> None:
        """Give a shard to the worker."""
        self._running[self._threads.submit(self._worker.run, shard)] = shard

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that came in."""
        finished, _ = wait(self._running, timeout_s, FIRST_COMPLETED)
        return [_outcome(self._running.pop(future), future) for future in finished]

    def sample(self, shard: Shard, vectors: int) -> tuple[np.ndarray, list[int]]:
        """Memory of some of a shard's documents."""
        return self._worker.sample(shard, vectors)

    def stop(self) -> None:
        """Cancel shards that have not begun to compute."""
        self._worker.stop()

    def __enter__(self) -> "InProcessPool":
        return self

    def __exit__(self, *exc: object) -> None:
        self._worker.stop()
        self._threads.shutdown(cancel_futures=True)
        self._worker.close()


def _outcome(shard: Shard, future: Future[ShardResult]) -> Outcome:
    error = future.exception()
    if isinstance(error, ShardCancelledError):
        return Outcome(shard)
    if error is not None and not isinstance(error, Exception):
        raise error
    return Outcome(shard, error=error) if error else Outcome(shard, future.result())
