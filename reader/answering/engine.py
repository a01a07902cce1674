"""Answer many questions: documents, memory and prompts ahead of the decoder, in batches of similar length.

::

    questions ──windows──> documents → memory → prompt   (a thread, one window ahead)
                               └──sorted by length──> batches → answers ──in order──> caller

The batches depend only on the questions and on the settings, not on where answering begins: an interrupted run that
begins again at any question gets the same batches, and so the same answers.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Generator as PythonGenerator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace

from ...errors import AnsweringInterruptedError, CorruptStoreError, MissingDocumentsError, PromptError, some
from ...model.memory import Memory
from ..generator import Generator
from ..memory_source import MemorySource
from ..questions.question import Question
from ..retriever import Retriever

HITS = 5
"""Number of documents that a retriever finds for a question by default."""

TOKEN_BUDGET = 16_384
"""Tokens of a batch by default, padding and new tokens included."""

WINDOW = 512
"""Questions that are sorted together. Their memory is held at once, and that of the next window: 0.7 GB at 5 documents
of 8 vectors of width 4096."""

# Seconds after which a wait for a window looks for a signal.
_PATIENCE = 0.2


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question with its answer, or with the reason for having none.

    Attributes:
        id: id of the question.
        question: the question.
        answer: the answer; None if there is none.
        error: reason why there is no answer; None if there is one.
        documents: ids of the documents that it was answered from, best first.
        scores: the retriever's scores of these documents; empty if the question named them itself.
        missing: ids of its documents that the store does not hold, and that were left out.
        memory_tokens: number of memory vectors in the prompt.
        text_tokens: number of tokens of the documents' text that they stand for.
        prompt_tokens: number of tokens of the prompt, memory included.
        seconds: its share of the time that was spent on its window and on its batch.
    """

    id: str
    question: str
    answer: str | None
    error: str | None
    documents: tuple[str, ...]
    scores: tuple[float, ...]
    missing: tuple[str, ...]
    memory_tokens: int
    text_tokens: int
    prompt_tokens: int
    seconds: float


@dataclass(frozen=True)
class _Prepared:
    """A question up to its answer.

    Attributes:
        result: what is known of its result: all but the answer, and the error if it cannot be answered.
        prompt: token ids of its prompt.
        memory: memory of its documents; None if it cannot be answered.
    """

    result: AnsweredQuestion
    prompt: list[int]
    memory: Memory | None


class _StoppedError(Exception):
    """The caller wants no more windows."""


