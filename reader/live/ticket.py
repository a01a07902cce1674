"""A question in the loop: its state, and what its listener is told."""

import time
from collections.abc import Callable, Sequence

from ...model.decoding.live import Reason
from ...model.memory import Memory
from ..answering.preparation import Prepared
from .engine import Engine, Text
from .question import Grounds, Listener, LiveDocument, LiveQuestion, LiveResult, Timings


class Ticket:
    """A question from its submission to the end of its answer; for the engine, a ``LiveAnswer``.

    Args:
        question: the question.
        listener: listener that is told.
        engine: engine that answers it.
        left: callback that is given the ticket when it was ended or given up.

    Attributes:
        is_answered: True once the answer is finished.
    """

    def __init__(self, question: LiveQuestion, listener: Listener, engine: Engine, left: Callable[["Ticket"], None]):
        self.question = question
        self.limit = question.max_new_tokens
        self.is_answered = False
        self._listener = listener
        self._engine = engine
        self._left = left
        self._stream: Text | None = engine.stream() if question.streams else None
        self._ids: list[int] = []
        self._is_over = False
        self._prepared: Prepared | None = None
        self._retrieve = self._fetch = 0.0
        self._submitted = self._taken = self._ready = self._begun = self._first = time.monotonic()

    # For the loop

    @property
    def size(self) -> int:
        """Number of tokens of the prompt with the longest answer."""
        return len(self.prompt) + self.limit

    @property
    def waited(self) -> float:
        """Seconds since the question was prepared."""
        return time.monotonic() - self._ready

    def take(self) -> None:
        """Note that the preparation begins."""
        self._taken = time.monotonic()

    def prepare(self, prepared: Prepared, retrieve: float, fetch: float) -> None:
        """Take the prompt and the memory, and the seconds for which they were made."""
        self._prepared, self._retrieve, self._fetch = prepared, retrieve, fetch
        self._ready = time.monotonic()
        result = prepared.result
        scores: Sequence[float | None] = result.scores or [None] * len(result.documents)
        documents = map(LiveDocument, result.documents, scores, self.memory.lengths)
        self._listener.prepared(
            Grounds(tuple(documents), result.prompt_tokens, result.memory_tokens, result.text_tokens)
        )

    def begin(self) -> None:
        """Note that the engine takes the question."""
        self._begun = time.monotonic()

    def cancel(self) -> None:
        """Give the question up: nobody waits for its answer any more."""
        if not self._is_over:
            self._is_over = True
            self._left(self)

    # For the engine

    @property
    def prompt(self) -> Sequence[int]:
        """Token ids of the prompt."""
        return () if self._prepared is None else self._prepared.prompt

    @property
    def memory(self) -> Memory:
        """Memory of the documents."""
        assert self._prepared is not None
        assert self._prepared.memory is not None
        return self._prepared.memory

    def is_wanted(self) -> bool:
        """Return False once the question was given up, or has its answer."""
        return not self._is_over

    def add(self, tokens: Sequence[int]) -> None:
        """Take the next tokens."""
        if not self._ids:
            self._first = time.monotonic()
        self._ids += tokens
        if self._stream is not None and not self._is_over and (text := self._stream.add(tokens)):
            self._listener.piece(text)

    def end(self, reason: Reason) -> None:
        """Tell the answer."""
        if self._is_over:
            return
        # If the text cannot be made, the ticket is not over, and the loop can tell its failure.
        whole = self._engine.text(self._ids)
        rest = "" if self._stream is None else self._stream.end()
        self._is_over = True
        if rest:
            self._listener.piece(rest)
        now = time.monotonic()
        timings = Timings(
            queue=self._taken - self._submitted + self._begun - self._ready,
            retrieve=self._retrieve,
            fetch=self._fetch,
            first_token=self._first - self._submitted,
            decode=now - self._begun,
            total=now - self._submitted,
        )
        self.is_answered = True
        self._listener.answered(LiveResult(whole, reason, len(self._ids), timings))
        self._left(self)

    def fail(self, error: Exception) -> None:
        """Tell that there is no answer."""
        if not self._is_over:
            self._is_over = True
            self._listener.failed(error)
            self._left(self)
