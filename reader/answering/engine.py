"""Answer many questions: documents, prompts and memory ahead of the decoder, in batches of similar length.

::

    questions ──windows──> documents → prompts ──sorted by length──> batches → memory   (a thread, two batches ahead)
                                                                        └──> answers ──in order──> caller

The batches depend only on the questions and on the settings, not on where answering begins: an interrupted run that
begins again gets the same batches, and so the same answers.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from collections.abc import Generator as PythonGenerator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

from ...configs.names import DOCUMENTS
from ...errors import AnsweringInterruptedError, CorruptStoreError, PromptError, some
from ...model.decoding.batches import split_into_batches
from ...model.memory import DocumentSize, Memory
from ...model.prompt import require_question
from ..generator import Generator
from ..memory_source import MemorySource
from ..questions.question import Question
from ..retriever import Retriever
from .answered import AnsweredQuestion

WINDOW = 512
"""Number of questions whose prompts are sorted by length together by default."""

# Batches whose memory is fetched before they are answered. The first one of a window waits for its search and prompts.
_AHEAD = 2
# Seconds after which a wait for a batch looks for a signal.
_PATIENCE = 0.2

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Prepared:
    """A question up to its answer.

    Attributes:
        place: number of the question among all.
        result: its result so far: everything but the answer, with the error if it cannot be answered.
        prompt: token ids of its prompt.
        memory: memory of its documents; None if it is not fetched yet, or the question cannot be answered.
    """

    place: int
    result: AnsweredQuestion
    prompt: Sequence[int] = ()
    memory: Memory | None = None


class _StoppedError(Exception):
    """The caller wants no more batches."""


@dataclass(frozen=True)
class Answering:
    """Answers questions in batches, each from the memory of its documents.

    The generator's ``token_budget`` limits a batch. Memory is held for the batch that is answered and the next two.

    Attributes:
        source: source of memory. It is used in another thread than the generator.
        generator: generator of answers.
        retriever: retriever that finds the documents; None for the documents that the questions name.
        hits: largest number of documents of a question; None for 5 of a retriever, or all that a question names.
        max_new_tokens: largest number of tokens of an answer.
        window: number of questions whose prompts are sorted by length together.
    """

    source: MemorySource
    generator: Generator
    retriever: Retriever | None = None
    hits: int | None = None
    max_new_tokens: int = 128
    window: int = WINDOW

    def answer(
        self,
        questions: Sequence[Question],
        *,
        start: int = 0,
        known: Mapping[str, AnsweredQuestion] | None = None,
        keep: Callable[[Sequence[AnsweredQuestion]], object] | None = None,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[AnsweredQuestion]:
        """Yield the questions with their answers, in order.

        A question is yielded without an answer if it has no documents, its prompt does not fit, or its memory is
        damaged. All other errors end the iteration. Closing the iterator ends its thread.

        Args:
            questions: the questions, with different ids.
            start: number of questions to leave out, because they have been answered before with the same settings.
            known: answers to later questions, by id, which were given to ``keep`` before with the same settings.
            keep: callback that is given the new answers of each batch, before any of them is yielded.
            progress: callback that is given the number of questions answered, earlier ones included, and the total.
            should_stop: returns True to stop after the batch that is being answered.

        Raises:
            AnsweringInterruptedError: if ``should_stop`` has returned True.
            StoreError: if the store cannot be read.
            FingerprintMismatchError: if memory was made with another connector than the generator's.
        """
        known = known or {}
        answers = {i: known[each.id] for i, each in enumerate(questions) if i >= start and each.id in known}
        wanted = frozenset(range(start, len(questions))) - answers.keys()
        done, place = start + len(answers), start
        stopped = threading.Event()
        with closing(_ahead(self._batches(questions, wanted, stopped), stopped, should_stop)) as batches:
            for batch in batches:
                _require_wanted(should_stop)
                fresh = {i: each for i, each in self._answered(batch) if i in wanted}
                if keep is not None:
                    keep(list(fresh.values()))
                answers |= fresh
                done += len(fresh)
                if progress is not None:
                    progress(done, len(questions))
                while place in answers:
                    yield answers.pop(place)
                    place += 1
        # No batch is left if all the questions were answered before.
        yield from (answers[i] for i in sorted(answers))

    # Ahead of the generator

    def _batches(
        self, questions: Sequence[Question], wanted: Set[int], stopped: threading.Event
    ) -> Iterator[list[_Prepared]]:
        """Yield the batches that have a wanted question, with their memory.

        The questions of a window that cannot be answered make its first batch.
        """
        for begin in range(0, len(questions), self.window):
            window = questions[begin : begin + self.window]
            if wanted.isdisjoint(range(begin, begin + len(window))):
                continue
            prepared = self._prepare(window, begin, stopped)
            failed = [each for each in prepared if each.result.error is not None]
            others = [each for each in prepared if each.result.error is None]
            lengths = [len(each.prompt) for each in others]
            numbers = split_into_batches(lengths, self.max_new_tokens, self.generator.token_budget)
            for batch in (failed, *([others[i] for i in batch] for batch in numbers)):
                if not wanted.isdisjoint(each.place for each in batch):
                    yield self._with_memory(batch, stopped)

    def _prepare(self, window: Sequence[Question], begin: int, stopped: threading.Event) -> list[_Prepared]:
        """Return the questions of a window with their documents and prompts."""
        began = time.perf_counter()
        found = self._find(window)
        sized = [each for each in window if found[each.id][0] and _is_unicode(each.text)]
        sizes = _apart(
            lambda asked: _unless(stopped, self.source.sizes([(each.text, found[each.id][0]) for each in asked])), sized
        )
        by_id = dict(zip((each.id for each in sized), sizes, strict=True))
        prepared = [
            self._prompted(_Prepared(begin + i, _asked(each, *found[each.id])), by_id.get(each.id, []))
            for i, each in enumerate(_unless(stopped, window))
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

    def _prompted(self, prepared: _Prepared, sizes: Sequence[DocumentSize | None] | Exception) -> _Prepared:
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
            prompt = self.generator.prompt_ids(result.question, [size.memory for size in held])
            result = replace(result, prompt_tokens=len(prompt))
            self.generator.require_fit([prompt], self.max_new_tokens)
        except (PromptError, CorruptStoreError) as error:
            result = replace(result, error=str(error))
        return replace(prepared, result=result, prompt=prompt)

    def _with_memory(self, batch: Sequence[_Prepared], stopped: threading.Event) -> list[_Prepared]:
        """Fetch the memory of a batch."""
        if batch[0].result.error is not None:
            return list(batch)
        began = time.perf_counter()
        memories = _apart(
            lambda asked: _unless(
                stopped, self.source.memories([(each.result.question, each.result.documents) for each in asked])
            ),
            batch,
        )
        share = (time.perf_counter() - began) / len(batch)
        fetched = []
        for each, memory in zip(batch, memories, strict=True):
            error = str(memory) if isinstance(memory, Exception) else _problem(memory)
            result = replace(each.result, error=error, seconds=each.result.seconds + share)
            usable = None if isinstance(memory, Exception) or error is not None else memory
            fetched.append(replace(each, result=result, memory=usable))
        return fetched

    # Answers

    def _answered(self, batch: Sequence[_Prepared]) -> list[tuple[int, AnsweredQuestion]]:
        """Answer a batch; return its results with their places."""
        asked = [each for each in batch if each.memory is not None]
        began = time.perf_counter()
        answers = dict(zip((each.place for each in asked), _apart(self._generated, asked), strict=True))
        share = (time.perf_counter() - began) / len(batch)
        results = []
        for each in batch:
            answer = answers.get(each.place)
            result = replace(each.result, seconds=round(each.result.seconds + share, 6))
            if isinstance(answer, Exception):
                result = replace(result, error=str(answer))
            elif answer is not None:
                result = replace(result, answer=answer)
            results.append((each.place, result))
        return results

    def _generated(self, batch: Sequence[_Prepared]) -> list[str]:
        return self.generator.answer_batch(
            [each.result.question for each in batch],
            [each.memory for each in batch if each.memory is not None],
            max_new_tokens=self.max_new_tokens,
            prompts=[each.prompt for each in batch],
        )


def require_unicode(question: str) -> None:
    """Check that a question has no half of a surrogate pair, as arguments have that are not UTF-8.

    Raises:
        PromptError: if it has one.
    """
    if not _is_unicode(question):
        raise PromptError("The question is not valid Unicode.")


def _is_unicode(text: str) -> bool:
    return text.encode("utf-8", "replace").decode() == text


def _ahead(batches: Iterator[T], stopped: threading.Event, should_stop: Callable[[], bool]) -> PythonGenerator[T]:
    """Yield batches, while a thread prepares the next ones. It ends soon after ``stopped`` is set, which this does."""
    with ThreadPoolExecutor(1, "pisco-index-answering") as thread:
        try:
            pending = deque(thread.submit(next, batches, None) for _ in range(_AHEAD))
            while True:
                # Memory that is made of text may take minutes.
                while not wait([pending[0]], timeout=_PATIENCE).done:
                    _require_wanted(should_stop)
                batch = pending.popleft().result()
                if batch is None:
                    return
                pending.append(thread.submit(next, batches, None))
                yield batch
        finally:
            stopped.set()


def _unless(stopped: threading.Event, items: Iterable[T]) -> Iterator[T]:
    """Yield items until the caller wants no more batches."""
    for each in items:
        if stopped.is_set():
            raise _StoppedError
        yield each


def _apart(ask: Callable[[Sequence[T]], Iterable[R]], items: Sequence[T]) -> list[R | PromptError | CorruptStoreError]:
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
        return [*_apart(ask, items[:half]), *_apart(ask, items[half:])]


def _require_wanted(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise AnsweringInterruptedError("Stopped by a signal. Run the same command again to answer the rest.")


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


def _problem(memory: Memory) -> str | None:
    """Return the reason why memory cannot be used; None if it can."""
    # A single NaN would reach every question of the batch through the attention of padded prompts.
    if memory.values.isfinite().all():
        return None
    wrong = [d for d, values in zip(memory.doc_ids, memory, strict=True) if not values.isfinite().all()]
    return f"The memory of {some(wrong)} is not finite. See: pisco-index verify"
