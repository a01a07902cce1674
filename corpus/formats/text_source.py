"""What the sources of text files have in common."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from ..document import Document, OnRejected, Record, Refusals, Tolerance
from ..fields import Fields
from ..split import split_document
from ..streams import TextFile


class TextSource(ABC):
    """A text file of records with fields: one ``Source`` a file.

    Its ``spec`` is complete once ``scan`` has run to the end: only then does it know where a compressed file's members
    begin. With an earlier one reading is right, but slow. Several threads may ``read`` one source at a time.
    """

    format: ClassVar[str]

    def __init__(
        self,
        file: TextFile,
        fields: Fields,
        passage_words: int | None,
        tolerance: Tolerance = Tolerance(),  # noqa: B008
    ):
        self.file = file
        self.fields = fields
        self.passage_words = passage_words
        self.tolerance = tolerance

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Rebuild from ``spec``."""
        file, fields = TextFile.from_spec(spec["file"]), Fields.from_spec(spec["fields"])
        return cls(file, fields, spec["passage_words"], Tolerance.from_spec(spec))

    @property
    def name(self) -> str:
        """The path shown in messages."""
        return self.file.name

    @property
    def path(self) -> str:
        """The file's absolute path."""
        return self.file.path

    @property
    def spec(self) -> dict[str, Any]:
        """All that another process needs to open this source: JSON-able."""
        return {
            "format": self.format,
            "file": self.file.spec,
            "fields": self.fields.spec,
            "passage_words": self.passage_words,
            **self.tolerance.spec,
        }

    def scan(self, dropped: Counter[str], on_rejected: OnRejected = bool) -> Iterator[Record]:  # noqa: ARG002
        """Validate the whole file and yield its records in order."""
        refusals = Refusals(self.name, self.tolerance, on_rejected)
        for position, number, _, document in refusals.until_damage(self._records(0, None, refusals)):
            yield Record(position, document.doc_id, len(document.text), number)

    def read(self, start: int, stop: int | None, on_rejected: OnRejected = bool) -> Iterator[Document]:
        """Yield the documents of the records from position ``start`` up to, not including, ``stop``."""
        refusals = Refusals(self.name, self.tolerance, on_rejected)
        for position, _, where, document in refusals.until_damage(self._records(start, stop, refusals)):
            if not refusals.is_repeated(position, document.doc_id, where):
                yield from split_document(document, self.passage_words)

    def place(self, start: int, number: int, position: int) -> str:
        """Name a line in messages: by its number where reading began with the first one."""
        return f"{self.name}, line {number}" if start == 0 else f"{self.name}, byte {position:,}"

    @abstractmethod
    def _records(self, start: int, stop: int | None, refusals: Refusals) -> Iterator[tuple[int, int, str, Document]]:
        """Yield (position, number counted from where reading begins, place, uncut document) of each record."""
