"""JSON lines: one object per line, as in BEIR, Pyserini and KILT, or pairs of lines as in bulk files."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

from ....configs.corpus import CorpusConfig
from ...document import Document
from ...fields import Fields
from ...framing import lines
from ...recognise import Recognised
from ...rejected import RecordError, Rejecter, Tolerance
from ...streams import TextFile, stream_at
from ..enterprise import passage_words
from ..text_source import TextSource
from .bulk import Framed, bulk_records, is_action
from .objects import objects_of_line
from .record import RawRecord, choose_json_fields, document_of

_Line = tuple[int, int, bytes | None]


class JsonLinesSource(TextSource):
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
            framed = _framed(lines(stream, None), is_bulk, lambda number, _: f"{text.name}, line {number}")
            records = ((number, each) for number, _, record in framed for each in _usable(record, is_bulk))
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

    def _records(self, start: int, stop: int | None, rejecter: Rejecter) -> Iterator[tuple[int, int, str, Document]]:
        def place(number: int, position: int) -> str:
            return self.place(start, number, position)

        with stream_at(self.file, start) as stream:
            for number, position, record in _framed(lines(stream, stop), self.is_bulk, place):
                line = number if start == 0 else None
                for begin, at, found in self._found(record, position, place(number, position), line):
                    if stop is not None and begin >= stop:
                        break
                    if isinstance(found, RecordError):
                        rejecter.reject(found, begin)
                    else:
                        yield begin, number, at, found

    def _found(
        self, record: RawRecord | RecordError, position: int, place: str, line: int | None
    ) -> Iterator[tuple[int, str, Document | RecordError]]:
        """Yield (position, place, document or error) of the record of a line, or of each of its objects."""
        found = self._document(record, place, line)
        objects = [] if self.is_bulk else _objects(record)
        if not isinstance(found, RecordError) or not objects:
            yield position, place, found
            return
        for index, (offset, raw) in enumerate(objects, 1):
            if line is None:
                at = self.place(position, 1, position + offset)
            else:
                at = place if index == 1 else f"{place}, object {index}"
            yield position + offset, at, self._document(RawRecord(raw, None, offset), at, line)

    def _document(self, record: RawRecord | RecordError, place: str, line: int | None) -> Document | RecordError:
        if isinstance(record, RecordError):
            return record
        try:
            return document_of(record, self, place, place, line)
        except RecordError as error:
            return error


def _framed(found: Iterator[_Line], is_bulk: bool, place: Callable[[int, int], str]) -> Iterator[Framed]:
    not_blank = _not_blank(found)
    if is_bulk:
        return bulk_records(not_blank, place)
    return ((number, position, RawRecord(line)) for number, position, line in not_blank)


def _not_blank(found: Iterator[_Line]) -> Iterator[_Line]:
    return (each for each in found if each[2] is None or each[2].strip())


def _usable(record: RawRecord | RecordError, is_bulk: bool) -> Iterator[RawRecord]:
    """Yield the record of a line, or each of its objects."""
    if isinstance(record, RawRecord):
        objects = [] if is_bulk else _objects(record)
        yield from (RawRecord(raw, None, offset) for offset, raw in objects) if objects else (record,)


def _objects(record: RawRecord | RecordError) -> list[tuple[int, bytes]]:
    """Return (offset, object) of the objects of a line that is not one object; none if the line has no object."""
    if isinstance(record, RecordError) or record.raw is None:
        return []
    found = objects_of_line(record.raw)
    return [] if found == [(0, record.raw)] else found
