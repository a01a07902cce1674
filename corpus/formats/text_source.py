"""The base of sources that read records with fields from a text file."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from ..document import Document, Record
from ..fields import Fields
from ..rejected import OnRejected, RecordError, Rejecter, Tolerance
from ..split import split_document
from ..streams import TextFile
from .enterprise import cleaned, holds_wikitext


class FileSource:
    """A source that reads one text file, which may be compressed."""

    format: ClassVar[str]

    def __init__(self, file: TextFile, tolerance: Tolerance):
        self.file = file
        self.tolerance = tolerance

    @property
    def name(self) -> str:
        """Path of the file as messages show it."""
        return self.file.name

    @property
    def path(self) -> str:
        """Absolute path of the file."""
        return self.file.path


class TextSource(FileSource, ABC):
    """A text file of records with fields. A subclass has a ``format`` and implements ``_records``.

    The ``spec`` is complete once ``scan`` has run to its end, because only then are the members of a compressed file
    known. With an earlier ``spec``, reading is correct but slow. Several threads may ``read`` one source at a time.
    """

    def __init__(
        self,
        file: TextFile,
        fields: Fields,
        passage_words: int | None,
        tolerance: Tolerance = Tolerance(),  # noqa: B008
    ):
        super().__init__(file, tolerance)
        self.fields = fields
        self.passage_words = passage_words

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Rebuild the source from its ``spec``."""
        file, fields = TextFile.from_spec(spec["file"]), Fields.from_spec(spec["fields"])
        return cls(file, fields, spec["passage_words"], Tolerance.from_spec(spec))

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able description from which another process opens this source."""
        return {
            "format": self.format,
            "file": self.file.spec,
            "fields": self.fields.spec,
            "passage_words": self.passage_words,
            **self.tolerance.spec,
        }

    def scan(self, dropped: Counter[str], on_rejected: OnRejected = bool) -> Iterator[Record]:  # noqa: ARG002
        """Validate the whole file and yield its records in order."""
        rejecter = Rejecter(self.name, self.tolerance, on_rejected)
        for position, number, _, document in rejecter.until_damage(self._records(0, None, rejecter)):
            yield Record(position, document.doc_id, len(document.text), number)

    def read(self, start: int, stop: int | None, on_rejected: OnRejected = bool) -> Iterator[Document]:
        """Yield the documents of the records from position ``start`` up to, but not including, ``stop``."""
        rejecter = Rejecter(self.name, self.tolerance, on_rejected)
        for position, _, place, document in rejecter.until_damage(self._records(start, stop, rejecter)):
            if rejecter.rejects_repeated(position, document.doc_id, place):
                continue
            if holds_wikitext(self.fields):
                try:
                    document = cleaned(document, place)
                except RecordError as error:
                    rejecter.reject(error, position)
                    continue
                if not document.text:
                    continue
            yield from split_document(document, self.passage_words)

    def place(self, start: int, number: int, position: int) -> str:
        """Return the place of a line for messages: its number if reading began with line 1, else its offset."""
        return f"{self.name}, line {number}" if start == 0 else f"{self.name}, byte {position:,}"

    @abstractmethod
    def _records(self, start: int, stop: int | None, rejecter: Rejecter) -> Iterator[tuple[int, int, str, Document]]:
        """Yield (position, number from where reading begins, place, uncut document) of each record."""
