"""Runs: files in which a retriever lists the documents of each query, read and written."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import InputError, QuestionsError, some
from ...places import local_path
from ..retriever import Hit
from .lines import TextLines

# White space as C's isspace has it. str.split would also cut an id at a no-break space.
_FIELD = re.compile(r"[^ \t\r\v\f]+")
# Places of rank and score in a line of three, five or six fields.
_NUMBERS = {3: slice(2, 3), 5: slice(3, 5), 6: slice(3, 5)}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
# Fields of a line of a TREC run, and bytes of a line that is looked at.
_FIELDS, _LONGEST_LINE = 6, 4096
# Doubled documents that a warning names.
_NAMED = 10


class _Place(NamedTuple):
    """Sort key of a document among those of its query; smaller is better."""

    negative_score: float
    rank: float


class RunFile:
    """A retriever that looks questions up by id in a run.

    A line is ``qid Q0 docid rank score tag`` (TREC; the tag may be missing or have blanks in it) or ``qid docid rank``
    (MS MARCO, where the score is the negative rank). Between tabs, ids may have blanks. A query's documents are
    ordered by falling score, as in trec_eval, by rank where scores are equal, and by line where ranks are too. A
    document that a query lists twice keeps its better place. The file is read line by line.

    Args:
        path: the run. It may be compressed, or UTF-16 with a byte order mark.
        depth: number of documents of a query that are kept, the best; by default all.

    Attributes:
        digest: xxh3-128 of the run's text in UTF-8, in hexadecimal: of the file's bytes, unless it is compressed or
            UTF-16.
        doubled: number of lines that were ignored because the query lists the document twice.

    Raises:
        QuestionsError: naming file and line, if the file cannot be read or is no run.
    """

    def __init__(self, path: str | Path, *, depth: int | None = None):
        self._path = path
        self._depth = depth
        self.doubled = 0
        self._named: list[str] = []
        found: dict[str, dict[str, _Place]] = {}
        lines = TextLines(path)
        current, listed = "", set[str]()
        for number, line in lines:
            qid, doc_id, place = _parse(line, f"{path}, line {number}")
            if qid != current:
                current, listed = qid, set()
            documents = found.setdefault(qid, {})
            # The documents of a query that were dropped are known as long as its lines follow each other.
            if doc_id in listed or doc_id in documents:
                self._note_doubled(qid, doc_id)
            listed.add(doc_id)
            if doc_id not in documents or place < documents[doc_id]:
                # It is inserted anew: the order of the keys is that of the lines, which orders equal places.
                documents.pop(doc_id, None)
                documents[doc_id] = place
            if depth is not None and len(documents) >= 2 * depth + _NAMED:
                found[qid] = dict(_best(documents, depth))
        self.digest = lines.digest
        self._ranked = {
            qid: tuple(Hit(doc_id, -place.negative_score) for doc_id, place in _best(found.pop(qid), depth))
            for qid in list(found)
        }

    def _note_doubled(self, qid: str, doc_id: str) -> None:
        self.doubled += 1
        if len(self._named) < _NAMED:
            self._named.append(f"{qid} {doc_id}")

    @property
    def queries(self) -> Set[str]:
        """Ids of the run's queries."""
        return self._ranked.keys()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about lines that were ignored."""
        if not self.doubled:
            return ()
        more = f" and {self.doubled - len(self._named):,} more" if self.doubled > len(self._named) else ""
        return (
            f"{self._path}: lines that repeat a document of their query: {self.doubled:,} ({some(self._named)}{more}). "
            "The best place counts.",
        )

    def retrieve(self, questions: Mapping[str, str], *, hits: int) -> dict[str, tuple[Hit, ...]]:
        """Return the best documents that the run lists for each question; only the ids are compared.

        Raises:
            ValueError: if more documents are wanted than are kept.
        """
        if self._depth is not None and hits > self._depth:
            raise ValueError(f"hits must be at most the depth of the run, {self._depth}, not {hits}")
        return {question_id: self._ranked.get(question_id, ())[:hits] for question_id in questions}


def _best(documents: Mapping[str, _Place], depth: int | None) -> list[tuple[str, _Place]]:
    return sorted(documents.items(), key=itemgetter(1))[:depth]


def _parse(line: str, where: str) -> tuple[str, str, _Place]:
    """Return the query's id, the document's id, and its place."""
    # Between tabs, ids may have blanks.
    fields = [field.strip(" \r\v\f") for field in line.split("\t")]
    if len(fields) not in _NUMBERS or not all(map(_NUMBER.fullmatch, fields[_NUMBERS[len(fields)]])):
        fields = _FIELD.findall(line)
    if len(fields) == 3:
        qid, doc_id, rank = fields
        score = None
    elif len(fields) >= 5:
        qid, _, doc_id, rank, score, *_ = fields
    else:
        raise QuestionsError(
            f"{where}: a line of a run has the fields qid Q0 docid rank score tag, or qid docid rank; this one has "
            f"{len(fields)} fields. Write one of the two."
        )
    try:
        place = _Place(float(rank), 0) if score is None else _Place(-float(score), float(rank))
    except ValueError:
        place = _Place(math.nan, 0)
    if not all(map(math.isfinite, place)):
        raise QuestionsError(
            f"{where}: rank {rank!r}{'' if score is None else f' and score {score!r}'} must be finite numbers. "
            "Ids with white space do not fit in a run; list such documents as the questions' doc_ids."
        )
    return qid, doc_id, place


def write_run(path: str | Path, found: Iterable[tuple[str, Sequence[Hit]]], *, tag: str) -> int:
    """Write a TREC run: lines of ``qid Q0 docid rank score tag``. It replaces the file as a whole or not at all.

    Scores fall strictly from line to line, since trec_eval ignores ranks and orders equal scores by its own rule: a
    score that does not is lowered to the next smaller float32 number, the precision in which trec_eval reads scores.

    Args:
        path: file to write; its folder exists.
        found: id and documents of each query, best first. A query without documents has no line.
        tag: name of the run.

    Returns:
        The number of lines.

    Raises:
        InputError: if the file cannot be written.
        QuestionsError: naming the ids, or the tag, that have white space or are empty.
    """
    path = local_path(path)
    require_fields([tag], "the run's tag")
    unfinished = path.with_name(f".{path.name}.tmp")
    lines = 0
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            for qid, hits in found:
                require_fields([qid], "ids of questions")
                require_fields([hit.doc_id for hit in hits], f"ids of documents for question {qid!r}")
                scores = _falling([hit.score for hit in hits])
                for rank, (hit, score) in enumerate(zip(hits, scores, strict=True), start=1):
                    file.write(f"{qid} Q0 {hit.doc_id} {rank} {score} {tag}\n")
                lines += len(hits)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path}: the run cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()
    return lines


def holds_run(path: Path) -> bool:
    """Return True if a file is empty or begins with a line as ``write_run`` writes it.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(_LONGEST_LINE)
    except OSError as error:
        raise InputError(f"{path}: the run cannot be read: {error.strerror or error}.") from error
    fields = line.split()
    return not line or (len(fields) == _FIELDS and fields[1] == b"Q0")


def require_fields(values: Iterable[str], described: str) -> None:
    """Check that values can be fields of a run, which are separated by white space.

    Args:
        values: ids or tags.
        described: description of the values for the message.

    Raises:
        QuestionsError: naming the values that cannot.
    """
    if unfit := [value for value in values if value.split() != [value]]:
        raise QuestionsError(
            f"a run separates its fields by white space, so {described} must contain none and not be empty: "
            f"{some(unfit)}. Rename them, or do without a run: `pisco-index answer` searches the store itself."
        )


def _falling(scores: Sequence[float]) -> Iterator[str]:
    """Yield falling scores as text, lowered where needed so that they fall strictly as float32 and as text."""
    lowest, last = np.float32(-np.inf), np.float32(np.inf)
    for score in scores:
        last = min(np.float32(score), np.nextafter(last, lowest))
        yield np.format_float_positional(last, unique=True, trim="0")
