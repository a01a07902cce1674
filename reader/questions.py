"""What is asked: a file of questions, and the documents that a retriever found for them."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..errors import QuestionsError, some

RUN_FIELDS = ("qid", "Q0", "docid", "rank", "score", "tag")
RUN_DOCUMENTS = 5
# Not str.split, which would also cut an id at a no-break space.
_FIELD = re.compile(r"[^ \t\r]+")


@dataclass(frozen=True)
class Question:
    """A question with what is known of it.

    Attributes:
        id: its id in the file, or the number of its line.
        text: the question.
        answers: reference answers, at least one unless the file was read without asking for them.
        doc_ids: the documents to answer it from, best first, at least one.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    doc_ids: tuple[str, ...]


@dataclass(frozen=True)
class Questions:
    """The questions of a file.

    Attributes:
        asked: in the order of the file.
        ignored_queries: queries of the run that the file does not ask.
    """

    asked: tuple[Question, ...]
    ignored_queries: int = 0


def read_questions(
    path: str | Path, *, run: str | Path | None = None, documents: int | None = None, answered: bool = True
) -> Questions:
    """Read questions and the documents to answer them from.

    Args:
        path: JSON lines with ``question``, ``answers`` (a list) or ``answer`` (a string), ``doc_ids`` and, if it is
            not to be the number of the line, ``id``. Other fields are not looked at.
        run: a TREC run to take the documents from in place of ``doc_ids``; its queries are the questions' ids.
        documents: take the first so many of each question; by default 5 of a run, and all ``doc_ids``.
        answered: every question must have an answer; if not, those that have none get an empty tuple.

    Raises:
        QuestionsError: naming file, line, id and what is wrong; or the questions that the run lacks.
    """
    if documents is not None and documents < 1:
        raise ValueError(f"documents must be at least 1, not {documents}")
    ranked = None if run is None else read_run(run)
    asked: dict[str, Question] = {}
    lines: dict[str, int] = {}
    for number, record in _records(Path(path)):
        question = _question(record, number, f"{path}, line {number}", ranked, answered)
        if question.id in asked:
            raise QuestionsError(
                f"{path}, line {number}: the id {question.id!r} stands in line {lines[question.id]} already. "
                "Give each question an id of its own."
            )
        asked[question.id], lines[question.id] = question, number
    if not asked:
        raise QuestionsError(f"{path}: there are no questions in it.")
    if ranked is not None:
        if absent := [qid for qid in asked if qid not in ranked]:
            raise QuestionsError(
                f"{run}: the run has no documents for {len(absent)} of the {len(asked)} questions in {path}: "
                f"{some(absent)}. Its first column must hold the questions' ids."
            )
        documents = documents or RUN_DOCUMENTS
    taken = tuple(Question(q.id, q.text, q.answers, q.doc_ids[:documents]) for q in asked.values())
    return Questions(taken, 0 if ranked is None else len(ranked.keys() - asked.keys()))


def read_run(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Read a TREC run: lines of ``qid Q0 docid rank score tag``, white space between them.

    Returns:
        The documents of each query by falling score, as trec_eval orders them; equal scores by rank.

    Raises:
        QuestionsError: naming file, line and what is wrong.
    """
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for number, line in _lines(Path(path)):
        where = f"{path}, line {number}"
        fields = _FIELD.findall(line)
        if len(fields) != len(RUN_FIELDS):
            raise QuestionsError(
                f"{where}: a line of a TREC run has the {len(RUN_FIELDS)} fields {' '.join(RUN_FIELDS)}, this one has "
                f"{len(fields)}. Ids with white space in them do not fit in a run; list them as the questions' doc_ids."
            )
        qid, _, doc_id, rank, score, _ = fields
        try:
            order = -float(score), int(rank)
        except ValueError:
            order = math.nan, 0
        if math.isnan(order[0]):
            raise QuestionsError(f"{where}: rank {rank!r} and score {score!r} must be an integer and a number.")
        documents = found.setdefault(qid, {})
        if doc_id in documents:
            raise QuestionsError(f"{where}: query {qid!r} has the document {doc_id!r} twice.")
        documents[doc_id] = order
    return {qid: tuple(sorted(documents, key=documents.__getitem__)) for qid, documents in found.items()}


def _question(
    record: Any, number: int, where: str, ranked: Mapping[str, tuple[str, ...]] | None, answered: bool
) -> Question:
    if not isinstance(record, dict):
        raise QuestionsError(f"{where}: a question is a JSON object, not {_kind(record)}.")
    question_id = record.get("id", number)
    if isinstance(question_id, bool) or not isinstance(question_id, str | int) or question_id == "":
        raise QuestionsError(f"{where}: id must be a string or an integer, not {_kind(question_id)}.")
    question_id = str(question_id)
    where += f", id {question_id!r}" if "id" in record else ""
    text = record.get("question")
    if not isinstance(text, str) or not text.strip():
        raise QuestionsError(f"{where}: question must be a text, not {_kind(text)}.")
    if "answers" in record:
        answers = _texts(record["answers"], "answers", where)
    elif "answer" in record:
        answers = _texts([record["answer"]], "answer", where)
    elif not answered:
        answers = ()
    else:
        raise QuestionsError(f"{where}: there is no reference answer. Give answers, a list, or answer, a text.")
    if ranked is not None:
        return Question(question_id, text, answers, ranked.get(question_id, ()))
    if "doc_ids" not in record:
        raise QuestionsError(f"{where}: the question has no documents. Give it doc_ids, a list, or give a run (--run).")
    return Question(question_id, text, answers, _texts(record["doc_ids"], "doc_ids", where))


def _texts(values: Any, field: str, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not values:
        raise QuestionsError(f"{where}: {field} must be a list of at least one text, not {_kind(values)}.")
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise QuestionsError(f"{where}: {field} must be text, not {_kind(value)}.")
    return tuple(values)


def _kind(value: Any) -> str:
    """How a message calls a JSON value."""
    if value is None:
        return "null or missing"
    if isinstance(value, str | list | dict):
        kind = {str: "text", list: "list", dict: "object"}[type(value)]
        return f"an empty {kind}" if not value or (isinstance(value, str) and not value.strip()) else f"a {kind}"
    return repr(value)


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in _lines(path):
        try:
            yield number, orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise QuestionsError(f"{path}, line {number}: not JSON: {error}. Each line is one JSON object.") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise QuestionsError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise QuestionsError(f"{path}, line {line}: not UTF-8: {error.reason}.") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line
