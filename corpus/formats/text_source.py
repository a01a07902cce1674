"""The bases of sources that read a text file."""

from abc import ABC
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from ..document import Document
from ..fields import Fields
from ..rejected import Tolerance
from ..streams import ByteStream, TextFile
from .cleaning import cleaning_of
from .enterprise import cleaned, holds_wikitext
from .source import RecordSource


class FileSource(RecordSource):
    """A source that reads one text file, which may be compressed.

    The ``spec`` is complete once the file has been read to its end, because only then are the members of a compressed
    file known. With an earlier ``spec``, reading is correct but slow.

    Attributes:
        origin: position at which lines or pages are counted from.
        counted: number of the lines or pages before it.
    """

    format: ClassVar[str]
    enters_anywhere: ClassVar[bool] = False
    """True if the next record can be found from any place in the file."""

    def __init__(self, file: TextFile, passage_words: int | None, tolerance: Tolerance):
        self.file = file
        self.passage_words = passage_words
        self.tolerance = tolerance
        self.origin = self.counted = 0

    @property
    def name(self) -> str:  # type: ignore[override]
        """Path of the file as messages show it."""
        return self.file.name

    @property
    def path(self) -> str:
        """Absolute path of the file."""
        return self.file.path

    def enter(self, stream: ByteStream) -> bool:  # noqa: ARG002
        """Move a stream that begins anywhere to where ``walk`` can begin, behind the record that the stream begins in.

        The place is a guess: it may be inside of a record, whose rest ``walk`` then takes for records.

        Returns:
            False if the file ends before such a place.
        """
        return True

    @property
    def learnt(self) -> dict[str, Any]:
        """Findings of a reading about the file as a whole, as plain values."""
        return {}

    def learn(self, learnt: Mapping[str, Any]) -> None:
        """Take over what a reading of an earlier part of the file found out."""

    def forget_earlier(self) -> None:
        """Note that an earlier part of the file was not read yet. What depends on it must not be found out."""

    def numbered(self, number: int) -> str:
        """Return the place of a record by its number, for messages."""
        return f"{self.name}, line {number}"

    def place(self, start: int, number: int, position: int) -> str:
        """Return the place of a record for messages: its number if those before it are counted, else its offset."""
        return self.numbered(number) if start == self.origin else f"{self.name}, byte {position:,}"

    def before(self, start: int) -> int:
        """Return the number of lines or pages before a position where reading begins; 0 if it is unknown."""
        return self.counted if start == self.origin else 0


class TextSource(FileSource):
    """A text file of records with fields. A subclass has a ``format`` and implements ``walk``."""

    def __init__(
        self,
        file: TextFile,
        fields: Fields,
        passage_words: int | None,
        tolerance: Tolerance = Tolerance(),  # noqa: B008
    ):
        super().__init__(file, passage_words, tolerance)
        self.fields = fields

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

    @property
    def cleaning(self) -> str | None:
        """Identity of the cleaning of wikitext; None if the texts are no wikitext."""
        return cleaning_of([self.format, self.passage_words]) if holds_wikitext(self.fields) else None

    def documents(self, document: Document, place: str) -> Iterable[Document]:
        """Clean and cut a document that ``walk`` yielded.

        Raises:
            RecordError: if its wikitext cannot be parsed.
        """
        if holds_wikitext(self.fields):
            document = cleaned(document, place)
            if not document.text:
                return ()
        return super().documents(document, place)


class LinesSource(TextSource, ABC):
    """A text file whose records begin with lines."""

    enters_anywhere: ClassVar[bool] = True

    def enter(self, stream: ByteStream) -> bool:
        """Move a stream behind the first line feed: a line that begins where the stream does is skipped, too."""
        while block := stream.read():
            if (end := block.find(b"\n")) >= 0:
                stream.unread(block[end + 1 :])
                return end + 1 < len(block) or bool(self._has_more(stream))
        return False

    @staticmethod
    def _has_more(stream: ByteStream) -> bool:
        block = stream.read()
        stream.unread(block)
        return bool(block)
