"""What a corpus is made of: documents, and the sources they are read from."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ...errors import CorpusError

MAX_ID_BYTES = 512


@dataclass(frozen=True, slots=True)
class Document:
    """One input unit: what a user retrieves by id.

    Attributes:
        doc_id: unique in the corpus, non-empty, at most 512 bytes of UTF-8.
        text: the prose to compress.
        title: kept apart from the text, or None where the corpus has none.
        metadata: further fields of the record, unused by compression.
    """

    doc_id: str
    text: str
    title: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Record(NamedTuple):
    """A planned record: where it begins in its source and what it is called.

    A record is one line, row or page; it yields one document, or several where articles are cut into passages.
    """

    position: int
    doc_id: str
    characters: int
    where: int | None
    """The line, row or page number for people, counted from 1."""


class Source(Protocol):
    """One file of a corpus, readable from any record position that ``scan`` gave.

    A source is rebuilt in another process from ``spec`` (JSON-able) by ``open_source``. Positions are
    non-negative, rise strictly along the file, and mean something to their source only.
    """

    @property
    def name(self) -> str:
        """The path shown in messages."""
        ...

    @property
    def path(self) -> str:
        """The file's absolute path."""
        ...

    @property
    def spec(self) -> Mapping[str, Any]:
        """All that another process needs to open this source: JSON-able."""
        ...

    def scan(self, dropped: Counter[str]) -> Iterator[Record]:
        """Validate the whole file and yield its records in order.

        Args:
            dropped: counts by reason, added to for what is left out on purpose ("redirect", "empty article").

        Raises:
            CorpusError: naming file, line or row, and what was found.
        """
        ...

    def read(self, start: int, stop: int | None) -> Iterator[Document]:
        """Yield the documents of the records from position ``start`` up to, not including, ``stop``.

        Raises:
            CorpusError: as ``scan``.
        """
        ...


def check_doc_id(doc_id: object, where: str, longest: int = MAX_ID_BYTES) -> str:
    """Return the id as a string, or raise ``CorpusError`` for one that is empty, too long or of a wrong type.

    Args:
        doc_id: what the record has as its id.
        where: file and line, for messages.
        longest: bytes of UTF-8 allowed; fewer where documents get a longer id than their record.
    """
    if isinstance(doc_id, int) and not isinstance(doc_id, bool):
        return str(doc_id)
    if not isinstance(doc_id, str):
        raise CorpusError(f"{where}: the id must be a string or an integer, not {type(doc_id).__name__}.")
    if not doc_id.strip():
        raise CorpusError(f"{where}: the id is empty. Every document needs an id of its own.")
    size = len(doc_id.encode("utf-8", errors="surrogatepass"))
    if size > longest:
        raise CorpusError(f"{where}: the id {doc_id[:40]!r}… has {size} bytes; at most {longest} are allowed.")
    return doc_id
