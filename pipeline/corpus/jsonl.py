"""JSON records: one object a line (BEIR, Pyserini, KILT), an array of objects, or an object a file."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import orjson

from ...errors import CorpusError
from .document import Document, Record, check_doc_id
from .fields import Fields, listed
from .source import TextSource
from .split import max_id_bytes
from .streams import ByteStream, check_record_size, decode_line, lines, read_more, stream_at

# KILT's knowledge source marks headings and list items in its paragraphs.
_KILT_MARKER = re.compile(r"^(?:Section::::|BULLET::::(?:- )?)")
_BRACE_OR_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}]', re.DOTALL)
_UTF8_BOM = b"\xef\xbb\xbf"


class JsonLinesSource(TextSource):
    """A file of one JSON object a line; positions are offsets of lines."""

    format: ClassVar[str] = "jsonl"

    def scan(self, dropped: Counter[str]) -> Iterator[Record]:  # noqa: ARG002  every record is kept
        """Validate every line and yield its record."""
        fields, longest = self.fields, max_id_bytes(self.passage_words)
        with stream_at(self.file, 0) as stream:
            for number, (position, line) in enumerate(lines(stream, None), 1):
                if not line or line.isspace():
                    continue
                where = f"{self.name}, line {number}"
                record = parse_object(line, self.name, number)
                doc_id = check_doc_id(_field(record, fields.id, where), where, longest)
                text = record_text(record, fields, where)
                record_title(record, fields, where)
                yield Record(position, doc_id, len(text), number)

    def _records(self, start: int, stop: int | None) -> Iterator[Document]:
        with stream_at(self.file, start) as stream:
            for position, line in lines(stream, stop):
                if line and not line.isspace():
                    yield _document(line, self.fields, f"{self.name}, byte {position:,}")


class JsonObjectsSource(TextSource):
    """A file that is one JSON array of objects, or objects one after another; positions are offsets of objects."""

    format: ClassVar[str] = "json"

    def scan(self, dropped: Counter[str]) -> Iterator[Record]:  # noqa: ARG002  every record is kept
        """Validate every object and yield its record."""
        fields, longest = self.fields, max_id_bytes(self.passage_words)
        with stream_at(self.file, 0) as stream:
            for number, (position, raw, line) in enumerate(objects(stream, None), 1):
                where = f"{self.name}, line {line}, object {number}"
                record = parse_object(raw, self.name, line)
                doc_id = check_doc_id(_field(record, fields.id, where), where, longest)
                text = record_text(record, fields, where)
                record_title(record, fields, where)
                yield Record(position, doc_id, len(text), number)

    def _records(self, start: int, stop: int | None) -> Iterator[Document]:
        with stream_at(self.file, start) as stream:
            for position, raw, _ in objects(stream, stop):
                yield _document(raw, self.fields, f"{self.name}, byte {position:,}")


class FramedObject(NamedTuple):
    """The bytes of one JSON object and where it begins; ``line`` counts from where reading began."""

    position: int
    raw: bytes
    line: int


def objects(stream: ByteStream, stop: int | None) -> Iterator[FramedObject]:
    """Yield the outermost objects that begin before ``stop``: of an array, or one after another.

    Raises:
        CorpusError: for an object that is never closed, and for anything but a comma between objects.
    """
    base, name = stream.offset, stream.file.name
    between: tuple[bytes, ...] = (b"", b"[") if base == 0 else (b"", b",", b"]")
    ends: tuple[bytes, ...] = (b"", b"[]") if base == 0 else (b"", b"]")
    buffer, cursor, line = b"", 0, 1
    while True:
        begin = buffer.find(b"{", cursor)
        gap = b"".join(buffer[cursor : begin if begin >= 0 else None].removeprefix(_UTF8_BOM).split())
        if (begin >= 0 and gap not in between) or len(gap) > len(b"[]"):
            _refuse_gap(gap, name, line)
        if begin >= 0 and stop is not None and base + begin >= stop:
            stream.unread(buffer[begin:])
            return
        end = _end_of_object(buffer, begin) if begin >= 0 else -1
        if end < 0:
            more = read_more(stream, len(buffer) - cursor)
            if not more and begin < 0:
                if gap not in ends:
                    _refuse_gap(gap, name, line)
                return
            if not more:
                line += buffer.count(b"\n", cursor, begin)
                raise CorpusError(
                    f"{name}, line {line}: the object that begins here is never closed; a quote or a brace is missing,"
                    " or the file is truncated."
                )
            buffer, base, cursor = buffer[cursor:] + more, base + cursor, 0
            check_record_size(len(buffer) - len(more), name, base)
            continue
        line += buffer.count(b"\n", cursor, begin)
        yield FramedObject(base + begin, buffer[begin:end], line)
        line += buffer.count(b"\n", begin, end)
        if b"[" in between:  # the first object told whether the file is an array
            between, ends = ((b",",), (b"]",)) if gap == b"[" else ((b"",), (b"",))
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
        CorpusError: naming line and column of what is no UTF-8, no JSON or no object.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        decode_line(raw, f"{name}, line {line}")
        raise CorpusError(
            f"{name}, line {line + error.lineno - 1}, column {error.colno}: broken JSON ({error.msg})."
            " Correct the line or leave it out."
        ) from None
    if not isinstance(value, dict):
        raise CorpusError(f"{name}, line {line}: a JSON {_json_type(value)} where an object of fields should be.")
    return value


def record_text(record: Mapping[str, Any], fields: Fields, where: str) -> str:
    """Return the text of a record; KILT's paragraphs are joined by line feeds, without their markers.

    Raises:
        CorpusError: when it is missing or no text.
    """
    text = _field(record, fields.text, where)
    if isinstance(text, str):
        return text
    if isinstance(text, list) and all(isinstance(paragraph, str) for paragraph in text):
        return "\n".join(_KILT_MARKER.sub("", paragraph).rstrip() for paragraph in text)
    raise CorpusError(f"{where}: {fields.text!r} must be a string or a list of strings, not {_json_type(text)}.")


def record_title(record: Mapping[str, Any], fields: Fields, where: str) -> str | None:
    """Return the title of a record, None where it is missing, null or empty.

    Raises:
        CorpusError: when it is no string.
    """
    title = record.get(fields.title or "title")
    if title is not None and not isinstance(title, str):
        raise CorpusError(f"{where}: {fields.title or 'title'!r} must be a string, not {_json_type(title)}.")
    return title or None


def _document(raw: bytes, fields: Fields, where: str) -> Document:
    record = parse_object(raw, where, 1)
    doc_id = check_doc_id(_field(record, fields.id, where), where)
    text, title = record_text(record, fields, where), record_title(record, fields, where)
    used = (fields.id, fields.text, fields.title or "title")
    return Document(doc_id, text, title, {key: value for key, value in record.items() if key not in used})


def _field(record: Mapping[str, Any], name: str, where: str) -> Any:
    try:
        return record[name]
    except KeyError:
        raise CorpusError(f"{where}: no field {name!r}; found {listed(record)}.") from None


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
