"""JSON lines: one object per line, as in BEIR, Pyserini and KILT, or pairs of lines as in bulk files."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

from ....configs.corpus import CorpusConfig
from ...document import Document, Event
from ...fields import Fields
from ...framing import lines, raw_lines, without_mark
from ...recognise import Recognised
from ...rejected import RecordError, Tolerance
from ...streams import TextFile, stream_at
from ..enterprise import passage_words
from ..text_source import LinesSource
from .bulk import Framed, bulk_records, is_action
from .objects import objects_of_line
from .record import RawRecord, choose_json_fields, document_of

_Line = tuple[int, int, bytes | None]


class JsonLinesSource(LinesSource):
    """A file with one JSON object per line. Positions are offsets of lines, and of the further objects of a line.

    Attributes:
        is_bulk: True if a line with an action and the id comes before each object.
    """

    format: ClassVar[str] = "jsonl"

    def __init__(
        self,
        file: TextFile,
        fields: Fields,
        passage_words: int | None,
        tolerance: Tolerance = Tolerance(),  # noqa: B008
        *,
        is_bulk: bool = False,
    ):
        super().__init__(file, fields, passage_words, tolerance)
        self.is_bulk = is_bulk

    @classmethod
    def begin(cls, found: Recognised, config: CorpusConfig) -> Self:
        """Open a recognised file; its first record shows the fields.

        Raises:
            CorpusError: if there is no field for the id or the text.
        """
        text = found.text
        with stream_at(text, 0) as stream:
            first = next((line for _, _, line in _not_blank(lines(stream, None))), None)
        is_bulk = first is not None and is_action(first)
        with stream_at(text, 0) as stream:
            framed = _framed(raw_lines(stream, None), is_bulk, lambda number, _: f"{text.name}, line {number}")
            records = (
                (number, each)
                for number, _, record in framed
                if isinstance(record, RawRecord)
                for each in (not is_bulk and _objects(record)) or [record]
            )
            fields = choose_json_fields(records, text.name, config)
        return cls(text, fields, passage_words(fields, config), Tolerance(config.on_error), is_bulk=is_bulk)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Rebuild the source from its ``spec``."""
        file, fields = TextFile.from_spec(spec["file"]), Fields.from_spec(spec["fields"])
        is_bulk = spec.get("is_bulk", False)
        return cls(file, fields, spec["passage_words"], Tolerance.from_spec(spec), is_bulk=is_bulk)

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able description from which another process opens this source."""
        return super().spec | {"is_bulk": self.is_bulk}

    def walk(self, start: int, stop: int | None) -> Iterator[Event]:
        """Yield the document or the error of each object between two positions."""

        def place(number: int, position: int) -> str:
            return self.place(start, number, position)

        with stream_at(self.file, start) as stream:
            for number, position, record in _framed(raw_lines(stream, stop, self.before(start)), self.is_bulk, place):
                at, line = place(number, position), number if start == self.origin else None
                found = self._document(record, at, line)
                if isinstance(found, Document):
                    yield position, number, at, found
                    continue
                for begin, placed, each in self._objects(record, position, at, line) or [(position, at, found)]:
                    if stop is not None and begin >= stop:
                        break
                    yield begin, number, placed, each

    def _objects(
        self, record: RawRecord | RecordError, position: int, place: str, line: int | None
    ) -> list[tuple[int, str, Document | RecordError]]:
        """Return (position, place, document or error) of the objects of a line; none if it is not several objects."""
        found: list[tuple[int, str, Document | RecordError]] = []
        for number, each in enumerate(() if self.is_bulk else _objects(record), 1):
            begin, at = position + each.marks + each.column, place
            if line is None:
                at = self.place(position, number, begin)
            elif number > 1:
                at = f"{place}, object {number}"
            found.append((begin, at, self._document(each, at, line)))
        return found

    def _document(self, record: RawRecord | RecordError, place: str, line: int | None) -> Document | RecordError:
        if isinstance(record, RecordError):
            return record
        try:
            return document_of(record, self, place, place, line)
        except RecordError as error:
            return error


def _framed(found: Iterator[_Line], is_bulk: bool, place: Callable[[int, int], str]) -> Iterator[Framed]:
    if is_bulk:
        unmarked = ((number, begin, line and without_mark(line)) for number, begin, line in found)
        return bulk_records(_not_blank(unmarked), place)
    return ((number, begin, _unmarked(line)) for number, begin, line in found if line is None or line.strip())


def _unmarked(line: bytes | None) -> RawRecord:
    raw = line and without_mark(line)
    return RawRecord(raw, marks=len(line or b"") - len(raw or b""))


def _not_blank(found: Iterator[_Line]) -> Iterator[_Line]:
    return (each for each in found if each[2] is None or each[2].strip())


def _objects(record: RawRecord | RecordError) -> list[RawRecord]:
    """Return the objects of a line that is not one object; none if the line has no object."""
    if isinstance(record, RecordError) or record.raw is None:
        return []
    found = objects_of_line(record.raw)
    if found == [(0, record.raw)]:
        return []
    return [RawRecord(raw, None, offset, record.marks) for offset, raw in found]
