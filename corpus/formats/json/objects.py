"""JSON objects that are not one per line: one after another, in one array, or under their ids in one object."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

from ....configs.corpus import CorpusConfig
from ....errors import CorpusError
from ... import framing
from ...document import Event
from ...fields import Fields
from ...framing import read_more, too_long
from ...recognise import HEAD_BYTES, Recognised
from ...rejected import RecordError, Tolerance
from ...streams import ByteStream, TextFile, stream_at
from ..enterprise import passage_words
from ..text_source import TextSource
from .layout import SEPARATOR, Layout, end_of_object, layout_of
from .record import RawRecord, choose_json_fields, document_of

_UTF8_BOM = b"\xef\xbb\xbf"
_KEY = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")\s*+(:?)\s*+', re.DOTALL)
_SCALAR = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^\s,{}\[\]"]++', re.DOTALL)
# A line must be read alike from any of its objects on. So whatever may begin a line may stand between two objects, in
# any number: a comma, or the byte order mark of a file that was joined.
_SEPARATORS = re.compile(rb"(?:[\s\x1e,]|\xef\xbb\xbf)*+")
# Longest text that may stand between two objects, beside blanks.
_LONGEST_GAP = 16


class _Grammar(NamedTuple):
    """The bytes, beside blanks, that stand around the records of a layout.

    Files that were joined give ``][`` or ``}{``. A missing comma between two records, or one behind the last record,
    loses nothing.
    """

    opening: bytes
    closing: bytes
    between: frozenset[bytes]


_GRAMMARS: dict[Layout, _Grammar] = {
    "objects": _Grammar(b"", b"", frozenset((b"", b","))),
    "array": _Grammar(b"[", b"]", frozenset((b"", b",", b"][", b"],["))),
    "keyed": _Grammar(b"{", b"}", frozenset((b"", b",", b"}{", b"},{"))),
}


class JsonObjectsSource(TextSource):
    """A file of JSON objects. Positions are offsets of objects, or of the keys before them.

    Attributes:
        layout: how the objects stand in the file.
    """

    format: ClassVar[str] = "json"

    def __init__(
        self,
        file: TextFile,
        fields: Fields,
        passage_words: int | None,
        tolerance: Tolerance = Tolerance(),  # noqa: B008
        *,
        layout: Layout,
    ):
        super().__init__(file, fields, passage_words, tolerance)
        self.layout: Layout = layout

    @classmethod
    def begin(cls, found: Recognised, config: CorpusConfig) -> Self:
        """Open a recognised file; its first record shows the fields.

        Raises:
            CorpusError: if there is no field for the id or the text.
        """
        text = found.text
        with stream_at(text, 0) as stream:
            head = read_more(stream, HEAD_BYTES)
            stream.unread(head)
            layout = layout_of(head[:HEAD_BYTES].removeprefix(_UTF8_BOM).lstrip())
            layout = "objects" if layout == "lines" else layout
            framed = ((each.line, each.record) for each in objects(stream, None, layout))
            fields = choose_json_fields(framed, text.name, config)
        return cls(text, fields, passage_words(fields, config), Tolerance(config.on_error), layout=layout)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Rebuild the source from its ``spec``."""
        file, fields = TextFile.from_spec(spec["file"]), Fields.from_spec(spec["fields"])
        layout: Layout = "array" if spec["is_array"] else "keyed" if spec.get("is_keyed") else "objects"
        return cls(file, fields, spec["passage_words"], Tolerance.from_spec(spec), layout=layout)

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able description from which another process opens this source."""
        return super().spec | {"is_array": self.layout == "array", "is_keyed": self.layout == "keyed"}

    def walk(self, start: int, stop: int | None) -> Iterator[Event]:
        """Yield the document or the error of each object between two positions."""
        with stream_at(self.file, start) as stream:
            for number, (position, record, line) in enumerate(objects(stream, stop, self.layout), 1):
                line_place = self.place(start, line, position)
                place = f"{line_place}, object {number}" if start == 0 else line_place
                try:
                    found = document_of(record, self, place, line_place, line if start == 0 else None)
                except RecordError as error:
                    found = error
                yield position, number, place, found


class FramedObject(NamedTuple):
    """A JSON object, found but not parsed.

    Attributes:
        position: offset of the object, or of the key before it.
        record: bytes of the object, and the key.
        line: number of the line that it begins in, counted from where reading begins.
    """

    position: int
    record: RawRecord
    line: int


def objects(stream: ByteStream, stop: int | None, layout: Layout) -> Iterator[FramedObject]:
    """Yield the objects of a layout that begin before ``stop``.

    Raises:
        CorpusError: if an object is never closed, or anything but a comma stands between two objects.
    """
    base, name, grammar = stream.offset, stream.file.name, _GRAMMARS[layout]
    # Reading begins with the file or with a record, so the opening bracket comes first or not at all.
    before = grammar.opening if base == 0 else b""
    allowed, endings = frozenset((before,)), frozenset((before + grammar.closing,))
    mark = b'"' if layout == "keyed" else b"{"
    buffer, cursor, line = b"", 0, 1
    while True:
        begin = buffer.find(mark, cursor)
        gap = _without_blanks(buffer[cursor : begin if begin >= 0 else None])
        if (begin >= 0 and gap not in allowed) or len(gap) > _LONGEST_GAP:
            raise _misplaced(gap, name, line)
        if begin >= 0 and stop is not None and base + begin >= stop:
            stream.unread(buffer[begin:])
            return
        framed = _frame(buffer, begin, layout, name, line) if begin >= 0 else None
        if framed is None:
            more = read_more(stream, len(buffer) - cursor)
            if not more and begin >= 0:
                raise _never_closed(name, line + buffer.count(b"\n", cursor, begin))
            if not more:
                if gap not in endings:
                    raise _misplaced(gap, name, line)
                return
            buffer, base, cursor = buffer[cursor:] + more, base + cursor, 0
            if len(buffer) - len(more) > framing.MAX_RECORD_BYTES:
                raise too_long(f"{name}, byte {base:,}")
            continue
        record, end = framed
        line += buffer.count(b"\n", cursor, begin)
        yield FramedObject(base + begin, record, line)
        line += buffer.count(b"\n", begin, end)
        allowed, endings = grammar.between, frozenset((grammar.closing, b"," + grammar.closing))
        cursor = end


def objects_of_line(line: bytes) -> list[tuple[int, bytes]]:
    """Return (offset, object) of each object in a line, between which nothing, blanks or commas stand.

    What is no object is the last one, so that parsing it gives the error.
    """
    found: list[tuple[int, bytes]] = []
    cursor = 0
    while separator := _SEPARATORS.match(line, cursor):
        begin = separator.end()
        if begin == len(line):
            break
        end = end_of_object(line, begin) if line[begin : begin + 1] == b"{" else -1
        cursor = end if end > 0 else len(line)
        found.append((begin, line[begin:cursor]))
    return found


def _frame(buffer: bytes, begin: int, layout: Layout, name: str, line: int) -> tuple[RawRecord, int] | None:
    """Return the record that begins there and its end; None if the buffer does not have all of it."""
    if layout != "keyed":
        end = end_of_object(buffer, begin)
        return (RawRecord(buffer[begin:end]), end) if end > 0 else None
    key = _KEY.match(buffer, begin)
    if key is None or key.end() == len(buffer):
        return None
    if not key[2]:
        raise _misplaced(buffer[begin : key.end() + 10], name, line)
    value = key.end()
    if buffer[value : value + 1] == b"{":
        end = end_of_object(buffer, value)
    else:
        scalar = _SCALAR.match(buffer, value)
        if scalar is None and buffer[value : value + 1] == b'"':
            return None
        if scalar is None:
            raise _misplaced(buffer[begin : value + 10], name, line)
        end = scalar.end() if scalar.end() < len(buffer) else -1
    return (RawRecord(buffer[value:end], key[1]), end) if end > 0 else None


def _without_blanks(gap: bytes) -> bytes:
    return b"".join(gap.replace(_UTF8_BOM, b"").replace(SEPARATOR, b"").split())


def _misplaced(gap: bytes, name: str, line: int) -> CorpusError:
    found = repr(gap[:20].decode(errors="replace")) if gap else "nothing"
    return CorpusError(
        f"{name}, near line {line}: {found} stands where a comma and the next object, or the end, should be."
        " A file holds objects one after another, one array of objects, or one object that holds them by their ids."
    )


def _never_closed(name: str, line: int) -> CorpusError:
    return CorpusError(
        f"{name}, line {line}: the object that begins here is never closed. A quote or a brace is missing, or the file"
        " is truncated. Correct the object or download the file again."
    )
