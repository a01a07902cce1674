"""Runs: files in which a retriever lists the documents of each query, read and written."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import InputError, QuestionsError, some
from ..retriever import Hit
from .lines import read_lines

# White space as C's isspace has it. str.split would also cut an id at a no-break space.
_FIELD = re.compile(r"[^ \t\r\v\f]+")


class _Place(NamedTuple):
    """Sort key of a document among those of its query; smaller is better."""

    negative_score: float
    rank: float


class RunFile:
    """A retriever that looks questions up by id in a run.

    A line is ``qid Q0 docid rank score tag`` (TREC; the tag may be missing or have blanks in it) or ``qid docid rank``
    (MS MARCO, where the score is the negative rank). A query's documents are ordered by falling score, as in trec_eval,
    and by rank where scores are equal. A document that a query lists twice keeps its better place.

    Args:
        path: the run. It may be compressed, or UTF-16 with a byte order mark.

    Attributes:
        doubled: query and document of each line that was ignored because the query lists the document twice.

    Raises:
        QuestionsError: naming file and line, if the file cannot be read or is no run.
    """

    def __init__(self, path: str | Path):
        self._path = path
        self.doubled: list[tuple[str, str]] = []
        found: dict[str, dict[str, _Place]] = {}
        for number, line in read_lines(path):
            qid, doc_id, place = _parse(line, f"{path}, line {number}")
            documents = found.setdefault(qid, {})
            if doc_id in documents:
                self.doubled.append((qid, doc_id))
                place = min(place, documents[doc_id])
            documents[doc_id] = place
        self._ranked = {
            qid: tuple(
                Hit(doc_id, -documents[doc_id].negative_score)
                for doc_id in sorted(documents, key=documents.__getitem__)
            )
            for qid, documents in found.items()
        }

    @property
    def queries(self) -> Set[str]:
        """Ids of the run's queries."""
        return self._ranked.keys()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about lines that were ignored."""
        if not self.doubled:
            return ()
        named = some([f"{qid} {doc_id}" for qid, doc_id in self.doubled], 5)
        return (
            f"{self._path}: lines that repeat a document of their query: {len(self.doubled):,} ({named}). The best "
            "place counts.",
        )

    def retrieve(self, questions: Mapping[str, str], *, hits: int) -> dict[str, tuple[Hit, ...]]:
        """Return the best documents that the run lists for each question; only the ids are compared."""
        return {question_id: self._ranked.get(question_id, ())[:hits] for question_id in questions}


def _parse(line: str, where: str) -> tuple[str, str, _Place]:
    """Return the query's id, the document's id, and its place."""
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
    if math.isnan(place.negative_score) or math.isnan(place.rank):
        raise QuestionsError(
            f"{where}: rank {rank!r}{'' if score is None else f' and score {score!r}'} must be numbers. Ids with white "
            "space do not fit in a run; list such documents as the questions' doc_ids."
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
    path = Path(path)
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
            f"{some(unfit)}. Rename them."
        )


def _falling(scores: Sequence[float]) -> Iterator[str]:
    """Yield falling scores as text, lowered where needed so that they fall strictly as float32 and as text."""
    lowest, last = np.float32(-np.inf), np.float32(np.inf)
    for score in scores:
        last = min(np.float32(score), np.nextafter(last, lowest))
        yield np.format_float_positional(last, unique=True, trim="0")
