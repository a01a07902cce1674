"""A question that came to a server, the documents that were found for it, and its answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ...model.decoding.live import Reason
from ..index import Index


@dataclass(frozen=True)
class LiveQuestion:
    """A question that came to a server.

    Attributes:
        index: store to answer it from.
        text: the question.
        doc_ids: ids of its documents, best first; None to search the store for them.
        hits: largest number of documents to find.
        max_new_tokens: largest number of tokens of the answer.
        streams: True if the listener wants the answer piece by piece.
    """

    index: Index
    text: str
    doc_ids: tuple[str, ...] | None
    hits: int
    max_new_tokens: int
    streams: bool = False


@dataclass(frozen=True)
class LiveDocument:
    """A document in a prompt.

    Attributes:
        doc_id: id of the document.
        score: score of the search; None for a document that the question named.
        memory_tokens: number of its memory vectors.
    """

    doc_id: str
    score: float | None
    memory_tokens: int


@dataclass(frozen=True)
class Grounds:
    """Everything that is known about an answer before it begins.

    Attributes:
        documents: documents in the prompt, best first.
        prompt_tokens: number of tokens of the prompt, memory included.
        memory_tokens: number of memory vectors in the prompt.
        text_tokens: number of tokens of the documents' text that they stand for.
    """

    documents: Sequence[LiveDocument]
    prompt_tokens: int
    memory_tokens: int
    text_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds that the parts of an answer took.

    Attributes:
        queue: waiting for preparation, and then for a place in the batch.
        retrieve: finding the documents and making the prompt, together with the questions that were prepared with it.
        fetch: reading the documents' memory, likewise.
        first_token: from the submission of the question to the first token.
        decode: from its place in the batch to the last token.
        total: from the submission to the last token.
    """

    queue: float
    retrieve: float
    fetch: float
    first_token: float
    decode: float
    total: float


@dataclass(frozen=True)
class LiveResult:
    """A finished answer.

    Attributes:
        text: the answer.
        reason: reason for its end.
        tokens: number of its tokens, the end token included.
        timings: seconds that its parts took.
    """

    text: str
    reason: Reason
    tokens: int
    timings: Timings


class Listener(Protocol):
    """Receives the events of an answer. Other threads call its methods, which must neither wait nor raise."""

    def prepared(self, grounds: Grounds) -> None:
        """Take what is known before the answer begins."""
        ...

    def piece(self, text: str) -> None:
        """Take the next piece of the answer, if the question streams."""
        ...

    def answered(self, result: LiveResult) -> None:
        """Take the finished answer; the last call."""
        ...

    def failed(self, error: Exception) -> None:
        """Take the reason for having no answer; the last call."""
        ...
