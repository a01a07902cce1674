"""One JSON object as a document: parsed, its fields chosen, its values checked. JSON lines and JSON arrays share it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import orjson

from ...configs.corpus import CorpusConfig
from ...errors import CorpusError
from ..document import Document, check_doc_id
from ..fields import Fields, choose_fields, listed
from ..framing import decode_line, too_long
from ..rejected import RecordError, UnreadableError
from ..split import max_id_bytes
from .text_source import TextSource

# Records among which one with an id and a text is looked for, if the first ones are to be skipped.
_LOOKED_AT = 1000
# KILT's knowledge source marks headings and list items in its paragraphs.
_KILT_MARKER = re.compile(r"^(?:Section::::|BULLET::::(?:- )?)")
_WRONG_TYPE = "wrong type"


def choose_json_fields(framed: Iterable[tuple[int, bytes | None]], name: str, config: CorpusConfig) -> Fields:
    """Return the fields of the first record or, if errors are skipped, of the first record that can be used.

    Args:
        framed: line number and bytes of each record; None for a record that is too long.
        name: name of the file in messages.
        config: configuration of the corpus.

    Raises:
        CorpusError: if there is no field for the id or the text, and errors are not skipped.
    """
    for record, place in islice(_parsed(framed, name, config), _LOOKED_AT if config.on_error == "skip" else 1):
        try:
            return choose_fields(tuple(record), config, place)
        except CorpusError:
            if config.on_error == "fail":
                raise
    return Fields(config.id_field or "id", config.text_field or "text", config.title_field)


def _parsed(
    framed: Iterable[tuple[int, bytes | None]], name: str, config: CorpusConfig
) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        for line, raw in framed:
            place = f"{name}, line {line}"
            try:
                if raw is None:
                    raise too_long(place)
                yield _parse(raw, place, name, line), place
            except RecordError:
                if config.on_error == "fail":
                    raise
    except UnreadableError:
        raise
    except CorpusError:
        # The damage is found again, and reported, when the file is scanned.
        if config.on_error == "fail":
            raise


def document_of(raw: bytes, source: TextSource, place: str, line_place: str, line: int | None) -> Document:
    """Return the document that a JSON object holds.

    Args:
        raw: bytes of the object.
        source: source that it is read from.
        place: place of the record for messages.
        line_place: place of the line that it begins in, for messages about its syntax.
        line: number of that line, if it is known.

    Raises:
        RecordError: if the object is not valid. The error carries the id if that can be used.
    """
    fields = source.fields
    record = _parse(raw, line_place, source.name, line)
    doc_id = check_doc_id(_field(record, fields.id, place), place, max_id_bytes(source.passage_words))
    try:
        text, title = _text(record, fields, place), _title(record, fields, place)
    except RecordError as error:
        error.doc_id = doc_id
        raise
    used = (fields.id, fields.text, fields.title or "title")
    return Document(doc_id, text, title, {key: value for key, value in record.items() if key not in used})


def _parse(raw: bytes, place: str, name: str, line: int | None) -> dict[str, Any]:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        decode_line(raw, place)
        at = place if line is None else f"{name}, line {line + error.lineno - 1}"
        problem = f"broken JSON ({error.msg}). Correct the record or remove it."
        raise RecordError(f"{at}, column {error.colno}", problem, "broken JSON") from None
    if not isinstance(value, dict):
        problem = f"a JSON {_json_type(value)} stands here instead of an object with fields. Write records as objects."
        raise RecordError(place, problem, _WRONG_TYPE)
    return value


def _text(record: Mapping[str, Any], fields: Fields, place: str) -> str:
    """Return the text of a record. KILT's paragraphs are joined by line feeds, without their markers."""
    text = _field(record, fields.text, place)
    if isinstance(text, str):
        return text
    if isinstance(text, list) and all(isinstance(paragraph, str) for paragraph in text):
        return "\n".join(_KILT_MARKER.sub("", paragraph).rstrip() for paragraph in text)
    problem = f"{fields.text!r} must be a string or a list of strings, not {_json_type(text)}."
    raise RecordError(place, f"{problem} Correct the value or remove the record.", _WRONG_TYPE)


def _title(record: Mapping[str, Any], fields: Fields, place: str) -> str | None:
    """Return the title of a record; None if it is missing, null or empty."""
    title = record.get(fields.title or "title")
    if title is not None and not isinstance(title, str):
        problem = (
            f"{fields.title or 'title'!r} must be a string, not {_json_type(title)}. Correct the value or remove it."
        )
        raise RecordError(place, problem, _WRONG_TYPE)
    return title or None


def _field(record: Mapping[str, Any], name: str, place: str) -> Any:
    try:
        return record[name]
    except KeyError:
        problem = f"no field {name!r}; found {listed(record)}. Add the field or remove the record."
        raise RecordError(place, problem, "missing field") from None


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
