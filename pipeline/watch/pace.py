"""How fast a build goes and when it will be done, from what its workers tell about once a second."""

import heapq
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .progress import WorkerState

# The speed is that of the last third of the time so far, within these bounds.
SHORTEST_S, LONGEST_S = 20.0, 600.0

IDLE = ("starting", "waiting")

# Of so many shards for each worker, the last ones are handed out in thought, to see who is done when.
HANDED_OUT = 32


class _Work(NamedTuple):
    """What was compressed: characters, as far as they are known, and tokens that stand for further ones."""

    characters: float = 0.0
    loose_tokens: float = 0.0

    def plus(self, other: "_Work", sign: int = 1) -> "_Work":
        return _Work(self.characters + sign * other.characters, self.loose_tokens + sign * other.loose_tokens)


@dataclass
class _Hand:
    """A worker, and what it had compressed, and when it was, when it was first seen with its shard or starting."""

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
    """What had been done at a time, and the seconds that all workers together had been at work for it."""

    time: float
    busy_s: float
    work: _Work
    tokens: float


class Pace:
    """The speed of a build, and the time that is left of it.

    Work is measured in characters, of finished shards and of parts of those in hand, so that nothing waits for the next
    shard to finish. The speed is that of one worker at work, in the last third of the time so far: workers that start
    late, join or leave count as soon as they do, and a slow beginning is forgotten. The time left comes from handing
    out the shards that are left to the workers there are, so that it holds too where each has few of them. A worker
    that is starting is expected to take as long again as it has taken.

    Args:
        characters: of each shard to do, in the order in which they are begun.
        clock: seconds, never going back.
    """

    def __init__(self, characters: Mapping[int, int], clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._todo = dict(characters)
        self._hands: dict[str, _Hand] = {}
        # Shards that are compressed and are being written, while their workers compress others.
        self._written: dict[int, _Hand] = {}
        self._is_told = self._is_draining = False
        self._characters = 0
        self._tokens = self._documents = 0
        self._lost, self._lost_tokens = _Work(), 0
        self._busy_s, self._last = 0.0, clock()
        self._began: float | None = None
        self._samples: deque[_Sample] = deque()

    def update(self, states: Sequence[WorkerState]) -> None:
        """Take note of what every worker does now; those left out are gone."""
        now = self._pass_time()
        self._is_told = True
        self._hands = {state.name: self._hand(state, now) for state in states}
        self._measure(now)

    def finish(self, number: int, documents: int, tokens: int) -> None:
        """A shard was written."""
        now = self._pass_time()
        self._characters += self._todo.pop(number, 0)
        self._documents += documents
        self._tokens += tokens
        self._written.pop(number, None)
        for hand in self._holding(number):
            hand.shard = None
        if not self._is_told:
            self._measure(now)

    def fail(self, number: int, final: bool) -> None:
        """A shard failed: what was done of it is lost, and it is done again, or given up."""
        for hand in self._holding(number):
            self._lose(hand)
        self._written.pop(number, None)
        if final:
            self._todo.pop(number, None)

    def lose_worker(self, name: str) -> None:
        """A worker died with what it had in hand."""
        lost = [hand for hand in (*self._hands.values(), *self._written.values()) if hand.state.name == name]
        self._hands.pop(name, None)
        for hand in lost:
            self._written.pop(-1 if hand.shard is None else hand.shard, None)
            self._lose(hand)

    def drain(self) -> None:
        """Nothing new is begun."""
        self._is_draining = True

    @property
    def documents(self) -> int:
        """Compressed: of finished shards, and of those in hand as far as workers tell."""
        return self._documents + sum(hand.documents for hand in self._in_hand)

    @property
    def tokens(self) -> int:
        """Compressed: of finished shards, and of those in hand as far as workers tell."""
        return self._tokens + sum(hand.tokens for hand in self._in_hand)

    @property
    def lost_tokens(self) -> int:
        """Compressed in vain, by workers that died and in shards that failed."""
        return self._lost_tokens

    @property
    def tokens_per_s(self) -> float | None:
        """Speed of all workers together, of late; None before there is one."""
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        return (last.tokens - first.tokens) / max(last.time - first.time, 1e-9)

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the last shard is done; None before there is a speed, or while there is no worker."""
        speed = self._speed
        hands = self._hands.values()
        if not speed or (self._is_told and not hands):
            return None
        now = self._clock()
        free: list[float] = []
        busy_until = 0.0
        for hand in hands:
            if hand.state.doing == "starting":
                free.append(now - hand.since)
            elif hand.shard is None:
                free.append(0.0)
            else:
                free.append(self._left_s(hand, speed))
                busy_until = max(busy_until, free[-1])
        if self._is_draining:
            return busy_until
        taken = {hand.shard for hand in self._in_hand}
        waiting = [size / speed for number, size in self._todo.items() if number not in taken]
        return max(busy_until, _makespan(free or [0.0], waiting))

    @property
    def _in_hand(self) -> list["_Hand"]:
        """All that workers have begun and that is not finished."""
        return [hand for hand in (*self._hands.values(), *self._written.values()) if hand.shard is not None]

    @property
    def _density(self) -> float | None:
        """Characters a token."""
        return self._characters / self._tokens if self._tokens else None

    @property
    def _speed(self) -> float | None:
        """Characters a second of one worker at work."""
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        work = last.work.plus(first.work, -1)
        if last.busy_s == first.busy_s or (work.loose_tokens and not self._density):
            return None
        return (work.characters + work.loose_tokens * (self._density or 0.0)) / (last.busy_s - first.busy_s)

    def _hand(self, state: WorkerState, now: float) -> _Hand:
        former = self._hands.get(state.name)
        if state.doing == "starting":
            waits = former is not None and former.state.doing == "starting"
            return _Hand(state, former.since if former and waits else now)
        if former is not None and former.shard is not None and former.shard != state.shard:
            self._let_go(former, former.shard)
        if state.shard not in self._todo or state.shard in self._written:
            return _Hand(state, now)
        if former is None:
            return _Hand(state, now, state.shard, part_before=state.part or 0.0)
        if former.shard == state.shard:
            return replace(former, state=state)
        return _Hand(state, now, state.shard, state.tokens, state.documents, state.part or 0.0)

    def _let_go(self, hand: _Hand, shard: int) -> None:
        if hand.state.doing in ("compressing", "writing"):
            self._written[shard] = hand
        # Else it was read only, and waits.

    def _holding(self, number: int) -> list[_Hand]:
        return [hand for hand in self._in_hand if hand.shard == number]

    def _lose(self, hand: _Hand) -> None:
        if hand.shard is not None:
            self._lost, self._lost_tokens = self._lost.plus(self._work(hand)), self._lost_tokens + hand.tokens
            hand.shard = None

    def _work(self, hand: _Hand) -> _Work:
        """What is compressed of the shard in hand."""
        if hand.shard is None:
            return _Work()
        if hand.shard in self._written:
            return _Work(characters=self._todo[hand.shard])
        if hand.state.part is not None:
            return _Work(characters=self._todo[hand.shard] * min(hand.state.part, 1.0))
        most = self._todo[hand.shard] / self._density if self._density else float("inf")
        return _Work(loose_tokens=min(hand.tokens, most))

    def _left_s(self, hand: _Hand, speed: float) -> float:
        """Seconds left of a shard in hand: at the speed of it alone, the more the further it is."""
        assert hand.shard is not None
        size, work = self._todo[hand.shard], self._work(hand)
        done = work.characters + work.loose_tokens * (self._density or 0.0)
        spent = self._last - hand.since
        own = (done - size * hand.part_before) / spent if spent else speed
        return max(size - done, 0.0) / (speed + (max(own, speed / 4) - speed) * done / size)

    def _pass_time(self) -> float:
        now = self._clock()
        # One whose shard is finished has begun another by the time that it is next told of.
        busy = sum(hand.state.doing not in IDLE for hand in self._hands.values()) if self._is_told else 1
        self._busy_s += (now - self._last) * busy
        self._last = now
        return now

    def _measure(self, now: float) -> None:
        """Take a sample, and drop those that are too old."""
        work = _Work(characters=self._characters).plus(self._lost)
        for hand in self._in_hand:
            work = work.plus(self._work(hand))
        if self._began is None:
            if work == _Work() and not self._in_hand:
                return
            self._began = now
        self._samples.append(_Sample(now, self._busy_s, work, self.tokens + self._lost_tokens))
        window = min(max((now - self._began) / 3, SHORTEST_S), LONGEST_S)
        while len(self._samples) > 2 and self._samples[1].time <= now - window:
            self._samples.popleft()


def _makespan(free: Sequence[float], shards: Sequence[float]) -> float:
    """When the last shard is done, if each goes to the worker that is free first; all in seconds."""
    most = HANDED_OUT * len(free)
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
    """When so many seconds of work are done, if every worker takes part from when it is free."""
    ordered = sorted(free)
    begins = 0.0
    for count, begin in enumerate(ordered, 1):
        begins += begin
        end = (work_s + begins) / count
        if count == len(ordered) or end <= ordered[count]:
            return end
    raise AssertionError("there is a worker")
