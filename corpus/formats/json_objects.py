"""JSON objects over several lines: one array of objects, or objects one after another, e.g. one per file."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

from ...configs.corpus import CorpusConfig
from ...errors import CorpusError
from .. import framing
from ..document import Document
from ..fields import Fields
from ..framing import read_more, too_long
from ..recognise import Recognised
from ..rejected import RecordError, Rejecter, Tolerance
from ..streams import ByteStream, TextFile, stream_at
from .json_record import choose_json_fields, document_of
from .text_source import TextSource

_BRACE_OR_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}]', re.DOTALL)
_UTF8_BOM = b"\xef\xbb\xbf"


class JsonObjectsSource(TextSource):
    """A file of JSON objects. Positions are offsets of objects.

    Attributes:
        is_array: True if the file is one array of objects.
    """

    format: ClassVar[str] = "json"

    def __init__(
        self,
        file: TextFile,
        fields: Fields,
        passage_words: int | None,
        tolerance: Tolerance = Tolerance(),  # noqa: B008
        *,
        is_array: bool,
    ):
        super().__init__(file, fields, passage_words, tolerance)
        self.is_array = is_array

    @classmethod
    def begin(cls, found: Recognised, config: CorpusConfig) -> Self:
        """Open a recognised file; its first record shows the fields.

        Raises:
            CorpusError: if there is no field for the id or the text.
        """
        text, is_array = found.text, found.first_line.startswith("[")
        with stream_at(text, 0) as stream:
            framed = ((each.line, each.raw) for each in objects(stream, None, is_array))
            fields = choose_json_fields(framed, text.name, config)
        return cls(text, fields, config.passage_words, Tolerance(config.on_error), is_array=is_array)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Rebuild the source from its ``spec``."""
        file, fields = TextFile.from_spec(spec["file"]), Fields.from_spec(spec["fields"])
        return cls(file, fields, spec["passage_words"], Tolerance.from_spec(spec), is_array=spec["is_array"])

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able description from which another process opens this source."""
        return super().spec | {"is_array": self.is_array}

    def _records(self, start: int, stop: int | None, rejecter: Rejecter) -> Iterator[tuple[int, int, str, Document]]:
        with stream_at(self.file, start) as stream:
            for number, (position, raw, line) in enumerate(objects(stream, stop, self.is_array), 1):
                line_place = self.place(start, line, position)
                place = f"{line_place}, object {number}" if start == 0 else line_place
                try:
                    document = document_of(raw, self, place, line_place, line if start == 0 else None)
                except RecordError as error:
                    rejecter.reject(error, position)
                    continue
                yield position, number, place, document


class FramedObject(NamedTuple):
    """The bytes of one JSON object.

    Attributes:
        position: offset of the object.
        raw: bytes of the object.
        line: number of the line that it begins in, counted from where reading begins.
    """

    position: int
    raw: bytes
    line: int


def objects(stream: ByteStream, stop: int | None, is_array: bool) -> Iterator[FramedObject]:
    """Yield the outermost objects that begin before ``stop``.

    Raises:
        CorpusError: if an object is never closed, or anything but a comma stands between the objects of an array.
    """
    base, name = stream.offset, stream.file.name
    # Reading begins with the file or with an object, so the opening bracket comes first or not at all.
    before = b"[" if is_array and base == 0 else b""
    buffer, cursor, line = b"", 0, 1
    while True:
        begin = buffer.find(b"{", cursor)
        gap = b"".join(buffer[cursor : begin if begin >= 0 else None].removeprefix(_UTF8_BOM).split())
        if (begin >= 0 and gap != before) or len(gap) > len(b"[]"):
            raise _misplaced(gap, name, line)
        if begin >= 0 and stop is not None and base + begin >= stop:
            stream.unread(buffer[begin:])
            return
        end = _end_of_object(buffer, begin) if begin >= 0 else -1
        if end < 0:
            more = read_more(stream, len(buffer) - cursor)
            if not more and begin >= 0:
                raise _never_closed(name, line + buffer.count(b"\n", cursor, begin))
            if not more:
                _check_end(gap, before, is_array, name, line)
                return
            buffer, base, cursor = buffer[cursor:] + more, base + cursor, 0
            if len(buffer) - len(more) > framing.MAX_RECORD_BYTES:
                raise too_long(f"{name}, byte {base:,}")
            continue
        line += buffer.count(b"\n", cursor, begin)
        yield FramedObject(base + begin, buffer[begin:end], line)
        line += buffer.count(b"\n", begin, end)
        before = b"," if is_array else b""
        cursor = end


def _end_of_object(buffer: bytes, begin: int) -> int:
    """Return the end of the object that begins there; -1 if the buffer does not have all of it."""
    depth = 0
    for token in _BRACE_OR_STRING.finditer(buffer, begin):
        match token[0]:
            case b"{":
                depth += 1
            case b"}":
                depth -= 1
                if depth == 0:
                    return token.end()
            case b'"':  # a string that is not closed in this buffer
                return -1
    return -1


def _check_end(gap: bytes, before: bytes, is_array: bool, name: str, line: int) -> None:
    end = b"]" if is_array else b""
    # If no object came before, the gap is the whole array.
    if gap != (end if before == b"," else before + end):
        raise _misplaced(gap, name, line)


def _misplaced(gap: bytes, name: str, line: int) -> CorpusError:
    found = repr(gap[:20].decode(errors="replace")) if gap else "nothing"
    return CorpusError(
        f"{name}, near line {line}: {found} stands where a comma and the next object, or the end, should be."
        " A file holds one array of objects, or objects one after another."
    )


def _never_closed(name: str, line: int) -> CorpusError:
    return CorpusError(
        f"{name}, line {line}: the object that begins here is never closed. A quote or a brace is missing, or the file"
        " is truncated. Correct the object or download the file again."
    )
