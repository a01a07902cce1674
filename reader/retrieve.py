"""Find the documents of the questions in a file, and write them as a run."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, QuestionsError
from ..places import input_path, local_path
from ..store import Hit, Searcher, Store
from .questions import Question, holds_run, read_questions, require_fields, write_run

TAG = "pisco-index"
"""Name of a run by default."""


@dataclass(frozen=True)
class RetrievalReport:
    """The result of finding the documents of questions.

    Attributes:
        run: path of the run that was written.
        form: form of the file of questions, as recognised.
        questions: number of questions.
        hits: number of documents found, the lines of the run.
        without_hits: ids of the questions for which no document was found; they have no line in the run.
        without_words: ids of those of them that have no word that is searched.
        seconds: time that it took.
        questions_per_s: questions per second.
    """

    run: str
    form: str
    questions: int
    hits: int
    without_hits: tuple[str, ...]
    without_words: tuple[str, ...]
    seconds: float
    questions_per_s: float


def retrieve(
    uri: str | Path,
    questions: str | Path,
    run: str | Path,
    *,
    hits: int = 100,
    tag: str = TAG,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> RetrievalReport:
    """Find the documents of the questions in a file by full-text search, and write them as a TREC run.

    The same store and questions give the same bytes.

    Args:
        uri: folder or object-store URI of the store.
        questions: file of questions, which need no answers and no documents; see ``read_questions``.
        run: file to write. A run that it holds is replaced as a whole, once all questions are searched for.
        hits: largest number of documents of a question.
        tag: name of the run, its last column.
        threads: number of questions to search for at the same time; by default as many as suit the machine.
        progress: callback that is given the number of questions that are done, and of all questions.

    Raises:
        InputError: if the run cannot be written.
        QuestionsError: if the questions cannot be read, or the id of a question or of a found document has white
            space.
        StoreError: if the store cannot be searched.
    """
    began = time.monotonic()
    run, questions = local_path(run), input_path(questions, QuestionsError)
    if not run.parent.is_dir():
        raise InputError(f"{run}: there is no folder {run.parent}. Create it, or name another file.")
    if run.exists() and not run.is_file():
        raise InputError(f"{run}: this is not a regular file. Name another one.")
    read = read_questions(questions, answered=False, documented=False)
    if run.exists() and run.samefile(questions):
        raise InputError(f"{run}: this is the file of questions. Name another file for the run.")
    if run.exists() and not holds_run(run):
        raise InputError(f"{run}: the file holds something else than a run, which would be lost. Name another file.")
    require_fields([tag], "the run's tag")
    require_fields([each.id for each in read.asked], f"ids of questions in {questions}")
    searcher = Searcher(Store.open(uri))
    without: list[Question] = []

    def found() -> Iterator[tuple[str, Sequence[Hit]]]:
        answers = searcher.search_each([each.text for each in read.asked], hits, threads)
        for done, (question, documents) in enumerate(zip(read.asked, answers, strict=True), start=1):
            if not documents:
                without.append(question)
            yield question.id, documents
            if progress is not None:
                progress(done, len(read.asked))

    lines = write_run(run, found(), tag=tag)
    seconds = time.monotonic() - began
    return RetrievalReport(
        run=str(run),
        form=read.form,
        questions=len(read.asked),
        hits=lines,
        without_hits=tuple(each.id for each in without),
        without_words=tuple(each.id for each in without if not searcher.words(each.text)),
        seconds=seconds,
        questions_per_s=len(read.asked) / seconds,
    )
