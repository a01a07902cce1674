"""What has been done since the workers of a build began: the numbers that all who tell of it have in common."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from .pace import Pace
from .progress import BuildProgress, WorkerState


class Tally(BuildProgress):
    """Counts while it listens; those who tell of a build are made of it.

    Args:
        clock: seconds, never going back.

    Attributes:
        shards: of the plan.
        done: of them, written or done before.
        uncommitted: of those done, written but not committed yet.
        given_up: shards that failed in all their attempts.
        failures: attempts that failed.
        quarantined_documents: that cannot be compressed.
        lost_workers: workers that died, or were ended because they hung.
        unreachable: times that the store could not be reached.
        size: bytes of payloads written.
        written_documents: documents of the shards written.
        written_tokens: tokens of the shards written.
        states: what each worker does, by the last that was heard of it.
        committed_at: seconds since 1970 of the last commit; None before one.
        pace: speed and time left.
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
        """Begin with a plan; what was counted stays, since a build may work off two plans."""
        self.shards, self.done, self.states = shards, done, ()
        self.pace, self._began = Pace(characters, self._clock), self._clock()

    def finished_shard(self, number: int, documents: int, tokens: int, size: int) -> None:
        """Count it."""
        self.done += 1
        self.uncommitted += 1
        self._finished.add(number)
        self.size += size
        self.written_documents += documents
        self.written_tokens += tokens
        self.pace.finish(number, documents, tokens)

    def failed_shard(self, number: int, error: Exception, attempt: int, final: bool) -> None:  # noqa: ARG002
        """Count it."""
        self.failures += 1
        self.given_up += final
        if number in self._finished:
            # Its files were found damaged when it was to be committed.
            self._finished.remove(number)
            self.done -= 1
            self.uncommitted -= 1
        self.pace.fail(number, final)

    def workers(self, states: Sequence[WorkerState]) -> None:
        """Keep what they do."""
        self.states = tuple(states)
        self.pace.update(states)

    def lost_worker(self, name: str, reason: str) -> None:  # noqa: ARG002
        """Count it."""
        self.lost_workers += 1
        self.pace.lose_worker(name)

    def quarantined(self, number: int, doc_id: str, error: str) -> None:  # noqa: ARG002
        """Count it."""
        self.quarantined_documents += 1

    def waiting_for_store(self, error: Exception, seconds: float) -> None:  # noqa: ARG002
        """Count it."""
        self.unreachable += 1

    def committed(self, shards: int) -> None:
        """Count them."""
        self.uncommitted = max(self.uncommitted - shards, 0)
        self.committed_at = time.time()

    def stopping(self) -> None:
        """Nothing new is begun."""
        self.pace.drain()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the workers began."""
        return max(self._clock() - self._began, 1e-9)

    @property
    def tokens_per_s(self) -> float:
        """Of late, all workers together; before that can be told, since they began."""
        recent = self.pace.tokens_per_s
        return self.pace.tokens / self.elapsed_s if recent is None else recent

    @property
    def doing(self) -> dict[str, int]:
        """How many workers do what."""
        return dict(Counter[str](state.doing for state in self.states))
