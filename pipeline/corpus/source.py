"""What the sources of text files have in common."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from .document import Document, Record
from .fields import Fields
from .split import split_document
from .streams import TextFile


class TextSource(ABC):
    """A text file of records with fields: one ``Source`` a file.

    Its ``spec`` is complete once ``scan`` has run to the end: only then does it know where a compressed file's members
    begin. With an earlier one reading is right, but slow. Several threads may ``read`` one source at a time.
    """

    format: ClassVar[str]

    def __init__(self, file: TextFile, fields: Fields, passage_words: int | None):
        self.file = file
        self.fields = fields
        self.passage_words = passage_words

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Rebuild from ``spec``."""
        return cls(TextFile.from_spec(spec["file"]), Fields.from_spec(spec["fields"]), spec["passage_words"])

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
        }

    @abstractmethod
    def scan(self, dropped: Counter[str]) -> Iterator[Record]:
        """Validate the whole file and yield its records in order."""

    def read(self, start: int, stop: int | None) -> Iterator[Document]:
        """Yield the documents of the records from position ``start`` up to, not including, ``stop``."""
        for document in self._records(start, stop):
            yield from split_document(document, self.passage_words)

    @abstractmethod
    def _records(self, start: int, stop: int | None) -> Iterator[Document]:
        """Yield one document a record, uncut."""
