"""Records that cannot be used: the errors that describe them, and the choice to raise an error or skip the record."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..configs.corpus import OnError
from ..errors import CorpusError

REPEATED = "repeated id"
"""Reason for rejecting a record whose id an earlier record has."""

# Longest error message that is kept with a rejected record: a message may quote megabytes of a broken record.
_MAX_ERROR_CHARACTERS = 1000

_Item = TypeVar("_Item")


class UnreadableError(CorpusError):
    """A file that the system cannot read, or that changed after it was planned.

    It is raised even where errors are skipped, because skipping records does not help.
    """


class UnrecognisedError(CorpusError):
    """A file that is not a corpus."""


def unreadable(name: str, error: OSError) -> UnreadableError:
    """Return the error for a file that the system refuses to open or read."""
    return UnreadableError(f"{name}: the file cannot be read ({error.strerror}). Check its path and permissions.")


class RecordError(CorpusError):
    """A record that cannot be used, while the records after it can be.

    Attributes:
        place: file and line, row, page or byte.
        problem: description of what is wrong.
        reason: class of errors that this one is counted under.
        doc_id: id of the record, if it has a usable one.
    """

    def __init__(self, place: str, problem: str, reason: str, doc_id: str | None = None):
        super().__init__(f"{place}: {problem}")
        self.place = place
        self.problem = problem
        self.reason = reason
        self.doc_id = doc_id

    def __reduce__(self):
        return type(self), (self.place, self.problem, self.reason, self.doc_id)


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that gives no document, or the rest of a file in which no further record can be found.

    Attributes:
        source: file and line, row, page or byte.
        doc_id: id of the record, if it has a usable one.
        error: description of what is wrong.
        reason: class of errors that this one is counted under.
        position: position of the record in its source; None for the rest of a file.
    """

    source: str
    doc_id: str | None
    error: str
    reason: str
    position: int | None


OnRejected = Callable[[RejectedRecord], object]
"""Callback that is given each rejected record. The default, ``bool``, ignores it."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A source's treatment of records that cannot be used.

    Attributes:
        on_error: "fail" raises the first error; "skip" rejects the record and reads the next one.
        repeated: positions of records whose id an earlier record of the corpus has; they are rejected too.
    """

    on_error: OnError = "fail"
    repeated: frozenset[int] = frozenset()

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able form, which is part of a source's ``spec``."""
        return {"on_error": self.on_error, "repeated": sorted(self.repeated)}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Tolerance":
        """Rebuild the tolerance from a source's ``spec``."""
        return cls(spec.get("on_error", "fail"), frozenset(spec.get("repeated", ())))


class Rejecter:
    """Rejects the unusable records of a source during one reading, or raises their errors.

    Args:
        name: name of the source in messages.
        tolerance: tolerance of the source.
        on_rejected: callback for each rejected record.
    """

    def __init__(self, name: str, tolerance: Tolerance, on_rejected: OnRejected):
        self._name = name
        self._tolerance = tolerance
        self._on_rejected = on_rejected

    def reject(self, error: RecordError, position: int) -> None:
        """Reject the record at a position, or raise its error if the source tolerates none."""
        if self._tolerance.on_error == "fail":
            raise error
        self._report(error.place, error.problem, error.reason, error.doc_id, position)

    def rejects_repeated(self, position: int, doc_id: str, place: str) -> bool:
        """Reject the record if an earlier record of the corpus has its id, and return True if so."""
        if position not in self._tolerance.repeated:
            return False
        self._report(place, f"the id {doc_id!r} is that of an earlier record.", REPEATED, doc_id, position)
        return True

    def until_damage(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield the items. If the next one cannot be found, reject the rest of the file or raise the error."""
        try:
            yield from items
        except UnreadableError:
            raise
        except CorpusError as error:
            if self._tolerance.on_error == "fail":
                raise
            problem = str(error).removeprefix(self._name).lstrip(":, ")
            reason = "unrecognised file" if isinstance(error, UnrecognisedError) else "damaged file"
            self._report(self._name, problem, reason, None, None)

    def _report(self, place: str, problem: str, reason: str, doc_id: str | None, position: int | None) -> None:
        shown = problem if len(problem) <= _MAX_ERROR_CHARACTERS else f"{problem[:_MAX_ERROR_CHARACTERS]}…"
        self._on_rejected(RejectedRecord(place, doc_id, shown, reason, position))