@dataclass(frozen=True)
class Answering:
    """Answers questions in batches, each from the memory of its documents.

    Attributes:
        source: source of memory. It is used in another thread than the generator.
        generator: generator of answers.
        retriever: retriever that finds the documents; None for the documents that the questions name.
        hits: largest number of documents of a question; None for 5 of a retriever, or all that a question names.
        max_new_tokens: largest number of tokens of an answer.
        token_budget: largest number of tokens in a batch: questions, times the longest prompt and the new tokens.
        window: number of questions whose prompts are sorted by length together.
    """

    source: MemorySource
    generator: Generator
    retriever: Retriever | None = None
    hits: int | None = None
    max_new_tokens: int = 128
    token_budget: int = TOKEN_BUDGET
    window: int = WINDOW

    def answer(
        self,
        questions: Sequence[Question],
        *,
        start: int = 0,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[AnsweredQuestion]:
        """Yield the questions with their answers, in order.

        A question is yielded without an answer if it has no documents, its prompt does not fit, or its memory is
        damaged. All other errors end the iteration. Closing the iterator ends its thread.

        Args:
            questions: the questions, with different ids.
            start: number of questions to leave out, because they have been answered before with the same settings.
            progress: callback that is given the number of questions answered, those left out included, and the total.
            should_stop: returns True to stop after the batch that is being answered.

        Raises:
            AnsweringInterruptedError: if ``should_stop`` has returned True.
            StoreError: if the store cannot be read.
            FingerprintMismatchError: if memory was made with another connector than the generator's.
        """
        if start >= len(questions):
            return
        begin = start - start % self.window
        windows = [questions[i : i + self.window] for i in range(begin, len(questions), self.window)]
        done = start
        with closing(self._ahead(windows, should_stop)) as ahead:
            for prepared in ahead:
                fresh = range(max(start - begin, 0), len(prepared))
                begin += len(prepared)
                answers: dict[int, AnsweredQuestion] = {}
                for batch in self._batches(prepared):
                    _require_wanted(should_stop)
                    if any(i in fresh for i in batch):
                        answers |= self._answered(batch, [prepared[i] for i in batch])
                        done += sum(i in fresh for i in batch)
                        if progress is not None:
                            progress(done, len(questions))
                yield from (answers[i] for i in fresh)

    # Ahead of the generator

    def _ahead(
        self, windows: Sequence[Sequence[Question]], should_stop: Callable[[], bool]
    ) -> PythonGenerator[list[_Prepared]]:
        """Yield the windows prepared, while a thread prepares the next one."""
        stopped = threading.Event()
        with ThreadPoolExecutor(1, "pisco-index-answering") as thread:
            try:
                following: Future[list[_Prepared]] | None = None
                for number in range(len(windows)):
                    current = following or thread.submit(self._prepare, windows[number], stopped)
                    # Memory that is made of text may take minutes.
                    while not wait([current], timeout=_PATIENCE).done:
                        _require_wanted(should_stop)
                    prepared = current.result()
                    is_last = number + 1 == len(windows)
                    following = None if is_last else thread.submit(self._prepare, windows[number + 1], stopped)
                    yield prepared
            finally:
                stopped.set()

    def _prepare(self, window: Sequence[Question], stopped: threading.Event) -> list[_Prepared]:
        began = time.perf_counter()
        found = self._find(window)
        prepared = []
        for question, (documents, scores) in zip(window, found, strict=True):
            if stopped.is_set():
                raise _StoppedError
            prepared.append(self._prompted(question, documents, scores))
        tokens = self._text_tokens(prepared)
        share = (time.perf_counter() - began) / len(window)
        return [replace(each, result=_measured(each.result, tokens, share)) for each in prepared]

    def _find(self, window: Sequence[Question]) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
        """Return ids and scores of the documents of each question."""
        if self.retriever is None:
            return [(question.doc_ids[: self.hits], ()) for question in window]
        found = self.retriever.retrieve({each.id: each.text for each in window}, hits=self.hits or HITS)
        hits = [found[question.id] for question in window]
        return [(tuple(hit.doc_id for hit in each), tuple(hit.score for hit in each)) for each in hits]

    def _prompted(self, question: Question, documents: tuple[str, ...], scores: tuple[float, ...]) -> _Prepared:
        """Fetch a question's memory and make its prompt."""
        missing: tuple[str, ...] = ()
        memory: Memory | None = None
        prompt: list[int] = []
        error = None
        try:
            memory, missing = self._memory(question, documents)
            if missing:
                absent = set(missing)
                held = [i for i, doc_id in enumerate(documents) if doc_id not in absent]
                documents = tuple(documents[i] for i in held)
                scores = tuple(scores[i] for i in held) if scores else ()
            memory = _usable(memory, documents, missing)
            prompt = self.generator.prompt_ids(question.text, memory.lengths)
            self.generator.require_fit([prompt], self.max_new_tokens)
        except (PromptError, CorruptStoreError) as problem:
            error = str(problem)
        vectors = 0 if memory is None else len(memory.values)
        result = AnsweredQuestion(
            id=question.id, question=question.text, answer=None, error=error, documents=documents, scores=scores,
            missing=missing, memory_tokens=vectors, text_tokens=0, prompt_tokens=len(prompt), seconds=0.0,
        )  # fmt: skip
        return _Prepared(result, prompt, memory if error is None else None)

    def _memory(self, question: Question, documents: tuple[str, ...]) -> tuple[Memory | None, tuple[str, ...]]:
        """Return the memory of the documents that the source holds, None without any, and the ids of the others."""
        held, missing = documents, ()
        while held:
            try:
                return self.source.memory(question.text, held), missing
            except MissingDocumentsError as error:
                if not (absent := set(error.doc_ids)) & set(held):
                    raise
                missing = (*missing, *error.doc_ids)
                held = tuple(doc_id for doc_id in held if doc_id not in absent)
        return None, missing

    def _text_tokens(self, prepared: Sequence[_Prepared]) -> Mapping[str, int]:
        ids = list(dict.fromkeys(d for each in prepared if each.memory is not None for d in each.result.documents))
        return dict(zip(ids, self.source.text_tokens(ids), strict=True)) if ids else {}

    # Batches

    def _batches(self, prepared: Sequence[_Prepared]) -> list[list[int]]:
        """Return the places of a window's questions batch by batch, the longest prompts first.

        Questions that cannot be answered make the first batch.
        """
        lengths = [len(each.prompt) for each in prepared]
        failed = [i for i, each in enumerate(prepared) if each.memory is None]
        # Prompts of similar length share a batch, so that little is padded. The longest come first, so that memory that
        # does not suffice is noticed at once.
        order = sorted(set(range(len(prepared))) - set(failed), key=lambda i: (-lengths[i], i))
        batches = [failed] if failed else []
        while order:
            count = max(1, self.token_budget // (lengths[order[0]] + self.max_new_tokens))
            batches.append(order[:count])
            order = order[count:]
        return batches

    def _answered(self, places: Sequence[int], batch: Sequence[_Prepared]) -> dict[int, AnsweredQuestion]:
        """Answer a batch; return its results by place."""
        if batch[0].memory is None:
            return {i: each.result for i, each in zip(places, batch, strict=True)}
        began = time.perf_counter()
        outcomes = self._generated(batch)
        share = (time.perf_counter() - began) / len(batch)
        return {
            i: replace(each.result, answer=answer, error=error, seconds=round(each.result.seconds + share, 6))
            for i, each, (answer, error) in zip(places, batch, outcomes, strict=True)
        }

    def _generated(self, batch: Sequence[_Prepared]) -> list[tuple[str | None, str | None]]:
        """Return the answer or the error of each question of a batch."""
        try:
            answers = self.generator.answer_batch(
                [each.result.question for each in batch],
                [each.memory for each in batch if each.memory is not None],
                max_new_tokens=self.max_new_tokens,
                prompts=[each.prompt for each in batch],
            )
        except PromptError as error:
            if len(batch) == 1:
                return [(None, str(error))]
            # The question that the generator refuses must not take its neighbours' answers.
            return [outcome for each in batch for outcome in self._generated([each])]
        return [(answer, None) for answer in answers]


def _require_wanted(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise AnsweringInterruptedError("Stopped by a signal. Run the same command again to answer the rest.")


def _usable(memory: Memory | None, documents: Sequence[str], missing: Sequence[str]) -> Memory:
    """Return a question's memory, if there is any and it holds numbers."""
    if memory is None:
        absent = f": the store does not hold {some(missing)}" if missing else ""
        raise PromptError(f"The question has no document to be answered from{absent}.")
    # A single NaN would reach every question of the batch through the attention of padded prompts.
    if not memory.values.isfinite().all():
        wrong = [d for d, values in zip(documents, memory, strict=True) if not values.isfinite().all()]
        raise PromptError(f"The memory of {some(wrong)} is not finite. See: pisco-index verify")
    return memory


def _measured(result: AnsweredQuestion, tokens: Mapping[str, int], seconds: float) -> AnsweredQuestion:
    known = sum(tokens.get(doc_id, 0) for doc_id in result.documents)
    return replace(result, text_tokens=known, seconds=round(seconds, 6))
