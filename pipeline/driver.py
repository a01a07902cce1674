"""The driver: hands shards to a pool, commits what comes back, and ends in an orderly way."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..configs import RunConfig
from ..errors import BuildHungError, CorruptStoreError, InputError
from ..store import Store, WrittenShard, commit, verify_written
from .interrupt import Interrupt
from .patience import patiently
from .planning.plan import Shard
from .pools.crashes import CrashLog
from .pools.pool import Outcome, Pool
from .pools.watchdog import describe
from .quarantine import find_poison, insist
from .watch.progress import BuildProgress
from .worker import Quarantined, ShardResult

WAIT_S = 0.5
# Between two looks at what workers do.
LOOK_S = 1.0
# A commit writes down all that the store holds, so that a large store takes more shards to a commit.
STORED_TO_COMMITTED = 32


@dataclass(frozen=True)
class FailedShard:
    """A shard that was given up, with the error of its last attempt."""

    number: int
    error: str


@dataclass(frozen=True)
class Driven:
    """How shards ended that are not simply committed.

    Attributes:
        failed: given up.
        quarantined: documents that could not be compressed, of shards that are committed.
    """

    failed: tuple[FailedShard, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()


class Driver:
    """Runs shards through a pool until all are committed, given up, or a signal or bad input ends the build.

    A shard's life: planned, submitted (attempt n), written, committed. A failed attempt puts it back in the queue; one
    that fails too often waits until all others are done. Its documents are then tried alone, and it is done without
    those that fail; should it still fail, it is given up. Bad input (a corpus that cannot be read, a full disk) would
    only fail again and ends the build; a store that is away is waited for.

    Args:
        store: committed to; kept for the whole build, since its ledger remembers what it has read.
        pool: does the work.
        run: attempts, commit intervals, patience.
        progress: told of everything.
        before_commit: called before each commit; what it raises ends the build without that commit.
        plan: name of the update's plan that the shards are of; None for the plan that the store was created with.
        crashes: told which shards are in hand, where workers are part of this process.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        run: RunConfig,
        progress: BuildProgress,
        before_commit: Callable[[], None] = lambda: None,
        plan: str | None = None,
        crashes: CrashLog | None = None,
    ):
        self._store = store
        self._stored = len(store.table.get_fragments())
        self._pool = pool
        self._run = run
        self._progress = progress
        self._before_commit = before_commit
        self._plan = plan
        self._queue: deque[Shard] = deque()
        self._attempts: Counter[int] = Counter(crashes.counts if crashes else ())
        self._damaged: Counter[int] = Counter()
        self._crashes = crashes
        self._in_hand: set[int] = set()
        self._suspects: list[Shard] = []
        self._quarantined: list[Quarantined] = []
        self._interrupt = Interrupt()
        self._written: dict[int, tuple[Shard, WrittenShard]] = {}
        self._failed: list[FailedShard] = []
        self._fatal: InputError | None = None
        self._last_commit = self._last_look = time.monotonic()

    def drive(self, shards: Iterable[Shard], interrupt: Interrupt) -> Driven:
        """Do the shards.

        Everything that was finished is committed, whichever way this ends.

        Raises:
            InputError: what a worker or a commit said is wrong with corpus or store.
            BuildHungError: the worker of this process hangs.
        """
        self._interrupt = interrupt
        for shard in shards:
            (self._suspects if self._attempts[shard.number] >= self._run.attempts else self._queue).append(shard)
        try:
            self._loop()
            # The commit of what was done alone may find damage, too late for the loop.
            while (self._queue or self._suspects) and not self._is_ending:
                self._isolate()
                self._commit()
        except BuildHungError as error:
            if self._crashes is not None:
                self._crashes.counts[error.shard] = self._run.attempts
            raise
        finally:
            self._commit()
            if self._crashes is not None:
                self._crashes.close()
        if self._fatal:
            raise self._fatal
        return Driven(tuple(self._failed), tuple(self._quarantined))

    @property
    def _is_ending(self) -> bool:
        return self._interrupt.requested or self._fatal is not None

    def _loop(self) -> None:
        stopping = False
        while self._queue or self._in_hand or self._written:
            if not stopping and self._is_ending:
                stopping = True
                self._queue.clear()
                self._pool.stop()
                self._progress.stopping()
                self._commit()
            while self._queue and len(self._in_hand) < self._pool.capacity:
                self._submit(self._queue.popleft())
            for outcome in self._pool.wait(WAIT_S):
                self._take(outcome)
            self._look()
            if self._is_commit_due():
                self._commit()
            if stopping:
                # A shard that failed while draining is left to the next build.
                self._queue.clear()

    def _isolate(self) -> None:
        """Do the shards that failed too often, one at a time and without the documents that they fail of."""
        suspects = sorted([*self._queue, *self._suspects], key=lambda shard: shard.number)
        self._queue.clear()
        self._suspects.clear()
        for shard in suspects:
            if self._is_ending:
                return
            self._progress.alone(shard.number)
            try:
                poison = find_poison(self._pool, shard, self._is_leaving)
                if poison is not None:
                    self._accept(shard, insist(self._pool, "run", shard, poison))
            except InputError as error:
                self._fatal = error
            except Exception as error:  # noqa: BLE001  whatever a worker fails of
                self._give_up(shard, error)
            if self._is_commit_due():
                self._commit()

    def _is_leaving(self) -> bool:
        self._look()
        return self._interrupt.requested

    def _look(self) -> None:
        if time.monotonic() - self._last_look >= LOOK_S:
            self._last_look = time.monotonic()
            self._progress.workers(self._pool.workers())

    def _submit(self, shard: Shard) -> None:
        self._in_hand.add(shard.number)
        if self._crashes is not None:
            self._crashes.holds(self._in_hand)
        self._pool.submit(shard)

    def _accept(self, shard: Shard, result: ShardResult) -> None:
        written = result.written
        self._written[shard.number] = shard, written
        if self._crashes is not None:
            self._crashes.done(shard.number)
        self._progress.finished_shard(shard.number, written.rows, written.tokens_fed, written.payload_bytes)
        for document in result.quarantined:
            self._quarantined.append(document)
            self._progress.quarantined(shard.number, document.doc_id, document.error)

    def _take(self, outcome: Outcome) -> None:
        shard = outcome.shard
        self._in_hand.discard(shard.number)
        if self._crashes is not None:
            self._crashes.holds(self._in_hand)
        if outcome.result is not None:
            self._accept(shard, outcome.result)
        elif isinstance(outcome.error, InputError):
            self._fatal = self._fatal or outcome.error
        elif outcome.error is not None:
            self._retry(shard, outcome.error, charged=outcome.charged)

    def _retry(self, shard: Shard, error: Exception, *, charged: bool = True) -> None:
        self._attempts[shard.number] += charged
        attempt = self._attempts[shard.number]
        self._progress.failed_shard(shard.number, error, attempt, final=False)
        (self._suspects if attempt >= self._run.attempts else self._queue).append(shard)

    def _give_up(self, shard: Shard, error: Exception) -> None:
        self._attempts[shard.number] += 1
        self._progress.failed_shard(shard.number, error, self._attempts[shard.number], final=True)
        self._failed.append(FailedShard(shard.number, describe(error)))

    def _is_commit_due(self) -> bool:
        waited = time.monotonic() - self._last_commit
        idle = not self._queue and not self._in_hand
        many = max(self._run.commit_shards, self._stored // STORED_TO_COMMITTED)
        enough = len(self._written) >= many or waited >= self._run.commit_seconds
        return bool(self._written) and (enough or idle)

    def _commit(self) -> None:
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
        """Put the shards whose files are not whole back in the queue; the others wait for the next commit.

        One whose files get damaged each time is given up.
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
