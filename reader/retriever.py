"""The seam between questions and documents: ``Retriever``, a store behind it, and a fake for tests.

``reader.questions.RunFile`` implements it too, by looking questions up in a run.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from ..store import Hit

if TYPE_CHECKING:
    from ..store import Searcher
    from .reader import Reader

__all__ = ["FakeRetriever", "Hit", "Retriever", "StoreRetriever"]


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


class StoreRetriever:
    """A retriever that searches a store. Documents that failed in the build are never found.

    Args:
        reader: reader of the store to search, or a searcher of it.
        threads: number of questions to search for at the same time; by default as many as suit the machine.
    """

    def __init__(self, reader: "Reader | Searcher", threads: int | None = None):
        self._reader = reader
        self._threads = threads

    def retrieve(self, questions: Mapping[str, str], *, hits: int) -> dict[str, tuple[Hit, ...]]:
        """Return the best documents of each question by BM25; only the texts of the questions are used.

        Raises:
            StoreError: if the store cannot be searched; see ``Reader.search``.
        """
        found = self._reader.search_many(list(questions.values()), hits, self._threads)
        return dict(zip(questions, map(tuple, found), strict=True))


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
