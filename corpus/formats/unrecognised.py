"""A file that is not a corpus. Where errors are skipped, it is one rejected record."""

from collections.abc import Iterator, Mapping
from typing import Any, Self

from ..document import Event
from ..rejected import Tolerance, UnrecognisedError
from .source import RecordSource


class UnrecognisedSource(RecordSource):
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
        self.passage_words = None
        self.tolerance = Tolerance("skip")

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

    def walk(self, start: int, stop: int | None) -> Iterator[Event]:  # noqa: ARG002
        """Reject the file.

        Raises:
            UnrecognisedError: always.
        """
        raise UnrecognisedError(f"{self.name}: {self.error}")
        yield  # makes this a generator, which raises when it is read
