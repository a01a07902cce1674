"""Bulk files of Elasticsearch and OpenSearch, e.g. CirrusSearch's dumps: a line with an action, then a document's line.

Format: https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-bulk
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator

import orjson

from ...rejected import RecordError
from .record import RawRecord
from .values import MISSING, JsonRecord

_ACTION = re.compile(rb'\s*\{\s*"(index|create|update|delete)"\s*:\s*\{')
_REASON = "bulk action"

Framed = tuple[int, int, RawRecord | RecordError]
"""Line number, offset, and the record that begins there, or the error of one that cannot be used."""


def is_action(line: bytes) -> bool:
    """Return True if the line holds nothing but the action of a bulk request."""
    return _action_of(line, "") is not None


def bulk_records(found: Iterable[tuple[int, int, bytes | None]], place: Callable[[int, int], str]) -> Iterator[Framed]:
    """Yield the documents of a bulk file with the ids that their actions give. Positions are those of the actions.

    Args:
        found: number, offset and bytes of each line that is not blank; None for one that is too long.
        place: function that returns the place of a line for messages, from its number and offset.
    """
    waiting: tuple[int, int, str, JsonRecord] | None = None
    for number, position, line in found:
        action = None if line is None else _action_of(line, place(number, position))
        if waiting is not None:
            begin_number, begin, name, parameters = waiting
            waiting = None
            if action is None:
                yield begin_number, begin, _document(line, name, parameters)
                continue
            yield begin_number, begin, _without_document(parameters.place)
        if action is None:
            problem = 'a line such as {"index": {"_id": "1"}} should stand before the document. Add it.'
            yield number, position, RecordError(place(number, position), problem, _REASON)
        elif action[0] == "delete":
            yield number, position, _not_a_document("delete", place(number, position))
        else:
            waiting = number, position, *action
    if waiting is not None:
        yield waiting[0], waiting[1], _without_document(waiting[3].place)


def _action_of(line: bytes, place: str) -> tuple[str, JsonRecord] | None:
    match = _ACTION.match(line)
    if match is None:
        return None
    try:
        record = JsonRecord(line, place)
    except orjson.JSONDecodeError:
        return None
    name = match[1].decode()
    return (name, record) if list(record.values) == [name] else None


def _document(line: bytes | None, name: str, action: JsonRecord) -> RawRecord | RecordError:
    if name == "update":
        return _not_a_document(name, action.place)
    field = f"{name}._id"
    try:
        if action.get(field) in (MISSING, None):
            return RawRecord(line)
        return RawRecord(line, json.dumps(action.id(field)).encode())
    except RecordError as error:
        return error


def _not_a_document(name: str, place: str) -> RecordError:
    problem = f"the action {name!r} gives no whole document. Remove it, or leave it out with --on-error skip."
    return RecordError(place, problem, _REASON)


def _without_document(place: str) -> RecordError:
    return RecordError(place, "no document follows the action. Add its line or remove the action.", _REASON)
