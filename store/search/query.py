"""Find the documents of questions: BM25 over the search index, in one version of ``memory``."""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, takewhile
from typing import Any, NamedTuple

import lance
import numpy as np
from lance.query import MatchQuery

from ...errors import CorruptStoreError, StoreError, StoreUnreachableError
from ..schema import CONTENTS
from ..store import Store
from ..table.failures import check_process, lance_errors
from .index import has_contents, lance_parameters, search_index

# Number of questions whose documents' ids are read together: reading a thousand ids takes 4 ms, reading ten 1 ms.
_BLOCK = 256
# Largest number of documents whose ids are read together, which limits the memory that a search takes.
_ROWS = 1 << 18
# Documents beyond the last place, requested in order to see whether its score is tied.
_SPARE = 8
# Factor by which more documents are requested while the last place is tied, or if some of them have no memory.
_GROWTH = 4
# Parameters of the analysis that change words or leave words out.
_CHANGES = ("lower_case", "ascii_folding", "stem", "remove_stop_words")


class Hit(NamedTuple):
    """A document that a retriever found.

    Attributes:
        doc_id: id of the document.
        score: score of the document for the question. The scale is the retriever's own; more is better.
    """

    doc_id: str
    score: float


class Searcher:
    """Full-text search in one version of a store. Threads may share it.

    The documents of a question are ordered by falling score, and by id where scores are equal, so that the same
    question always has the same documents. Documents that failed in the build have no memory and are never found. Rows
    that the index does not cover yet are found too, but slowly.

    Args:
        store: the store, opened at the version to search.

    Raises:
        StoreError: the store has no search index, or one with unknown settings.
    """

    def __init__(self, store: Store):
        self._uri = store.uri
        self._table = store.table
        self._analysis = self._read_analysis() if len(store.table.get_fragments()) else {}

    def search(self, question: str, hits: int = 10) -> list[Hit]:
        """Return the best documents for a question, best first; none if it has no word that is searched.

        Args:
            question: plain words. Nothing in it is an operator, and a repeated word counts once.
            hits: largest number of documents.

        Raises:
            CorruptStoreError: the store holds a document twice.
            StoreError: the index is damaged, or the files of this version were removed.
        """
        return self.search_many([question], hits)[0]

    def search_many(self, questions: Sequence[str], hits: int = 10, threads: int | None = None) -> list[list[Hit]]:
        """Return the best documents for each question, in the order of the questions.

        Args:
            questions: the questions; see ``search``.
            hits: largest number of documents of a question.
            threads: number of questions to search for at the same time; by default as many as suit the machine.

        Raises:
            CorruptStoreError, StoreError: as ``search`` raises them.
        """
        return list(self.search_each(questions, hits, threads))

    def search_each(self, questions: Sequence[str], hits: int = 10, threads: int | None = None) -> Iterator[list[Hit]]:
        """Yield the best documents for each question as they are found. Arguments and errors as in ``search_many``."""
        if isinstance(questions, str):
            raise TypeError(f"questions must be a list of questions, not the string {questions!r}")
        if hits < 1:
            raise ValueError(f"hits must be at least 1, not {hits}")
        check_process()
        with ThreadPoolExecutor(threads) as pool:
            # A pool starts its threads when it gets work.
            run = map if threads == 1 or len(questions) == 1 else pool.map
            for start in range(0, len(questions), _BLOCK):
                queries = [self._query(question) for question in questions[start : start + _BLOCK]]
                matches = list(run(lambda query: self._matches(query, hits), queries))
                yield from self._found(queries, matches, hits)

    def words(self, question: str) -> list[str]:
        """Return the words of a question that are searched, each once, as the index writes them."""
        return list(dict.fromkeys(token.text for token in lance.tokenize(_normal(question), **self._analysis)))

    def _read_analysis(self) -> dict[str, Any]:
        """Return the parameters with which Lance cuts a question into words as the index does."""
        index = search_index(self._table)
        if index is None:
            if not has_contents(self._table) and "text" not in self._table.schema.names:
                raise StoreError(
                    f"the store at {self._uri} has no search index, and lacks the texts to make one from. Name the "
                    f"corpus that it was built from: pisco-index index {self._uri} CORPUS"
                )
            raise StoreError(f"the store at {self._uri} has no search index. Make it: pisco-index index {self._uri}")
        if index.settings is None:
            raise StoreError(
                f"another program made the search index of the store at {self._uri}, with settings that are unknown "
                f"here. Make it anew: pisco-index index {self._uri}"
            )
        parameters = lance_parameters(index.settings)
        return {name: value for name, value in parameters.items() if name not in ("with_position", "block_size")}

    def _query(self, question: str) -> str:
        """Return the words of a question that are searched, each once, as the question writes them.

        Lance would count a repeated word, or two with the same stem, twice.
        """
        if not self._analysis:
            return ""
        # Positions count from the first word that is left. A number before the question is always left.
        text = f"0 {_normal(question)}"
        as_written: dict[str, Any] = self._analysis | dict.fromkeys(_CHANGES, False)
        written = {token.position: token.text for token in lance.tokenize(text, **as_written)}
        first: dict[str, str] = {}
        for token in lance.tokenize(text, **self._analysis)[1:]:
            first.setdefault(token.text, written[token.position])
        return " ".join(first.values())

    def _matches(self, query: str, least: int) -> "_Matches":
        """Return the best rows for a query: at least a number of them if there are as many, and no tie is cut."""
        if not query:
            return _Matches(np.empty(0, np.uint64), np.empty(0, np.float32), are_all=True)
        limit = least + _SPARE
        while True:
            with self._search_errors():
                rows = self._table.scanner(
                    # Without _score, Lance would warn on standard error in each search.
                    columns=["_rowid", "_score"],
                    full_text_query=MatchQuery(query, CONTENTS),
                    prefilter=True,
                    limit=limit,
                ).to_table()
            scores = rows.column("_score").to_numpy()
            order = np.argsort(-scores)
            found = _Matches(rows.column("_rowid").to_numpy()[order], scores[order], are_all=len(scores) < limit)
            if found.are_all or found.scores[-1] < found.scores[least - 1]:
                return found
            limit *= _GROWTH

    def _found(self, queries: Sequence[str], matches: Sequence["_Matches"], hits: int) -> Iterator[list[Hit]]:
        """Yield the documents of each query."""
        doc_ids: dict[int, str | None] = {}
        read = 0
        for place, (query, found) in enumerate(zip(queries, matches, strict=True)):
            if place == read:
                ahead = takewhile(lambda rows: rows <= _ROWS, accumulate(len(each.scores) for each in matches[place:]))
                read += max(sum(1 for _ in ahead), 1)
                doc_ids = self._doc_ids(np.concatenate([each.addresses for each in matches[place:read]]))
            documents, least = self._best(found, doc_ids), hits
            # Documents without memory took places.
            while len(documents) < hits and not found.are_all:
                least *= _GROWTH
                found = self._matches(query, least)
                documents = self._best(found, self._doc_ids(found.addresses))
            yield documents[:hits]

    def _best(self, found: "_Matches", doc_ids: Mapping[int, str | None]) -> list[Hit]:
        """Return the documents of rows in their order, less those without memory."""
        hits = [
            Hit(doc_id, score)
            for address, score in zip(found.addresses.tolist(), found.scores.tolist(), strict=True)
            if (doc_id := doc_ids[address]) is not None
        ]
        hits.sort(key=lambda hit: (-hit.score, hit.doc_id))
        if len({hit.doc_id for hit in hits}) < len(hits):
            ((twice, _),) = Counter(hit.doc_id for hit in hits).most_common(1)
            raise CorruptStoreError(f"the store at {self._uri} holds document {twice!r} twice. Build it again.")
        return hits

    def _doc_ids(self, addresses: np.ndarray) -> dict[int, str | None]:
        """Return the ids of documents by the addresses of their rows; None for a document that has no memory."""
        wanted = np.unique(addresses).tolist()
        if not wanted:
            return {}
        with self._search_errors():
            # Taking rows by number would cost time in proportion to a fragment that has deleted rows.
            rows = self._table._take_rows(wanted, columns=["doc_id", "error"])
        # Lance leaves out rows that are deleted.
        if rows.num_rows != len(wanted):
            raise StoreError(
                f"the search index of the store at {self._uri} refers to rows that the store does not have. Make it "
                f"again: pisco-index index {self._uri} --rebuild"
            )
        doc_ids: list[str | None] = rows.column("doc_id").to_pylist()
        if rows.column("error").null_count < len(doc_ids):
            is_ready = rows.column("error").is_null().to_pylist()
            doc_ids = [doc_id if ready else None for doc_id, ready in zip(doc_ids, is_ready, strict=True)]
        return dict(zip(wanted, doc_ids, strict=True))

    @contextmanager
    def _search_errors(self) -> Iterator[None]:
        try:
            with lance_errors(f"cannot search the store at {self._uri}"):
                yield
        except StoreUnreachableError:
            raise
        except StoreError as error:
            remedy = f"If the search index is damaged, make it again: pisco-index index {self._uri} --rebuild"
            raise StoreError(f"{error} {remedy}") from error


class _Matches(NamedTuple):
    """Rows that a query matches, by falling score.

    Attributes:
        addresses: addresses of the rows, ``(k,)`` uint64.
        scores: their scores, ``(k,)`` float32.
        are_all: True if the query matches no other row.
    """

    addresses: np.ndarray
    scores: np.ndarray
    are_all: bool


def _normal(question: str) -> str:
    """Return a question in the form of documents: composed letters (NFC), which the index finds without their accents.

    Characters that UTF-8 does not have are replaced. No document has them.
    """
    return unicodedata.normalize("NFC", question).encode("utf-8", "replace").decode("utf-8")
