"""JSON records: one object a line (BEIR, Pyserini, KILT), an array of objects, or an object a file."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import orjson

from ...errors import CorpusError
from .. import streams
from ..document import Document, RecordError, Refusals, Tolerance, check_doc_id
from ..fields import Fields, listed
from ..split import max_id_bytes
from ..streams import ByteStream, TextFile, decode_line, lines, read_more, stream_at, too_long
from .text_source import TextSource

# KILT's knowledge source marks headings and list items in its paragraphs.
_KILT_MARKER = re.compile(r"^(?:Section::::|BULLET::::(?:- )?)")
_BRACE_OR_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}]', re.DOTALL)
_WRONG_TYPE = "wrong type"
_UTF8_BOM = b"\xef\xbb\xbf"


class JsonLinesSource(TextSource):
    """A file of one JSON object a line; positions are offsets of lines."""

    format: ClassVar[str] = "jsonl"

    def _records(self, start: int, stop: int | None, refusals: Refusals) -> Iterator[tuple[int, int, str, Document]]:
        with stream_at(self.file, start) as stream:
            for number, position, line in lines(stream, stop):
                if line is not None and not line.strip():
                    continue
                where = self.place(start, number, position)
                try:
                    if line is None:
                        raise too_long(where)
                    document = _document(line, self, where, where, number if start == 0 else None)
                except RecordError as error:
                    refusals.record(error, position)
                    continue
                yield position, number, where, document


class JsonObjectsSource(TextSource):
    """A file that is one JSON array of objects, or objects one after another; positions are offsets of objects."""

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
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Rebuild from ``spec``."""
        file, fields = TextFile.from_spec(spec["file"]), Fields.from_spec(spec["fields"])
        return cls(file, fields, spec["passage_words"], Tolerance.from_spec(spec), is_array=spec["is_array"])

    @property
    def spec(self) -> dict[str, Any]:
        """All that another process needs to open this source: JSON-able."""
        return super().spec | {"is_array": self.is_array}

    def _records(self, start: int, stop: int | None, refusals: Refusals) -> Iterator[tuple[int, int, str, Document]]:
        with stream_at(self.file, start) as stream:
            for number, (position, raw, line) in enumerate(objects(stream, stop, self.is_array), 1):
                place = self.place(start, line, position)
                where = f"{place}, object {number}" if start == 0 else place
                try:
                    document = _document(raw, self, where, place, line if start == 0 else None)
                except RecordError as error:
                    refusals.record(error, position)
                    continue
                yield position, number, where, document


class FramedObject(NamedTuple):
    """The bytes of one JSON object and where it begins; ``line`` counts from where reading began."""

    position: int
    raw: bytes
    line: int


def objects(stream: ByteStream, stop: int | None, is_array: bool) -> Iterator[FramedObject]:
    """Yield the outermost objects that begin before ``stop``: of an array, or one after another.

    Raises:
        CorpusError: for an object that is never closed, and for anything but a comma between objects.
    """
    base, name = stream.offset, stream.file.name
    # Reading begins with the file or with an object.
    before = b"[" if is_array and base == 0 else b""
    end_of_all = b"]" if is_array else b""
    buffer, cursor, line = b"", 0, 1
    while True:
        begin = buffer.find(b"{", cursor)
        gap = b"".join(buffer[cursor : begin if begin >= 0 else None].removeprefix(_UTF8_BOM).split())
        if (begin >= 0 and gap != before) or len(gap) > len(b"[]"):
            _refuse_gap(gap, name, line)
        if begin >= 0 and stop is not None and base + begin >= stop:
            stream.unread(buffer[begin:])
            return
        end = _end_of_object(buffer, begin) if begin >= 0 else -1
        if end < 0:
            more = read_more(stream, len(buffer) - cursor)
            if not more and begin < 0:
                # Before any object it is all of an array that begins and ends.
                if gap != (before + end_of_all if before != b"," else end_of_all):
                    _refuse_gap(gap, name, line)
                return
            if not more:
                line += buffer.count(b"\n", cursor, begin)
                raise CorpusError(
                    f"{name}, line {line}: the object that begins here is never closed; a quote or a brace is missing,"
                    " or the file is truncated."
                )
            buffer, base, cursor = buffer[cursor:] + more, base + cursor, 0
            if len(buffer) - len(more) > streams.MAX_RECORD_BYTES:
                raise too_long(f"{name}, byte {base:,}")
            continue
        line += buffer.count(b"\n", cursor, begin)
        yield FramedObject(base + begin, buffer[begin:end], line)
        line += buffer.count(b"\n", begin, end)
        before = b"," if is_array else b""
        cursor = end


