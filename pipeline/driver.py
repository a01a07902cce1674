"""The driver: hands shards to a pool, commits what comes back, and ends in an orderly way."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..configs import RunConfig
from ..errors import CorruptStoreError, InputError
from ..store import Store, WrittenShard, commit, verify_written
from .interrupt import Interrupt
from .plan import Shard
from .pool import Outcome, Pool
from .progress import BuildProgress

WAIT_S = 0.5


@dataclass(frozen=True)
class FailedShard:
    """A shard that was given up, with the error of its last attempt."""

    number: int
    error: str


class Driver:
    """Runs shards through a pool until all are committed, given up, or a signal or bad input ends the build.

    A shard's life: planned, submitted (attempt n), written, committed. A failed attempt puts it back in the queue;
    bad input (a corpus that cannot be read, a full disk) would only fail again and ends the build.

    Args:
        store: committed to; kept for the whole build, since its ledger remembers what it has read.
        pool: does the work.
        run: attempts and commit intervals.
        progress: told of everything.
        before_commit: called before each commit; what it raises ends the build without that commit.
        plan: name of the update's plan that the shards are of; None for the plan that the store was created with.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        run: RunConfig,
        progress: BuildProgress,
        before_commit: Callable[[], None] = lambda: None,
        plan: str | None = None,
    ):
        self._store = store
        self._pool = pool
        self._run = run
        self._progress = progress
        self._before_commit = before_commit
        self._plan = plan
        self._queue: deque[Shard] = deque()
        self._attempts: Counter[int] = Counter()
        self._in_flight = 0
        self._written: dict[int, tuple[Shard, WrittenShard]] = {}
        self._failed: list[FailedShard] = []
        self._fatal: InputError | None = None
        self._last_commit = time.monotonic()

    def drive(self, shards: Iterable[Shard], interrupt: Interrupt) -> Sequence[FailedShard]:
        """Do the shards; returns those that were given up.

        Everything that was finished is committed, whichever way this ends.

        Raises:
            InputError: what a worker or a commit said is wrong with corpus or store.
        """
        self._queue.extend(shards)
        try:
            self._loop(interrupt)
        finally:
            self._commit()
        if self._fatal:
            raise self._fatal
        return tuple(self._failed)

    def _loop(self, interrupt: Interrupt) -> None:
        stopping = False
        while self._queue or self._in_flight or self._written:
            if not stopping and (interrupt.requested or self._fatal):
                stopping = True
                self._queue.clear()
                self._pool.stop()
                self._progress.stopping()
                self._commit()
            while self._queue and self._in_flight < self._pool.capacity:
                self._submit(self._queue.popleft())
            for outcome in self._pool.wait(WAIT_S):
                self._take(outcome)
            if self._is_commit_due():
                self._commit()
            if stopping:
                # A shard that failed while draining is left to the next build.
                self._queue.clear()

    def _submit(self, shard: Shard) -> None:
        self._in_flight += 1
        self._pool.submit(shard)

    def _take(self, outcome: Outcome) -> None:
        self._in_flight -= 1
        shard = outcome.shard
        if outcome.result is not None:
            written = outcome.result.written
            self._written[shard.number] = shard, written
            self._progress.finished_shard(shard.number, written.rows, written.tokens_fed, written.payload_bytes)
        elif isinstance(outcome.error, InputError):
            self._fatal = self._fatal or outcome.error
        elif outcome.error is not None:
            self._retry(shard, outcome.error, charged=outcome.charged)

    def _retry(self, shard: Shard, error: Exception, *, charged: bool = True) -> None:
        self._attempts[shard.number] += charged
        attempt = self._attempts[shard.number]
        final = attempt >= self._run.attempts
        self._progress.failed_shard(shard.number, error, attempt, final)
        if final:
            self._failed.append(FailedShard(shard.number, f"{type(error).__name__}: {error}"))
        else:
            self._queue.append(shard)

    def _is_commit_due(self) -> bool:
        waited = time.monotonic() - self._last_commit
        idle = not self._queue and not self._in_flight
        enough = len(self._written) >= self._run.commit_shards or waited >= self._run.commit_seconds
        return bool(self._written) and (enough or idle)

    def _commit(self) -> None:
        self._last_commit = time.monotonic()
        if not self._written:
            return
        try:
            self._before_commit()
            commit(self._store, [written for _, written in self._written.values()], self._plan)
        except CorruptStoreError as error:
            if not self._retry_damaged():
                self._fatal = self._fatal or error
                self._written.clear()
        except InputError as error:
            self._fatal = self._fatal or error
            self._written.clear()
        else:
            self._written.clear()

    def _retry_damaged(self) -> bool:
        """Put the shards whose files are not whole back in the queue; the others wait for the next commit."""
        damaged = False
        for number, (shard, written) in list(self._written.items()):
            try:
                verify_written(self._store, written)
            except CorruptStoreError as error:
                damaged = True
                del self._written[number]
                self._retry(shard, error)
        return damaged
