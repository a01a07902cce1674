"""Answer questions as they come, in one loop of two threads.

::

    submit ──waiting──> documents → prompts → memory ──ready──> engine ──> listener
           (bounded)    (a thread, in groups)        (a thread; answers join and leave)
"""

import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import groupby
from time import monotonic
from typing import Self

from ...errors import (
    SUMMARY_CHARACTERS,
    EngineError,
    MissingDocumentsError,
    PiscoIndexError,
    QueueFullError,
    error_summary,
    some,
)
from ..answering.preparation import Preparation, Prepared
from ..questions.question import Question
from ..retriever import StoreRetriever
from .engine import Engine
from .question import Listener, LiveQuestion
from .ticket import Ticket

# Questions that are prepared together. More would keep the first of them from an engine that waits.
_TOGETHER = 32
# Questions that wait for the engine with their memory in RAM.
_READY = 64
# Seconds after which the engine's thread looks again for a question that may begin.
_PATIENCE = 1.0
# Seconds for which a failure of the engine counts. A load balancer sends no question to a server that is not ready, so
# that no answer would end a longer time.
_RECENT = 30.0

_log = logging.getLogger(__name__)


class LiveAnswering:
    """Answers questions as they come. Use it in a ``with`` block, which ends when all accepted questions are answered.

    Args:
        engine: engine that generates the answers.
        queue: largest number of questions that wait.
        wait: seconds that a prepared question waits for others before the engine reads their prompts together.
    """

    def __init__(self, engine: Engine, *, queue: int = 256, wait: float = 0.0):
        self._engine = engine
        self._queue = queue
        self._wait = wait
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._ready: deque[Ticket] = deque()
        # Both are used by one thread, and read by others.
        self._preparing: set[Ticket] = set()
        self._running: set[Ticket] = set()
        self._is_closed = False
        self._stopped = threading.Event()
        self._failure: str | None = None
        self._failed_at = 0.0
        names = {self._prepare_all: "pisco-index-preparing", self._generate_all: "pisco-index-generating"}
        self._threads = [threading.Thread(target=run, name=name, daemon=True) for run, name in names.items()]

    def submit(self, question: LiveQuestion, listener: Listener) -> Ticket:
        """Accept a question. Its answer, or an error, goes to the listener; ``Ticket.cancel`` gives it up.

        Raises:
            QueueFullError: too many questions wait, or the loop is closed.
        """
        ticket = Ticket(question, listener, self._engine, self._left)
        with self._changed:
            self.require_room()
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def require_room(self) -> None:
        """Check that a question would be accepted now, which costs less than to ask one in vain.

        Raises:
            QueueFullError: too many questions wait, or the loop is closed.
        """
        with self._changed:
            if self._is_closed:
                raise QueueFullError("The server is stopping. Ask again later, or another server.")
            if self._queued() >= self._queue:
                raise QueueFullError(f"The queue is full (questions waiting: {self._queue}). Ask again later.")

    @property
    def queued(self) -> int:
        """Number of questions that wait."""
        with self._changed:
            return self._queued()

    @property
    def running(self) -> int:
        """Number of answers in progress."""
        return len(self._running)

    def problem(self) -> str | None:
        """Return the reason why questions cannot be answered now; None if they can."""
        recent = monotonic() - self._failed_at < _RECENT
        return (self._failure if recent else None) or self._engine.problem()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._changed:
            self._is_closed = True
            dropped = [*self._waiting, *self._preparing, *self._ready, *self._running] if kind is not None else []
            self._changed.notify_all()
        for ticket in dropped:
            ticket.fail(EngineError("The server ends at once, because of an error."))
        for thread in self._threads:
            thread.join()

    def _queued(self) -> int:
        return len(self._waiting) + len(self._preparing) + len(self._ready)

    def _left(self, ticket: Ticket) -> None:
        """Free the place of a question that has ended or was given up."""
        with self._changed:
            if ticket.is_answered:
                self._failure = None
            for queue in (self._waiting, self._ready):
                if ticket in queue:
                    queue.remove(ticket)
            self._changed.notify_all()

    # Prepare: the first thread

    def _prepare_all(self) -> None:
        while group := self._next_group():
            for ticket in group:
                ticket.take()
            for same in _alike(group):
                try:
                    self._prepare(same)
                except PiscoIndexError as error:
                    _fail(same, error)
                # The loop must outlive errors of the program, which the listener and the log are told.
                except Exception as error:  # noqa: BLE001
                    _log.exception("questions cannot be prepared")
                    _fail(same, error)
            with self._changed:
                self._ready += [ticket for ticket in group if ticket.is_wanted()]
                self._preparing.clear()
                self._changed.notify_all()

    def _next_group(self) -> list[Ticket]:
        """Wait for questions, and return those to prepare together; none if no more will come."""
        with self._changed:
            while not self._waiting or len(self._ready) >= _READY:
                if self._is_closed and not self._waiting:
                    return []
                self._changed.wait()
            group = [self._waiting.popleft() for _ in range(min(len(self._waiting), _TOGETHER))]
            self._preparing |= set(group)
            return group

    def _prepare(self, tickets: Sequence[Ticket]) -> None:
        """Prepare questions of the same store and settings."""
        question = tickets[0].question
        index = question.index
        retriever = StoreRetriever(index.reader) if question.doc_ids is None else None
        hits = question.hits if retriever is not None else None
        preparation = Preparation(index.source, self._engine, retriever, hits, question.max_new_tokens, self._stopped)
        began = monotonic()
        asked = [
            Question(str(number), each.question.text, (), each.question.doc_ids or ())
            for number, each in enumerate(tickets)
        ]
        prompted = preparation.prompts(asked)
        found = monotonic()
        usable = [number for number, each in enumerate(prompted) if not _failed(tickets[number], each)]
        fetched = preparation.with_memory([prompted[number] for number in usable]) if usable else []
        done = monotonic()
        for number, each in zip(usable, fetched, strict=True):
            if each.error is not None:
                tickets[number].fail(each.error)
            elif tickets[number].is_wanted():
                tickets[number].prepare(each, found - began, done - found)

    # Generate: the second thread

    def _generate_all(self) -> None:
        while True:
            try:
                self._engine.run(self._take)
                return
            # As above. A device without memory left for a batch may have enough for the next.
            except Exception as error:  # noqa: BLE001
                _log.exception("the engine failed, and the answers in progress are lost")
                self._failed_at = monotonic()
                self._failure = f"The engine failed: {error_summary(error, SUMMARY_CHARACTERS)}"
                _fail(self._running.copy(), error if isinstance(error, EngineError) else EngineError(self._failure))
                self._running.clear()

    def _take(self, running: Sequence[object], patience: float | None) -> list[Ticket] | None:
        """Return the questions to begin beside those in progress (see ``Take``)."""
        self._running.intersection_update(running)  # pyrefly: ignore
        end = None if patience is None else monotonic() + patience
        with self._changed:
            while True:
                chosen = self._fitting()
                if chosen:
                    for ticket in chosen:
                        self._ready.popleft()
                        ticket.begin()
                    self._running |= set(chosen)
                    # The preparation may wait for room among the ready questions.
                    self._changed.notify_all()
                    return chosen
                if self._is_closed and not self._queued() and not running:
                    return None
                left = _PATIENCE if end is None else end - monotonic()
                if left <= 0:
                    return []
                # Questions that wait for room in the budget are woken by the end of another.
                self._changed.wait(min(left, self._until_ready() or left))

    def _fitting(self) -> list[Ticket]:
        """Return the first ready questions that fit the budget beside those in progress; none if others may join."""
        if not self._ready or (self._until_ready() > 0 and len(self._ready) < _READY):
            return []
        chosen: list[Ticket] = []
        longest = max((ticket.size for ticket in self._running), default=0)
        for ticket in self._ready:
            longest = max(longest, ticket.size)
            count = len(self._running) + len(chosen) + 1
            # A prompt above the budget is answered alone.
            if count > 1 and count * longest > self._engine.token_budget:
                break
            chosen.append(ticket)
        return chosen

    def _until_ready(self) -> float:
        """Return the seconds that the oldest ready question still waits for others."""
        return max(self._wait - self._ready[0].waited, 0) if self._ready else _PATIENCE


def _alike(tickets: Iterable[Ticket]) -> list[list[Ticket]]:
    """Return groups of questions of the same store and settings."""

    def settings(ticket: Ticket) -> tuple[int, bool, int, int]:
        asked = ticket.question
        return id(asked.index), asked.doc_ids is None, asked.hits, asked.max_new_tokens

    return [list(group) for _, group in groupby(sorted(tickets, key=settings), key=settings)]


def _fail(tickets: Iterable[Ticket], error: Exception) -> None:
    for ticket in tickets:
        ticket.fail(error)


def _failed(ticket: Ticket, prompted: Prepared) -> bool:
    """Tell a question why it cannot be answered; return False if it can."""
    named, missing = ticket.question.doc_ids, prompted.result.missing
    if named is not None and missing:
        ticket.fail(MissingDocumentsError(f"The store holds no memory of {some(missing)}. Check the ids.", missing))
    elif prompted.error is not None:
        ticket.fail(prompted.error)
    return not ticket.is_wanted()
