"""Files of questions: each question with its reference answers and the documents to answer it from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from ..errors import QuestionsError, some
from .lines import read_lines
from .retriever import Retriever, RunFile

RUN_DOCUMENTS = 5
"""Number of a run's documents that a question is answered from by default."""


@dataclass(frozen=True)
class Question:
    """A question with its reference answers and documents.

    Attributes:
        id: id of the question in the file, or the number of its line.
        text: the question itself.
        answers: reference answers; at least one, unless the file was read with ``answered=False``.
        doc_ids: ids of the documents to answer it from, best first; at least one.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    doc_ids: tuple[str, ...]


@dataclass(frozen=True)
class Questions:
    """The questions of a file.

    Attributes:
        asked: the questions, in the order of the file.
        ignored_queries: number of queries of the run that are not among the questions.
    """

    asked: tuple[Question, ...]
    ignored_queries: int = 0


def read_questions(
    path: str | Path, *, run: str | Path | None = None, documents: int | None = None, answered: bool = True
) -> Questions:
    """Read questions and the documents to answer them from.

    Args:
        path: file of JSON lines with ``question``, ``answers`` (a list) or ``answer`` (a string), ``doc_ids`` and
            ``id``, which is the number of the line by default. Other fields are ignored.
        run: TREC run to take the documents from in place of ``doc_ids``; its queries are the questions' ids.
        documents: number of documents to take of each question, best first; by default 5 of a run, or all ``doc_ids``.
        answered: True to require an answer to each question; otherwise a question without one gets an empty tuple.

    Raises:
        QuestionsError: naming file, line, id and what is wrong there, or the questions that the run lacks.
    """
    if documents is not None and documents < 1:
        raise ValueError(f"documents must be at least 1, not {documents}")
    # The run is read first: the questions need no documents of their own where there is one.
    retriever = None if run is None else RunFile(run)
    asked = _read(path, with_documents=retriever is None, answered=answered)
    if retriever is None:
        return Questions(tuple(replace(question, doc_ids=question.doc_ids[:documents]) for question in asked))
    asked = find_documents(asked, retriever, hits=documents or RUN_DOCUMENTS)
    if absent := [question.id for question in asked if not question.doc_ids]:
        raise QuestionsError(
            f"{run}: the run has no documents for {len(absent)} of the {len(asked)} questions in {path}: "
            f"{some(absent)}. Its first column must hold the questions' ids."
        )
    return Questions(asked, ignored_queries=len(retriever.queries - {question.id for question in asked}))


def find_documents(questions: Sequence[Question], retriever: Retriever, *, hits: int) -> tuple[Question, ...]:
    """Return the questions, each with the ids of the documents that a retriever finds for it.

    Args:
        questions: the questions; the documents that they have are replaced.
        retriever: retriever that finds the documents.
        hits: largest number of documents of a question.
    """
    found = retriever.retrieve({question.id: question.text for question in questions}, hits=hits)
    return tuple(replace(each, doc_ids=tuple(hit.doc_id for hit in found[each.id])) for each in questions)


def _read(path: str | Path, *, with_documents: bool, answered: bool) -> tuple[Question, ...]:
    asked: dict[str, Question] = {}
    lines: dict[str, int] = {}
    for number, record in _records(path):
        where = f"{path}, line {number}"
        question = _question(record, number, where, with_documents, answered)
        if question.id in asked:
            raise QuestionsError(
                f"{where}: the id {question.id!r} is already used in line {lines[question.id]}. "
                "Give each question its own id."
            )
        asked[question.id], lines[question.id] = question, number
    if not asked:
        raise QuestionsError(f"{path}: the file holds no questions. Write one JSON object per line.")
    return tuple(asked.values())


def _records(path: str | Path) -> Iterator[tuple[int, Any]]:
    for number, line in read_lines(path):
        try:
            yield number, orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise QuestionsError(f"{path}, line {number}: not JSON: {error}. Each line is one JSON object.") from None


def _question(record: Any, number: int, where: str, with_documents: bool, answered: bool) -> Question:
    if not isinstance(record, dict):
        raise QuestionsError(f"{where}: a question is a JSON object, not {_kind(record)}.")
    question_id = record.get("id", number)
    if isinstance(question_id, bool) or not isinstance(question_id, str | int) or question_id == "":
        raise QuestionsError(f"{where}: id must be a string or an integer, not {_kind(question_id)}. Correct the line.")
    question_id = str(question_id)
    where += f", id {question_id!r}" if "id" in record else ""
    text = record.get("question")
    if not isinstance(text, str) or not text.strip():
        raise QuestionsError(f"{where}: question must be a string, not {_kind(text)}. Correct the line.")
    answers = _answers(record, where, answered)
    if not with_documents:
        return Question(question_id, text, answers, ())
    if "doc_ids" not in record:
        raise QuestionsError(f"{where}: the question has no documents. Add doc_ids (a list), or give a run (--run).")
    return Question(question_id, text, answers, _texts(record["doc_ids"], "doc_ids", where))


def _answers(record: dict[str, Any], where: str, answered: bool) -> tuple[str, ...]:
    if "answers" in record:
        return _texts(record["answers"], "answers", where)
    if "answer" in record:
        return _texts([record["answer"]], "answer", where)
    if answered:
        raise QuestionsError(f"{where}: the question has no reference answer. Add answers (a list) or answer (a text).")
    return ()


def _texts(values: Any, field: str, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not values:
        raise QuestionsError(f"{where}: {field} must be a list of strings, at least one, not {_kind(values)}.")
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise QuestionsError(f"{where}: {field} must be a string, not {_kind(value)}. Correct the line.")
    return tuple(values)


def _kind(value: Any) -> str:
    """Return the words for a JSON value in an error message."""
    if value is None:
        return "null or missing"
    if isinstance(value, str | list | dict):
        kind = {str: "string", list: "list", dict: "object"}[type(value)]
        return f"an empty {kind}" if not value or (isinstance(value, str) and not value.strip()) else f"a {kind}"
    return repr(value)
