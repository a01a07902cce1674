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
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from collections.abc import Generator as PythonGenerator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

from ...errors import AnsweringInterruptedError
from ...model.decoding.batches import split_into_batches
from ..generator import Generator
from ..memory_source import MemorySource
from ..questions.question import Question
from ..retriever import Retriever
from .answered import AnsweredQuestion
from .preparation import Preparation, Prepared, apart

WINDOW = 512
"""Number of questions whose prompts are sorted by length together by default."""

# Batches whose memory is fetched before they are answered. The first one of a window waits for its search and prompts.
_AHEAD = 2
# Seconds after which a wait for a batch looks for a signal.
_PATIENCE = 0.2

T = TypeVar("T")


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
    ) -> Iterator[list[Prepared]]:
        """Yield the batches that have a wanted question, with their memory.

        The questions of a window that cannot be answered make its first batch.
        """
        preparation = Preparation(self.source, self.generator, self.retriever, self.hits, self.max_new_tokens, stopped)
        for begin in range(0, len(questions), self.window):
            window = questions[begin : begin + self.window]
            if wanted.isdisjoint(range(begin, begin + len(window))):
                continue
            prepared = preparation.prompts(window, begin)
            failed = [each for each in prepared if each.result.error is not None]
            others = [each for each in prepared if each.result.error is None]
            lengths = [len(each.prompt) for each in others]
            numbers = split_into_batches(lengths, self.max_new_tokens, self.generator.token_budget)
            for batch in (failed, *([others[i] for i in batch] for batch in numbers)):
                if not wanted.isdisjoint(each.place for each in batch):
                    yield preparation.with_memory(batch)

    # Answers

    def _answered(self, batch: Sequence[Prepared]) -> list[tuple[int, AnsweredQuestion]]:
        """Answer a batch; return its results with their places."""
        asked = [each for each in batch if each.memory is not None]
        began = time.perf_counter()
        answers = dict(zip((each.place for each in asked), apart(self._generated, asked), strict=True))
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

    def _generated(self, batch: Sequence[Prepared]) -> list[str]:
        return self.generator.answer_batch(
            [each.result.question for each in batch],
            [each.memory for each in batch if each.memory is not None],
            max_new_tokens=self.max_new_tokens,
            prompts=[each.prompt for each in batch],
        )


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


def _require_wanted(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise AnsweringInterruptedError("Stopped by a signal. Run the same command again to answer the rest.")
