"""The seam between questions and documents: ``Retriever``, the TREC run behind it, and a fake for tests."""

import math
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple, Protocol

from ..errors import QuestionsError
from .lines import read_lines

_FIELDS = ("qid", "Q0", "docid", "rank", "score", "tag")
# str.split would also cut an id at a no-break space.
_FIELD = re.compile(r"[^ \t\r]+")


class Hit(NamedTuple):
    """A document that a retriever found.

    Attributes:
        doc_id: id of the document.
        score: score of the document for the question. The scale is the retriever's own; more is better.
    """

    doc_id: str
    score: float


class Retriever(Protocol):
    """Finds the documents to answer questions from."""

    def retrieve(self, questions: Mapping[str, str], *, hits: int) -> dict[str, tuple[Hit, ...]]:
        """Return the best documents of each question, best first.

        Args:
            questions: text of each question, by its id.
            hits: largest number of documents of a question.

        Returns:
            The documents by question id, in the order of the questions; an empty tuple if none was found.
        """
        ...


class RunFile:
    """A retriever that looks questions up by id in a TREC run: lines of ``qid Q0 docid rank score tag``.

    The documents of a query are ordered by falling score, as in trec_eval, and by rank where scores are equal.

    Args:
        path: the run.

    Raises:
        QuestionsError: naming file and line, if the file cannot be read or is no TREC run.
    """

    def __init__(self, path: str | Path):
        found: dict[str, dict[str, tuple[float, int]]] = {}
        for number, line in read_lines(path):
            qid, doc_id, order = _parse(line, f"{path}, line {number}")
            documents = found.setdefault(qid, {})
            if doc_id in documents:
                raise QuestionsError(
                    f"{path}, line {number}: query {qid!r} has the document {doc_id!r} twice. Remove one of the lines."
                )
            documents[doc_id] = order
        self._ranked = {
            qid: tuple(Hit(doc_id, -documents[doc_id][0]) for doc_id in sorted(documents, key=documents.__getitem__))
            for qid, documents in found.items()
        }

    @property
    def queries(self) -> Set[str]:
        """Ids of the run's queries."""
        return self._ranked.keys()

    def retrieve(self, questions: Mapping[str, str], *, hits: int) -> dict[str, tuple[Hit, ...]]:
        """Return the best documents that the run lists for each question; only the ids are compared."""
        return {question_id: self._ranked.get(question_id, ())[:hits] for question_id in questions}


def _parse(line: str, where: str) -> tuple[str, str, tuple[float, int]]:
    """Return the query's id, the document's id, and the key that orders the query's documents."""
    fields = _FIELD.findall(line)
    if len(fields) != len(_FIELDS):
        raise QuestionsError(
            f"{where}: a line of a TREC run has the {len(_FIELDS)} fields {' '.join(_FIELDS)}, this one has "
            f"{len(fields)}. Ids with white space do not fit in a run; list them as the questions' doc_ids."
        )
    qid, _, doc_id, rank, score, _ = fields
    try:
        order = -float(score), int(rank)
    except ValueError:
        order = math.nan, 0
    if math.isnan(order[0]):
        raise QuestionsError(f"{where}: rank {rank!r} and score {score!r} must be an integer and a number.")
    return qid, doc_id, order


class FakeRetriever:
    """A retriever for tests, which finds the documents that it was given, with the scores 1, 1/2, 1/3, ….

    Args:
        documents: ids of each question's documents, best first, by the question's text.
    """

    def __init__(self, documents: Mapping[str, Sequence[str]]):
        self._documents = documents

    def retrieve(self, questions: Mapping[str, str], *, hits: int) -> dict[str, tuple[Hit, ...]]:
        """Return the first of the documents that were given."""
        return {
            question_id: tuple(
                Hit(doc_id, 1 / rank) for rank, doc_id in enumerate(self._documents.get(text, ())[:hits], start=1)
            )
            for question_id, text in questions.items()
        }