def _end_of_object(buffer: bytes, begin: int) -> int:
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


def _refuse_gap(gap: bytes, name: str, line: int) -> None:
    found = repr(gap[:20].decode(errors="replace")) if gap else "nothing"
    raise CorpusError(
        f"{name}, near line {line}: {found} where the next object of the array or the end of the file should be;"
        " an array of objects or one object is read."
    )


def parse_object(raw: bytes, name: str, line: int) -> dict[str, Any]:
    """Parse a JSON object that begins in line ``line``, counted from 1.

    Raises:
        RecordError: naming line and column of what is no UTF-8, no JSON or no object.
    """
    return _parse(raw, f"{name}, line {line}", name, line)


def _parse(raw: bytes, place: str, name: str, line: int | None) -> dict[str, Any]:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        decode_line(raw, place)
        at = place if line is None else f"{name}, line {line + error.lineno - 1}"
        what = f"broken JSON ({error.msg}). Correct the line or leave it out."
        raise RecordError(f"{at}, column {error.colno}", what, "broken JSON") from None
    if not isinstance(value, dict):
        what = f"a JSON {_json_type(value)} where an object of fields should be."
        raise RecordError(place, what, _WRONG_TYPE)
    return value


def record_text(record: Mapping[str, Any], fields: Fields, where: str) -> str:
    """Return the text of a record; KILT's paragraphs are joined by line feeds, without their markers.

    Raises:
        RecordError: when it is missing or no text.
    """
    text = _field(record, fields.text, where)
    if isinstance(text, str):
        return text
    if isinstance(text, list) and all(isinstance(paragraph, str) for paragraph in text):
        return "\n".join(_KILT_MARKER.sub("", paragraph).rstrip() for paragraph in text)
    what = f"{fields.text!r} must be a string or a list of strings, not {_json_type(text)}."
    raise RecordError(where, what, _WRONG_TYPE)


def record_title(record: Mapping[str, Any], fields: Fields, where: str) -> str | None:
    """Return the title of a record, None where it is missing, null or empty.

    Raises:
        RecordError: when it is no string.
    """
    title = record.get(fields.title or "title")
    if title is not None and not isinstance(title, str):
        what = f"{fields.title or 'title'!r} must be a string, not {_json_type(title)}."
        raise RecordError(where, what, _WRONG_TYPE)
    return title or None


def _document(raw: bytes, source: TextSource, where: str, place: str, line: int | None) -> Document:
    """Make a document of an object.

    Raises:
        RecordError: with the id, where there is a usable one.
    """
    fields = source.fields
    record = _parse(raw, place, source.name, line)
    doc_id = check_doc_id(_field(record, fields.id, where), where, max_id_bytes(source.passage_words))
    try:
        text, title = record_text(record, fields, where), record_title(record, fields, where)
    except RecordError as error:
        error.doc_id = doc_id
        raise
    used = (fields.id, fields.text, fields.title or "title")
    return Document(doc_id, text, title, {key: value for key, value in record.items() if key not in used})


def _field(record: Mapping[str, Any], name: str, where: str) -> Any:
    try:
        return record[name]
    except KeyError:
        raise RecordError(where, f"no field {name!r}; found {listed(record)}.", "missing field") from None


def _json_type(value: object) -> str:
    names: dict[type, str] = {
        type(None): "null",
        bool: "boolean",
        int: "number",
        float: "number",
        str: "string",
        list: "array",
    }
    return names.get(type(value), "object")
