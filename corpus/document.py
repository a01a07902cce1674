"""What a corpus is made of: documents, and the sources they are read from."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from ..errors import CorpusError

MAX_ID_BYTES = 512

_MAX_ERROR_CHARACTERS = 1000
_BAD_ID = "unusable id"
_Item = TypeVar("_Item")


class UnreadableError(CorpusError):
    """A file that the system does not let read, or that changed since it was planned: leaving out nothing mends it."""


class RecordError(CorpusError):
    """A record that cannot be used, while those behind it can be.

    Attributes:
        where: file and line, row, page or byte.
        what: is wrong with it.
        reason: the class of such errors that it is counted under.
        doc_id: its id, where it has one.
    """

    def __init__(self, where: str, what: str, reason: str, doc_id: str | None = None):
        super().__init__(f"{where}: {what}")
        self.where = where
        self.what = what
        self.reason = reason
        self.doc_id = doc_id

    def __reduce__(self):
        return type(self), (self.where, self.what, self.reason, self.doc_id)


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


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that gave no document, or what is left of a file in which no further record can be found.

    Attributes:
        source: file and line, row, page or byte.
        doc_id: its id, where it has one.
        error: what is wrong with it.
        reason: the class of such errors.
        position: where it begins in its source; None for what is left of a file.
    """

    source: str
    doc_id: str | None
    error: str
    reason: str
    position: int | None


OnRejected = Callable[[RejectedRecord], object]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a source does about records that cannot be used.

    Attributes:
        on_error: raise ("fail"), or reject them and go on ("skip").
        repeated: positions of records whose id an earlier one of the corpus has: to be rejected, too.
    """

    on_error: Literal["fail", "skip"] = "fail"
    repeated: frozenset[int] = frozenset()

    @property
    def spec(self) -> dict[str, Any]:
        """The JSON-able form: part of a source's ``spec``."""
        return {"on_error": self.on_error, "repeated": sorted(self.repeated)}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Tolerance":
        """Rebuild from a source's ``spec``."""
        return cls(spec.get("on_error", "fail"), frozenset(spec.get("repeated", ())))


class Refusals:
    """Raises or reports, as a source's tolerance says, while one part of it is read."""

    def __init__(self, name: str, tolerance: Tolerance, on_rejected: OnRejected):
        self._name = name
        self._tolerance = tolerance
        self._on_rejected = on_rejected

    def record(self, error: RecordError, position: int) -> None:
        """Reject a record, or raise its error."""
        if self._tolerance.on_error == "fail":
            raise error
        self._reject(error.where, error.what, error.reason, error.doc_id, position)

    def is_repeated(self, position: int, doc_id: str, where: str) -> bool:
        """Whether a record's id occurs earlier in the corpus; if so it is rejected."""
        if position not in self._tolerance.repeated:
            return False
        self._reject(where, f"the id {doc_id!r} is that of an earlier record.", REPEATED, doc_id, position)
        return True

    def until_damage(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield items; an error in finding the next one rejects all that is left of the file, or is raised."""
        try:
            yield from items
        except UnreadableError:
            raise
        except CorpusError as error:
            if self._tolerance.on_error == "fail":
                raise
            what = str(error).removeprefix(self._name).lstrip(":, ")
            self._reject(self._name, what, "damaged file", None, None)

    def _reject(self, where: str, what: str, reason: str, doc_id: str | None, position: int | None) -> None:
        shown = what if len(what) <= _MAX_ERROR_CHARACTERS else f"{what[:_MAX_ERROR_CHARACTERS]}…"
        self._on_rejected(RejectedRecord(where, doc_id, shown, reason, position))


REPEATED = "repeated id"
"""Reason of records whose id an earlier one has."""


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

    def scan(self, dropped: Counter[str], on_rejected: OnRejected = bool) -> Iterator[Record]:
        """Validate the whole file and yield its records in order.

        Args:
            dropped: counts by reason, added to for what is left out on purpose ("redirect", "empty article").
            on_rejected: told of each record that cannot be used, in order with those yielded, where the source
                tolerates it.

        Raises:
            CorpusError: naming file, line or row, and what was found.
        """
        ...

    def read(self, start: int, stop: int | None, on_rejected: OnRejected = bool) -> Iterator[Document]:
        """Yield the documents of the records from position ``start`` up to, not including, ``stop``.

        The records are those that ``scan`` yields there, and those rejected the same.

        Raises:
            CorpusError: as ``scan``.
        """
        ...


def check_doc_id(doc_id: object, where: str, longest: int = MAX_ID_BYTES) -> str:
    """Return the id as a string, or raise ``RecordError`` for one that is empty, too long or of a wrong type.

    Args:
        doc_id: what the record has as its id.
        where: file and line, for messages.
        longest: bytes of UTF-8 allowed; fewer where documents get a longer id than their record.
    """
    if isinstance(doc_id, int) and not isinstance(doc_id, bool):
        return str(doc_id)
    if not isinstance(doc_id, str):
        raise RecordError(where, f"the id must be a string or an integer, not {type(doc_id).__name__}.", _BAD_ID)
    if not doc_id.strip():
        raise RecordError(where, "the id is empty. Every document needs an id of its own.", _BAD_ID)
    size = len(doc_id.encode("utf-8", errors="surrogatepass"))
    if size > longest:
        what = f"the id {doc_id[:40]!r}… has {size} bytes; at most {longest} are allowed."
        raise RecordError(where, what, _BAD_ID)
    return doc_id
