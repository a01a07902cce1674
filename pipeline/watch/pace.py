"""Estimate the speed and the remaining time of a build from its workers' states, reported about once a second."""

import heapq
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .progress import WorkerState

# The speed is measured over the last third of the elapsed time, within these bounds in seconds.
SHORTEST_S, LONGEST_S = 20.0, 600.0

IDLE = ("starting", "waiting")

# Shards per worker whose assignment is simulated to estimate the end of the build. All earlier ones count as evenly
# shared work, which keeps the estimate cheap for plans of thousands of shards.
SIMULATED_SHARDS = 32


class _Work(NamedTuple):
    """Compressed work: characters where they are known, and tokens of shards whose progress is unknown."""

    characters: float = 0.0
    loose_tokens: float = 0.0

    def plus(self, other: "_Work", sign: int = 1) -> "_Work":
        return _Work(self.characters + sign * other.characters, self.loose_tokens + sign * other.loose_tokens)


@dataclass
class _Assignment:
    """A worker's latest state, and its progress when it was first seen with its shard or starting."""

    state: WorkerState
    since: float
    shard: int | None = None
    tokens_before: int = 0
    documents_before: int = 0
    part_before: float = 0.0

    @property
    def tokens(self) -> int:
        return max(self.state.tokens - self.tokens_before, 0) if self.shard is not None else 0

    @property
    def documents(self) -> int:
        return max(self.state.documents - self.documents_before, 0) if self.shard is not None else 0


@dataclass(frozen=True)
class _Sample:
    """Total work and total busy seconds of all workers at one time."""

    time: float
    busy_s: float
    work: _Work
    tokens: float


