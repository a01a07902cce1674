"""A file that is no corpus, in one whose errors are skipped: a single rejected record."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Self

from ..document import Document, OnRejected, Record, RejectedRecord


class UnrecognisedSource:
    """A file without a record; ``error`` says why."""

    def __init__(self, path: str, name: str, error: str):
        self.path = path
        self.name = name
        self.error = error

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Rebuild from ``spec``."""
        return cls(spec["path"], spec["name"], spec["error"])

    @property
    def spec(self) -> dict[str, Any]:
        """All that another process needs to open this source: JSON-able."""
        return {
            "format": "unrecognised",
            "path": self.path,
            "name": self.name,
            "error": self.error,
            "passage_words": None,
            "on_error": "skip",
        }

    def scan(self, dropped: Counter[str], on_rejected: OnRejected = bool) -> Iterator[Record]:  # noqa: ARG002
        """Reject the file."""
        on_rejected(RejectedRecord(self.name, None, self.error, "unrecognised file", None))
        return iter(())

    def read(self, start: int, stop: int | None, on_rejected: OnRejected = bool) -> Iterator[Document]:  # noqa: ARG002
        """Reject the file."""
        on_rejected(RejectedRecord(self.name, None, self.error, "unrecognised file", None))
        return iter(())
