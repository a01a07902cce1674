"""The documents of a corpus, the records that hold them, and the sources that read them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from .rejected import OnRejected, RecordError, Tolerance

MAX_ID_BYTES = 512
"""Longest document id, in bytes of UTF-8. The store has the same limit."""

BAD_ID = "unusable id"
"""Reason for rejecting a record whose id is missing, of a wrong type, empty or too long."""


@dataclass(frozen=True, slots=True)
class Document:
    """The input unit: a text that users retrieve by its id.

    Attributes:
        doc_id: id that is unique in the corpus, not empty, and at most 512 bytes of UTF-8.
        text: prose to compress.
        title: title, kept apart from the text; None if the corpus has none.
        metadata: remaining fields of the record, which compression ignores.
    """

    doc_id: str
    text: str
    title: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Record(NamedTuple):
    """A line, row or page that a plan counts.

    It yields one document, or several if texts are cut into documents of N words.

    Attributes:
        position: beginning of the record in its source.
        doc_id: id of the record.
        characters: number of characters of its text.
        number: number of its line, row or page for messages, counted from 1; None if it is unknown.
    """

    position: int
    doc_id: str
    characters: int
    number: int | None


class Dropped(NamedTuple):
    """Part of a file that is left out on purpose.

    Attributes:
        reason: reason that it is counted under ("redirect", "repeated header").
        count: number of records that it stands for.
        doc_id: id of the record; empty if it does not count as one.
    """

    reason: str
    count: int = 1
    doc_id: str = ""


Event = tuple[int, int, str, Document | Record | RecordError | Dropped]
"""Position, number and place of something that a source meets, and what it is.

A ``Document`` is whole: neither cleaned nor cut. A ``Record`` stands for a document whose text was not read.
"""


class Source(Protocol):
    """A file of a corpus, readable from any record position that ``scan`` yields.

    ``open_source`` rebuilds a source in another process from its ``spec``. Positions are non-negative integers that
    rise strictly along the file. Each format has its own kind of position.
    """

    @property
    def name(self) -> str:
        """Path of the file as messages show it."""
        ...

    @property
    def path(self) -> str:
        """Absolute path of the file."""
        ...

    @property
    def spec(self) -> Mapping[str, Any]:
        """JSON-able description from which another process opens this source; ``corpus/spec.py`` lists its keys."""
        ...

    @property
    def tolerance(self) -> Tolerance:
        """Treatment of records that cannot be used."""
        ...

    @property
    def cleaning(self) -> str | None:
        """Identity of the cleaning of texts; None if they are not cleaned, so that it costs little to read them."""
        ...

    def survey(self, start: int, stop: int | None) -> Iterator[Event]:
        """Yield everything between two positions, in order, with as little of the texts as the format allows.

        Raises:
            CorpusError: if the next record cannot be found.
        """
        ...

    def walk(self, start: int, stop: int | None) -> Iterator[Event]:
        """Yield what ``survey`` yields, with whole documents.

        Raises:
            CorpusError: if the next record cannot be found.
        """
        ...

    def documents(self, document: Document, place: str) -> Iterable[Document]:
        """Clean and cut a document that ``walk`` yielded.

        Raises:
            RecordError: if the document cannot be cleaned.
        """
        ...

    def scan(self, dropped: Counter[str], on_rejected: OnRejected = bool) -> Iterator[Record]:
        """Validate the whole file and yield its records in order.

        Args:
            dropped: counter of records that are left out on purpose, by reason ("redirect", "empty article").
            on_rejected: callback for each record that cannot be used, if the source tolerates them. The calls come in
                file order between the records that are yielded.

        Raises:
            CorpusError: if a record cannot be used. The message names the file, the line or row, and the problem.
        """
        ...

    def read(self, start: int, stop: int | None, on_rejected: OnRejected = bool) -> Iterator[Document]:
        """Yield the documents of the records from position ``start`` up to, but not including, ``stop``.

        The records and the rejected records are the same as those of ``scan`` in that range.

        Raises:
            CorpusError: as for ``scan``.
        """
        ...


@runtime_checkable
class Versioned(Protocol):
    """A source whose file may hold several versions of a record."""

    def see(self, ids: Iterable[str]) -> None:
        """Note the ids of records that ``survey`` met, in the order of the file."""
        ...

    def keep_newest(self) -> bool:
        """Keep the newest version of each record, after ``see`` was given the ids of the whole file.

        Returns:
            True if the file holds versions that were records of their own. Read it again then.

        Raises:
            CorpusError: if there are too many of them.
        """
        ...


def check_doc_id(doc_id: str, place: str, longest: int = MAX_ID_BYTES) -> str:
    """Return the id.

    Args:
        doc_id: id of the record.
        place: file and line, for messages.
        longest: largest number of UTF-8 bytes; smaller if documents get a longer id than their record.

    Raises:
        RecordError: if the id is empty or too long.
    """
    if not doc_id.strip():
        raise RecordError(place, "the id is empty. Give every document its own id.", BAD_ID)
    size = len(doc_id.encode("utf-8", errors="surrogatepass"))
    if size > longest:
        problem = f"the id {doc_id[:40]!r}… has {size} bytes, but at most {longest} are allowed. Use a shorter id."
        raise RecordError(place, problem, BAD_ID)
    return doc_id
