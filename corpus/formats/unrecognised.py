"""A file that is not a corpus. Where errors are skipped, it is one rejected record."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Self

from ..document import Document, Record
from ..rejected import OnRejected, RejectedRecord


class UnrecognisedSource:
    """A file without records.

    Args:
        path: absolute path.
        name: path as messages show it.
        error: reason why it is not a corpus.
    """

    def __init__(self, path: str, name: str, error: str):
        self.path = path
        self.name = name
        self.error = error

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Rebuild the source from its ``spec``."""
        return cls(spec["path"], spec["name"], spec["error"])

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able description from which another process opens this source."""
        return {
            "format": "unrecognised",
            "path": self.path,
            "name": self.name,
            "error": self.error,
            "passage_words": None,
            "on_error": "skip",
        }

    def scan(self, dropped: Counter[str], on_rejected: OnRejected = bool) -> Iterator[Record]:  # noqa: ARG002
        """Reject the file; yield nothing."""
        self._reject(on_rejected)
        return iter(())

    def read(self, start: int, stop: int | None, on_rejected: OnRejected = bool) -> Iterator[Document]:  # noqa: ARG002
        """Reject the file; yield nothing."""
        self._reject(on_rejected)
        return iter(())

    def _reject(self, on_rejected: OnRejected) -> None:
        on_rejected(RejectedRecord(self.name, None, self.error, "unrecognised file", None))
