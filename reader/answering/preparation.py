"""Prepare questions for the decoder: find their documents, make their prompts, and fetch their memory."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ...configs.names import DOCUMENTS
from ...errors import CorruptStoreError, PromptError, some
from ...model.memory import DocumentSize, Memory
from ...model.prompt import require_question
from ..generator import Prompter
from ..memory_source import MemorySource
from ..questions.question import Question
from ..retriever import Retriever
from .answered import AnsweredQuestion

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Prepared:
    """A question up to its answer.

    Attributes:
        place: number of the question among all.
        result: its result so far: everything but the answer, with the error if it cannot be answered.
        prompt: token ids of its prompt.
        memory: memory of its documents; None if it is not fetched yet, or the question cannot be answered.
        error: error for which it cannot be answered; None if it can.
    """

    place: int
    result: AnsweredQuestion
    prompt: Sequence[int] = ()
    memory: Memory | None = None
    error: Exception | None = None


class _StoppedError(Exception):
    """The caller wants no more batches."""


@dataclass(frozen=True)
class Preparation:
    """Prepares questions. It may be used in another thread than the generator.

    Attributes:
        source: source of memory.
        prompter: maker of the prompts.
        retriever: retriever that finds the documents; None for the documents that the questions name.
        hits: largest number of documents of a question; None for 5 of a retriever, or all that a question names.
        max_new_tokens: largest number of tokens of an answer.
        stopped: event that ends the preparation early, with an error of no interest.
    """

    source: MemorySource
    prompter: Prompter
    retriever: Retriever | None
    hits: int | None
    max_new_tokens: int
    stopped: threading.Event

    def prompts(self, window: Sequence[Question], begin: int = 0) -> list[Prepared]:
        """Return questions with their documents and prompts; ``begin`` is the place of the first."""
        began = time.perf_counter()
        found = self._find(window)
        sized = [each for each in window if found[each.id][0] and _is_unicode(each.text)]
        sizes = apart(
            lambda asked: _unless(self.stopped, self.source.sizes([(each.text, found[each.id][0]) for each in asked])),
            sized,
        )
        by_id = dict(zip((each.id for each in sized), sizes, strict=True))
        prepared = [
            self._prompted(Prepared(begin + i, _asked(each, *found[each.id])), by_id.get(each.id, []))
            for i, each in enumerate(_unless(self.stopped, window))
        ]
        share = (time.perf_counter() - began) / len(window)
        return [replace(each, result=replace(each.result, seconds=share)) for each in prepared]

    def _find(self, window: Sequence[Question]) -> dict[str, tuple[tuple[str, ...], tuple[float, ...]]]:
        """Return ids and scores of the documents of each question, by its id."""
        if self.retriever is None:
            return {each.id: (each.doc_ids[: self.hits], ()) for each in window}
        found = self.retriever.retrieve({each.id: each.text for each in window}, hits=self.hits or DOCUMENTS)
        return {
            each.id: (tuple(hit.doc_id for hit in found[each.id]), tuple(hit.score for hit in found[each.id]))
            for each in window
        }

    def _prompted(self, prepared: Prepared, sizes: Sequence[DocumentSize | None] | Exception) -> Prepared:
        """Leave out the documents without memory, and make the prompt."""
        result, prompt = prepared.result, []
        try:
            require_unicode(result.question)
            require_question(result.question)
            if isinstance(sizes, Exception):
                raise sizes
            result, held = _without_missing(result, sizes)
            if not held:
                if result.missing:
                    raise PromptError(f"The store holds no memory of the question's documents: {some(result.missing)}.")
                raise PromptError(
                    "The question names no document." if self.retriever is None else "No document was found."
                )
            prompt = self.prompter.prompt_ids(result.question, [size.memory for size in held])
            result = replace(result, prompt_tokens=len(prompt))
            self.prompter.require_fit([prompt], self.max_new_tokens)
        except (PromptError, CorruptStoreError) as error:
            return replace(prepared, result=replace(result, error=str(error)), prompt=prompt, error=error)
        return replace(prepared, result=result, prompt=prompt)

    def with_memory(self, batch: Sequence[Prepared]) -> list[Prepared]:
        """Fetch the memory of questions, of which all or none can be answered."""
        if batch[0].error is not None:
            return list(batch)
        began = time.perf_counter()
        memories = apart(
            lambda asked: _unless(
                self.stopped, self.source.memories([(each.result.question, each.result.documents) for each in asked])
            ),
            batch,
        )
        share = (time.perf_counter() - began) / len(batch)
        fetched = []
        for each, memory in zip(batch, memories, strict=True):
            error = memory if isinstance(memory, Exception) else _problem(memory)
            reason = None if error is None else str(error)
            result = replace(each.result, error=reason, seconds=each.result.seconds + share)
            usable = None if isinstance(memory, Exception) or error is not None else memory
            fetched.append(replace(each, result=result, memory=usable, error=error))
        return fetched


def require_unicode(question: str) -> None:
    """Check that a question has no half of a surrogate pair, as arguments have that are not UTF-8.

    Raises:
        PromptError: if it has one.
    """
    if not _is_unicode(question):
        raise PromptError("The question is not valid Unicode.")


def _is_unicode(text: str) -> bool:
    return text.encode("utf-8", "replace").decode() == text


def _unless(stopped: threading.Event, items: Iterable[T]) -> Iterator[T]:
    """Yield items until the caller wants no more batches."""
    for each in items:
        if stopped.is_set():
            raise _StoppedError
        yield each


def apart(ask: Callable[[Sequence[T]], Iterable[R]], items: Sequence[T]) -> list[R | PromptError | CorruptStoreError]:
    """Ask for all items together; if that is refused, ask for halves of them, down to single items.

    A refused item has the error in the place of its result, and takes no neighbour with it.
    """
    if not items:
        return []
    try:
        return list(ask(items))
    except (PromptError, CorruptStoreError) as error:
        if len(items) == 1:
            return [error]
        half = len(items) // 2
        return [*apart(ask, items[:half]), *apart(ask, items[half:])]


def _asked(question: Question, documents: tuple[str, ...], scores: tuple[float, ...]) -> AnsweredQuestion:
    """Return the result of a question as far as it is known once its documents are found."""
    return AnsweredQuestion(
        id=question.id, question=question.text, answer=None, error=None, documents=documents, scores=scores,
        missing=(), memory_tokens=0, text_tokens=0, prompt_tokens=0, seconds=0.0,
    )  # fmt: skip


def _without_missing(
    result: AnsweredQuestion, sizes: Sequence[DocumentSize | None]
) -> tuple[AnsweredQuestion, list[DocumentSize]]:
    """Return a result without the documents that have no size, and the sizes of the others."""
    held = [i for i, size in enumerate(sizes) if size is not None]
    known = [size for size in sizes if size is not None]
    found = replace(
        result,
        documents=tuple(result.documents[i] for i in held),
        scores=tuple(result.scores[i] for i in held) if result.scores else (),
        missing=tuple(dict.fromkeys(d for d, size in zip(result.documents, sizes, strict=True) if size is None)),
        memory_tokens=sum(size.memory for size in known),
        text_tokens=sum(size.text for size in known),
    )
    return found, known


def _problem(memory: Memory) -> CorruptStoreError | None:
    """Return the error of memory that cannot be used; None if it can."""
    # A single NaN would reach every question of the batch through the attention of padded prompts.
    if memory.values.isfinite().all():
        return None
    wrong = [d for d, values in zip(memory.doc_ids, memory, strict=True) if not values.isfinite().all()]
    return CorruptStoreError(f"The memory of {some(wrong)} is not finite. See: pisco-index verify")