class Pace:
    """Speed and remaining time of a build.

    Work is measured in characters, of finished shards and of the compressed parts of assigned ones, so that estimates
    do not wait for the next shard to finish. The speed is that of one busy worker over the last third of the elapsed
    time: workers that start late, join or leave count at once, and a slow start is forgotten. The remaining time comes
    from simulating the assignment of the remaining shards to the present workers, so it also holds with few shards a
    worker. A starting worker is expected to need as long again as it has taken so far.

    Args:
        characters: number of characters of each shard to do, by shard number, in the order in which shards are begun.
        clock: monotonic clock, in seconds.
    """

    def __init__(self, characters: Mapping[int, int], clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._todo = dict(characters)
        self._assignments: dict[str, _Assignment] = {}
        # Shards that are being written while their workers already compress the next one.
        self._written: dict[int, _Assignment] = {}
        self._has_states = self._is_draining = False
        self._characters = 0
        self._tokens = self._documents = 0
        self._lost, self._lost_tokens = _Work(), 0
        self._busy_s, self._last = 0.0, clock()
        self._began: float | None = None
        self._samples: deque[_Sample] = deque()

    def update(self, states: Sequence[WorkerState]) -> None:
        """Record the state of every worker; workers that are missing have left."""
        now = self._pass_time()
        self._has_states = True
        self._assignments = {state.name: self._assign(state, now) for state in states}
        self._measure(now)

    def finish(self, number: int, documents: int, tokens: int) -> None:
        """Record that a shard was written."""
        now = self._pass_time()
        self._characters += self._todo.pop(number, 0)
        self._documents += documents
        self._tokens += tokens
        self._written.pop(number, None)
        for assigned in self._holding(number):
            assigned.shard = None
        if not self._has_states:
            self._measure(now)

    def fail(self, number: int, final: bool) -> None:
        """Record that a shard failed: its work is lost, and it is retried or, if ``final``, given up."""
        for assigned in self._holding(number):
            self._lose(assigned)
        self._written.pop(number, None)
        if final:
            self._todo.pop(number, None)

    def lose_worker(self, name: str) -> None:
        """Record that a worker died, which loses the work on its shards."""
        lost = [each for each in (*self._assignments.values(), *self._written.values()) if each.state.name == name]
        self._assignments.pop(name, None)
        for assigned in lost:
            self._written.pop(-1 if assigned.shard is None else assigned.shard, None)
            self._lose(assigned)

    def drain(self) -> None:
        """Record that no further shard is begun."""
        self._is_draining = True

    @property
    def documents(self) -> int:
        """Number of compressed documents, in finished shards and, as reported by the workers, in assigned ones."""
        return self._documents + sum(assigned.documents for assigned in self._unfinished)

    @property
    def tokens(self) -> int:
        """Number of compressed tokens, in finished shards and, as reported by the workers, in assigned ones."""
        return self._tokens + sum(assigned.tokens for assigned in self._unfinished)

    @property
    def tokens_per_s(self) -> float | None:
        """Recent tokens per second of all workers together; None before two samples exist."""
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        return (last.tokens - first.tokens) / max(last.time - first.time, 1e-9)

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the last shard is done; None while the speed is unknown or no worker exists."""
        speed = self._speed
        assignments = self._assignments.values()
        if not speed or (self._has_states and not assignments):
            return None
        now = self._clock()
        free: list[float] = []
        busy_until = 0.0
        for assigned in assignments:
            if assigned.state.doing == "starting":
                free.append(now - assigned.since)
            elif assigned.shard is None:
                free.append(0.0)
            else:
                free.append(self._left_s(assigned, speed))
                busy_until = max(busy_until, free[-1])
        if self._is_draining:
            return busy_until
        taken = {assigned.shard for assigned in self._unfinished}
        waiting = [size / speed for number, size in self._todo.items() if number not in taken]
        return max(busy_until, _makespan(free or [0.0], waiting))

    @property
    def _unfinished(self) -> list["_Assignment"]:
        """Workers with a shard that is begun and not finished."""
        return [each for each in (*self._assignments.values(), *self._written.values()) if each.shard is not None]

    @property
    def _density(self) -> float | None:
        """Mean number of characters per token; None before a shard is finished."""
        return self._characters / self._tokens if self._tokens else None

    @property
    def _speed(self) -> float | None:
        """Characters per second of one busy worker; None while it is unknown."""
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        work = last.work.plus(first.work, -1)
        if last.busy_s == first.busy_s or (work.loose_tokens and not self._density):
            return None
        return (work.characters + work.loose_tokens * (self._density or 0.0)) / (last.busy_s - first.busy_s)

    def _assign(self, state: WorkerState, now: float) -> _Assignment:
        former = self._assignments.get(state.name)
        if state.doing == "starting":
            waits = former is not None and former.state.doing == "starting"
            return _Assignment(state, former.since if former and waits else now)
        if former is not None and former.shard is not None and former.shard != state.shard:
            self._let_go(former, former.shard)
        if state.shard not in self._todo or state.shard in self._written:
            return _Assignment(state, now)
        if former is None:
            return _Assignment(state, now, state.shard, part_before=state.part or 0.0)
        if former.shard == state.shard:
            return replace(former, state=state)
        return _Assignment(state, now, state.shard, state.tokens, state.documents, state.part or 0.0)

    def _let_go(self, assigned: _Assignment, shard: int) -> None:
        if assigned.state.doing in ("compressing", "writing"):
            self._written[shard] = assigned
        # A shard that was only read waits to be begun.

    def _holding(self, number: int) -> list[_Assignment]:
        return [assigned for assigned in self._unfinished if assigned.shard == number]

    def _lose(self, assigned: _Assignment) -> None:
        if assigned.shard is not None:
            self._lost, self._lost_tokens = self._lost.plus(self._work(assigned)), self._lost_tokens + assigned.tokens
            assigned.shard = None

    def _work(self, assigned: _Assignment) -> _Work:
        """Return the compressed work of a worker's shard."""
        if assigned.shard is None:
            return _Work()
        if assigned.shard in self._written:
            return _Work(characters=self._todo[assigned.shard])
        if assigned.state.part is not None:
            return _Work(characters=self._todo[assigned.shard] * min(assigned.state.part, 1.0))
        most = self._todo[assigned.shard] / self._density if self._density else float("inf")
        return _Work(loose_tokens=min(assigned.tokens, most))

    def _left_s(self, assigned: _Assignment, speed: float) -> float:
        """Return the seconds left of an assigned shard; its own speed is weighted by its progress."""
        assert assigned.shard is not None
        size, work = self._todo[assigned.shard], self._work(assigned)
        if not size:
            return 0.0
        done = work.characters + work.loose_tokens * (self._density or 0.0)
        spent = self._last - assigned.since
        own = (done - size * assigned.part_before) / spent if spent else speed
        return max(size - done, 0.0) / (speed + (max(own, speed / 4) - speed) * done / size)

    def _pass_time(self) -> float:
        now = self._clock()
        # A worker without a shard counts as busy: it has begun another by the time of its next state.
        working = [each for each in self._assignments.values() if each.state.doing not in IDLE]
        busy = len(working) if self._has_states else 1
        self._busy_s += (now - self._last) * busy
        self._last = now
        return now

    def _measure(self, now: float) -> None:
        """Add a sample and drop those older than the window."""
        work = _Work(characters=self._characters).plus(self._lost)
        for assigned in self._unfinished:
            work = work.plus(self._work(assigned))
        if self._began is None:
            if work == _Work() and not self._unfinished:
                return
            self._began = now
        self._samples.append(_Sample(now, self._busy_s, work, self.tokens + self._lost_tokens))
        window = min(max((now - self._began) / 3, SHORTEST_S), LONGEST_S)
        while len(self._samples) > 2 and self._samples[1].time <= now - window:
            self._samples.popleft()


def _makespan(free: Sequence[float], shards: Sequence[float]) -> float:
    """Return when the last shard is done if each goes to the first free worker; all values in seconds."""
    most = SIMULATED_SHARDS * len(free)
    head, tail = (shards[:-most], shards[-most:]) if len(shards) > most else ((), shards)
    shared = _shared_until(free, sum(head)) if head else 0.0
    queue = [max(shared, each) for each in free]
    heapq.heapify(queue)
    end = shared
    for seconds in tail:
        done = queue[0] + seconds
        heapq.heapreplace(queue, done)
        end = max(end, done)
    return end


def _shared_until(free: Sequence[float], work_s: float) -> float:
    """Return when ``work_s`` seconds of work are done if every worker takes part as soon as it is free."""
    ordered = sorted(free)
    begins = 0.0
    for count, begin in enumerate(ordered, 1):
        begins += begin
        end = (work_s + begins) / count
        if count == len(ordered) or end <= ordered[count]:
            return end
    raise AssertionError("there is a worker")
