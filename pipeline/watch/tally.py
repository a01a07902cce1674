"""Count what happens in a build, for every listener that reports numbers."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from .pace import Pace
from .progress import BuildProgress, WorkerState


class Tally(BuildProgress):
    """A listener that counts; the event log, the screen, the metrics and the status file derive from it.

    Args:
        clock: monotonic clock, in seconds.

    Attributes:
        shards: number of shards in the plan.
        done: number of shards that are written, in this run or before.
        uncommitted: number of shards that are written and not committed yet.
        given_up: number of shards that failed in all their attempts.
        failures: number of failed attempts.
        quarantined_documents: number of documents that cannot be compressed.
        lost_workers: number of workers that died or were ended because they hung.
        unreachable: number of times that the store could not be reached.
        size: bytes of the written payloads.
        written_documents: number of documents in the written shards.
        written_tokens: number of tokens in the written shards.
        states: latest state of each worker.
        committed_at: Unix time of the last commit in seconds; None before the first one.
        pace: speed and remaining time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.shards = self.done = 0
        self.uncommitted = self.given_up = self.failures = self.quarantined_documents = 0
        self.lost_workers = self.unreachable = 0
        self.size = self.written_documents = self.written_tokens = 0
        self.states: tuple[WorkerState, ...] = ()
        self.committed_at: float | None = None
        self._finished: set[int] = set()
        self.pace = Pace({}, clock)
        self._began = clock()

    def started(self, shards: int, done: int, characters: Mapping[int, int], where: str) -> None:  # noqa: ARG002
        """Begin with a plan. The counts stay, since one build may do the shards of two plans."""
        self.shards, self.done, self.states = shards, done, ()
        self.pace, self._began = Pace(characters, self._clock), self._clock()

    def finished_shard(self, number: int, documents: int, tokens: int, size: int) -> None:
        """Count a written shard."""
        self.done += 1
        self.uncommitted += 1
        self._finished.add(number)
        self.size += size
        self.written_documents += documents
        self.written_tokens += tokens
        self.pace.finish(number, documents, tokens)

    def failed_shard(self, number: int, error: Exception, attempt: int, final: bool) -> None:  # noqa: ARG002
        """Count a failed attempt."""
        self.failures += 1
        self.given_up += final
        if number in self._finished:
            # Its files were found damaged before the commit.
            self._finished.remove(number)
            self.done -= 1
            self.uncommitted -= 1
        self.pace.fail(number, final)

    def workers(self, states: Sequence[WorkerState]) -> None:
        """Keep the workers' states."""
        self.states = tuple(states)
        self.pace.update(states)

    def lost_worker(self, name: str, reason: str) -> None:  # noqa: ARG002
        """Count a lost worker."""
        self.lost_workers += 1
        self.pace.lose_worker(name)

    def quarantined(self, number: int, doc_id: str, error: str) -> None:  # noqa: ARG002
        """Count a quarantined document."""
        self.quarantined_documents += 1

    def waiting_for_store(self, error: Exception, seconds: float) -> None:  # noqa: ARG002
        """Count a failed attempt to reach the store."""
        self.unreachable += 1

    def committed(self, shards: int) -> None:
        """Count committed shards."""
        self.uncommitted = max(self.uncommitted - shards, 0)
        self.committed_at = time.time()

    def stopping(self, error: Exception | None = None) -> None:  # noqa: ARG002
        """Stop expecting further shards to begin."""
        self.pace.drain()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the workers started."""
        return max(self._clock() - self._began, 1e-9)

    @property
    def tokens_per_s(self) -> float:
        """Recent tokens per second of all workers together; at first, the mean since the workers started."""
        recent = self.pace.tokens_per_s
        return self.pace.tokens / self.elapsed_s if recent is None else recent

    @property
    def doing(self) -> dict[str, int]:
        """Number of workers by activity."""
        return dict(Counter[str](state.doing for state in self.states))
