"""Make a document of a JSON object: parse it, choose its fields, check its values. All JSON layouts share it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import orjson

from ....configs.corpus import CorpusConfig
from ....errors import CorpusError
from ...document import Document, check_doc_id
from ...fields import ID_FIELDS, TEXT_FIELDS, Fields
from ...framing import decode_line, too_long
from ...rejected import RecordError, UnreadableError
from ...split import max_id_bytes
from ..enterprise import PAGE_FIELDS
from ..nested import choose_nested_fields
from ..text_source import TextSource
from .values import MISSING, JsonRecord, names_of, value_of

KEY = "_id"
"""Field that holds the id of a record whose id stands outside of it."""

# Records among which one with an id and a text is looked for, if the first ones are to be skipped.
_LOOKED_AT = 1000
# KILT's knowledge source marks headings and list items in its paragraphs.
_KILT_MARKER = re.compile(r"^(?:Section::::|BULLET::::(?:- )?)")
# Keys of the first record in an object that pandas writes with its index, which numbers the rows.
_FIRST_INDEX = (b"0", b'"0"')
# MongoDB's exports name the type of an id: {"_id": {"$oid": "66f0…"}}.
_MONGODB_IDS = ("$oid", "$uuid", "$numberInt", "$numberLong", "$numberDecimal")


class RawRecord(NamedTuple):
    """The bytes of a record.

    Attributes:
        raw: JSON object; None if it is too long.
        key: JSON value that is the record's id and stands outside of the object; None if the id is one of its fields.
        column: number of bytes before the object in its line, as far as they are known.
        marks: number of bytes of the byte order marks before the line, which ``column`` does not count.
    """

    raw: bytes | None
    key: bytes | None = None
    column: int = 0
    marks: int = 0


def choose_json_fields(framed: Iterable[tuple[int, RawRecord]], name: str, config: CorpusConfig) -> Fields:
    """Return the fields of the first record or, if errors are skipped, of the first record that can be used.

    Args:
        framed: line number and record of each one.
        name: name of the file in messages.
        config: configuration of the corpus.

    Raises:
        CorpusError: if there is no field for the id or the text, and errors are not skipped.
    """
    for record, key, place in islice(_parsed(framed, name, config), _LOOKED_AT if config.on_error == "skip" else 1):
        try:
            if key in _FIRST_INDEX and config.id_field is None:
                _refuse_index(record, place)
            return _choose(record.values, config, place)
        except CorpusError:
            if config.on_error == "fail":
                raise
    return Fields(config.id_field or "id", config.text_field or "text", config.title_field)


def _choose(record: Mapping[str, Any], config: CorpusConfig, place: str) -> Fields:
    if {"identifier", "name", "article_body"} <= record.keys():
        config = config.model_copy(update={role: getattr(config, role) or PAGE_FIELDS[role] for role in PAGE_FIELDS})
        if value_of(record, config.text_field or "") is MISSING:
            raise CorpusError(
                f"{place}: this is a page of a Wikimedia Enterprise dump without the field {config.text_field!r}. Use a"
                " dump with wikitext, or set text_field."
            )
    names = names_of(record)
    configured = (config.id_field, config.text_field)
    names += [name for name in configured if name and name not in names and value_of(record, name) is not MISSING]
    try:
        fields = choose_nested_fields(names, config, place)
    except CorpusError:
        if config.id_field is None and record.keys().isdisjoint(ID_FIELDS) and (problem := _records_inside(record)):
            raise CorpusError(f"{place}: {problem}") from None
        raise
    doc_id, text = value_of(record, fields.id), value_of(record, fields.text)
    if isinstance(doc_id, dict) and len(doc_id) == 1 and (kind := next(iter(doc_id))) in _MONGODB_IDS:
        return replace(fields, id=f"{fields.id}.{kind}")
    if isinstance(doc_id, (dict, list)) and isinstance(text, (dict, list)):
        raise CorpusError(
            f"{place}: the fields {fields.id!r} and {fields.text!r} hold whole columns. Write one record per line, e.g."
            " with to_json(FILE, orient='records', lines=True) of pandas."
        )
    return fields


def _refuse_index(record: JsonRecord, place: str) -> None:
    """Refuse a record that stands under a number of its row, and has an id of its own.

    Raises:
        CorpusError: if the record has another id inside.
    """
    key, own = record.id(KEY), next((name for name in ID_FIELDS if name != KEY and name in record.values), "")
    doc_id = record.values.get(own)
    if isinstance(doc_id, (str, int)) and str(doc_id) != key:
        raise CorpusError(
            f"{place}: the record stands under {key!r}, and its field {own!r} holds {str(doc_id)[:40]!r}. Set id_field"
            f" to {own!r} if the first is a row's number, and to {KEY!r} if it is the id."
        )


def _records_inside(record: Mapping[str, Any]) -> str | None:
    """Describe the records that an object holds in an array or by their ids; None if it holds none."""
    for name in ("", *names_of(record)):
        value = value_of(record, name) if name else record
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return (
                f"the object holds its records in the array {name!r}. Write them one per line, e.g. with:"
                f" jq -c '.{name}[]' FILE"
            )
        members = value.items() if isinstance(value, dict) else ()
        inner = [(key, each) for key, each in members if isinstance(each, dict)]
        fields = [each.keys() for _, each in inner]
        if len(inner) > 1 and (all(each == fields[0] for each in fields) or {*TEXT_FIELDS}.intersection(*fields)):
            place = f"in {name!r}" if name else "beside other values"
            return (
                f"the object holds records keyed by id {place}, e.g. {inner[0][0]!r}. Write them to a file of their"
                f" own, e.g. with: jq '.{name} | map_values(objects)' FILE"
            )
    return None


def _parsed(
    framed: Iterable[tuple[int, RawRecord]], name: str, config: CorpusConfig
) -> Iterator[tuple[JsonRecord, bytes | None, str]]:
    try:
        for line, record in framed:
            place = f"{name}, line {line}"
            try:
                yield _parse(record, place, name, line), record.key, place
            except RecordError:
                if config.on_error == "fail":
                    raise
    except UnreadableError:
        raise
    except CorpusError:
        # The damage is found again, and reported, when the file is scanned.
        if config.on_error == "fail":
            raise


def document_of(record: RawRecord, source: TextSource, place: str, line_place: str, line: int | None) -> Document:
    """Return the document that a JSON object holds.

    Args:
        record: bytes of the object.
        source: source that it is read from.
        place: place of the record for messages.
        line_place: place of the line that it begins in, for messages about its syntax.
        line: number of that line, if it is known.

    Raises:
        RecordError: if the object is not valid. The error carries the id if that can be used.
    """
    fields = source.fields
    parsed = _parse(record, line_place, source.name, line)
    parsed.place = place
    doc_id = check_doc_id(parsed.id(fields.id), place, max_id_bytes(source.passage_words))
    title_field = fields.title or _title_beside(fields.text, parsed.values)
    try:
        text, title = parsed.text(fields.text), parsed.title(title_field)
    except RecordError as error:
        error.doc_id = doc_id
        raise
    metadata = dict(parsed.values)
    for name in (fields.id, fields.text, title_field):
        if metadata.pop(name, MISSING) is MISSING:
            metadata.pop(name.partition(".")[0], None)
    return Document(doc_id, text if isinstance(text, str) else join_paragraphs(text), title, metadata)


def join_paragraphs(paragraphs: Iterable[str]) -> str:
    """Return KILT's paragraphs, or other texts of one document, joined by line feeds and without KILT's markers."""
    return "\n".join(_KILT_MARKER.sub("", paragraph).rstrip() for paragraph in paragraphs)


def _title_beside(text_field: str, values: Mapping[str, Any]) -> str:
    """Return the path of the title, in the object that the text is in or outside of it."""
    beside = text_field.rpartition(".")[0] + ".title"
    return "title" if value_of(values, beside) is MISSING else beside


def _parse(record: RawRecord, place: str, name: str, line: int | None) -> JsonRecord:
    if record.raw is None:
        raise too_long(place)
    try:
        parsed = JsonRecord(record.raw, place)
        if record.key is not None:
            key = JsonRecord(b'{"%s": %s}' % (KEY.encode(), record.key), place)
            parsed.values[KEY] = key.id(KEY)
    except orjson.JSONDecodeError as error:
        decode_line(record.raw, place)
        at = place if line is None else f"{name}, line {line + error.lineno - 1}"
        problem = f"broken JSON ({error.msg}). Correct the record or remove it."
        column = error.colno + (record.column if error.lineno == 1 else 0)
        raise RecordError(f"{at}, column {column}", problem, "broken JSON") from None
    return parsed
