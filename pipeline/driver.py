"""The driver: hands shards to a pool, commits what comes back, and ends in an orderly way."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from ..configs import RunConfig
from ..errors import SUMMARY_CHARACTERS, CorruptStoreError, InputError, error_summary
from ..interrupt import Interrupt
from ..store import Store, WrittenShard, commit, verify_written
from .patience import patiently
from .planning.plan import Shard
from .pools.pool import Outcome, Pool
from .quarantine import find_poison, insist
from .watch.progress import BuildProgress
from .worker import Quarantined, ShardResult

# Longest wait for outcomes, in seconds, before the driver polls the interrupt and the clock again.
WAIT_S = 0.5
# Seconds between two polls of the workers' states.
POLL_S = 1.0
# Each commit rewrites the list of fragments. With F fragments, at least F / 32 shards are committed together, so that
# the total cost of the commits stays linear.
STORED_TO_COMMITTED = 32


@dataclass(frozen=True)
class FailedShard:
    """A shard that was given up, with the error of its last attempt."""

    number: int
    error: str


@dataclass(frozen=True)
class Driven:
    """The end of a run of the driver.

    Attributes:
        failed: shards that were given up.
        quarantined: documents that could not be compressed, in shards that are committed.
        interrupted: True if a signal ended the run.
    """

    failed: tuple[FailedShard, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    interrupted: bool = False


class Driver:
    """Runs shards through a pool until all are committed or given up, or until a signal or bad input ends the build.

    A shard is planned, submitted, written and committed. If it fails, it returns to the queue. If it fails too often,
    it is isolated after all other shards: its documents are tried a few at a time, and the shard is done without those
    that fail. If it still fails, it is given up. Bad input, such as an unreadable corpus or a full disk, would only
    fail again, and ends the build. A store that cannot be reached is waited for.

    Args:
        store: store to commit to. It is kept for the whole build, because its ledger remembers what it has read.
        pool: pool that does the work.
        run: settings for attempts, commit intervals and patience.
        progress: listener that is notified of everything.
        before_commit: callback before each commit. If it raises an error, the build ends without that commit.
        plan: name of the update's plan that the shards belong to; None for the plan that the store was created with.
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
        self._stored = len(store.table.get_fragments())
        self._pool = pool
        self._run = run
        self._progress = progress
        self._before_commit = before_commit
        self._plan = plan
        self._queue: deque[Shard] = deque()
        self._attempts: Counter[int] = Counter(pool.crashes)
        self._damaged: Counter[int] = Counter()
        self._in_flight: set[int] = set()
        self._suspects: list[Shard] = []
        self._quarantined: list[Quarantined] = []
        self._interrupt = Interrupt()
        self._written: dict[int, tuple[Shard, WrittenShard]] = {}
        self._failed: list[FailedShard] = []
        self._fatal: InputError | None = None
        self._last_commit = self._last_poll = time.monotonic()

    def drive(self, shards: Iterable[Shard], interrupt: Interrupt) -> Driven:
        """Do the shards. Whatever ends the run, everything that was finished is committed.

        Raises:
            InputError: a worker or a commit found the corpus or the store unusable.
            BuildHungError: the worker of this process hangs.
        """
        self._interrupt = interrupt
        for shard in shards:
            (self._suspects if self._attempts[shard.number] >= self._run.attempts else self._queue).append(shard)
        try:
            self._loop()
            # The commit of isolated shards may find damaged files, too late for the loop.
            while (self._queue or self._suspects) and not self._is_ending:
                self._isolate()
                self._commit()
        finally:
            self._commit()
        if self._fatal:
            raise self._fatal
        return Driven(tuple(self._failed), tuple(self._quarantined), interrupt.requested)

    @property
    def _is_ending(self) -> bool:
        return self._interrupt.requested or self._fatal is not None

    def _loop(self) -> None:
        stopping = False
        while self._queue or self._in_flight or self._written:
            if not stopping and self._is_ending:
                stopping = True
                self._queue.clear()
                self._pool.stop()
                self._progress.stopping(self._fatal)
                self._commit()
            while self._queue and len(self._in_flight) < self._pool.capacity:
                self._submit(self._queue.popleft())
            for outcome in self._pool.wait(WAIT_S):
                self._take(outcome)
            self._poll()
            if self._is_commit_due():
                self._commit()
            if stopping:
                # A shard that fails meanwhile is left to the next build.
                self._queue.clear()

    def _isolate(self) -> None:
        """Do the shards that failed too often, one at a time and without the documents that fail."""
        suspects = sorted([*self._queue, *self._suspects], key=lambda shard: shard.number)
        self._queue.clear()
        self._suspects.clear()
        for shard in suspects:
            if self._is_ending:
                return
            self._progress.alone(shard.number)
            try:
                poison = find_poison(self._pool, shard, self._is_stopped)
                if poison is not None:
                    self._accept(shard, insist(partial(self._pool.run, shard, poison)))
            except InputError as error:
                self._fatal = error
            except Exception as error:  # noqa: BLE001  a worker may fail with any error
                self._give_up(shard, error)
            if self._is_commit_due():
                self._commit()

    def _is_stopped(self) -> bool:
        self._poll()
        return self._interrupt.requested

    def _poll(self) -> None:
        if time.monotonic() - self._last_poll >= POLL_S:
            self._last_poll = time.monotonic()
            self._progress.workers(self._pool.workers())

    def _submit(self, shard: Shard) -> None:
        self._in_flight.add(shard.number)
        self._pool.submit(shard)

    def _take(self, outcome: Outcome) -> None:
        shard = outcome.shard
        self._in_flight.discard(shard.number)
        if outcome.result is not None:
            self._accept(shard, outcome.result)
        elif isinstance(outcome.error, InputError):
            self._fatal = self._fatal or outcome.error
        elif outcome.error is not None:
            self._retry(shard, outcome.error, charged=outcome.charged)

    def _accept(self, shard: Shard, result: ShardResult) -> None:
        written = result.written
        self._written[shard.number] = shard, written
        self._progress.finished_shard(shard.number, written.rows, written.tokens_fed, written.payload_bytes)
        for document in result.quarantined:
            self._quarantined.append(document)
            self._progress.quarantined(shard.number, document.doc_id, document.error)

    def _retry(self, shard: Shard, error: Exception, *, charged: bool = True) -> None:
        self._attempts[shard.number] += charged
        attempt = self._attempts[shard.number]
        self._progress.failed_shard(shard.number, error, attempt, final=False)
        (self._suspects if attempt >= self._run.attempts else self._queue).append(shard)

    def _give_up(self, shard: Shard, error: Exception) -> None:
        self._attempts[shard.number] += 1
        self._progress.failed_shard(shard.number, error, self._attempts[shard.number], final=True)
        self._failed.append(FailedShard(shard.number, error_summary(error, SUMMARY_CHARACTERS)))

    def _is_commit_due(self) -> bool:
        waited = time.monotonic() - self._last_commit
        idle = not self._queue and not self._in_flight
        many = max(self._run.commit_shards, self._stored // STORED_TO_COMMITTED)
        enough = len(self._written) >= many or waited >= self._run.commit_seconds
        return bool(self._written) and (enough or idle)

    def _commit(self) -> None:
        """Commit what is written. An error of the commit ends the build; damaged files are written again."""
        self._last_commit = time.monotonic()
        if not self._written:
            return
        written = [written for _, written in self._written.values()]
        try:
            self._before_commit()
            patiently(
                lambda: commit(self._store, written, self._plan),
                self._store.uri,
                self._run.store_patience_seconds,
                on_wait=self._progress.waiting_for_store,
                given_up=lambda: self._interrupt.requested,
            )
        except CorruptStoreError as error:
            if not self._retry_damaged():
                self._fatal = self._fatal or error
                self._written.clear()
        except InputError as error:
            self._fatal = self._fatal or error
            self._written.clear()
        else:
            self._written.clear()
            self._stored += len(written)
            self._progress.committed(len(written))

    def _retry_damaged(self) -> bool:
        """Put shards with damaged files back in the queue, and leave the others to the next commit.

        A shard whose files are damaged every time is given up.

        Returns:
            True if there were such shards.
        """
        damaged = False
        for number, (shard, written) in list(self._written.items()):
            try:
                verify_written(self._store, written)
            except CorruptStoreError as error:
                damaged = True
                del self._written[number]
                self._damaged[number] += 1
                if self._damaged[number] > self._run.attempts:
                    self._give_up(shard, error)
                else:
                    self._retry(shard, error)
        return damaged
