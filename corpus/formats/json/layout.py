"""Recognise how the records of a JSON file stand in it, and find where an object ends."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Literal

import orjson

from ...fields import ID_FIELDS, TEXT_FIELDS
from ..nested import CONTAINERS

Layout = Literal["lines", "objects", "array", "keyed"]
"""Layout of a JSON file: a record per line; records one after another; an array; or an object of records by id."""

SEPARATOR = b"\x1e"
"""Byte that begins each record of a JSON text sequence (RFC 7464)."""

# Members that are compared to tell an object of records from a record.
_LOOKED_AT = 50
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_BRACE_OR_STRING = re.compile(_STRING + rb'|["{}]', re.DOTALL)
_BRACKET_OR_NAME = re.compile(rb"(" + _STRING + rb')(\s*+:\s*+)?|["{}\[\]]', re.DOTALL)
_HOLDS_OBJECT = re.compile(rb"\{\s*+" + _STRING + rb"\s*+:\s*+\{", re.DOTALL)


def layout_of(head: bytes) -> Layout:
    """Return the layout of a JSON file from its first bytes, of which the first one is not blank."""
    if head.startswith(b"["):
        return "array"
    if head.startswith(SEPARATOR):
        return "objects"
    if _HOLDS_OBJECT.match(head) and _is_keyed(head):
        return "keyed"
    line, newline, _ = head.partition(b"\n")
    line = line.rstrip()
    end = end_of_object(line, 0)
    if end < 0:
        # The first line of an object over several lines ends in its middle. JSON lines close the object in its line.
        return "objects" if newline and line.endswith((b"{", b",", b"[")) else "lines"
    return "objects" if re.fullmatch(rb"\s*(?:,|,?\s*\{.*)", line[end:], re.DOTALL) else "lines"


def end_of_object(buffer: bytes, begin: int) -> int:
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


def _is_keyed(head: bytes) -> bool:
    """Return True if the outermost objects hold records by their ids, and are no records themselves."""
    members = list(islice(_members(head), _LOOKED_AT))
    if any(head[begin : begin + 1] not in (b"{", b"") for _, begin in members):
        return False
    names = [name for name, _ in members]
    if len(set(names)) < len(names):  # the same name around each record is no id
        return False
    if not {*ID_FIELDS}.isdisjoint(names) and not {*TEXT_FIELDS}.isdisjoint(names):  # columns, each as a whole
        return False
    ends = [end_of_object(head, begin) for _, begin in members]
    fields = [
        {name for name, _ in _members(head[begin : end if end > 0 else None])}
        for (_, begin), end in zip(members, ends, strict=True)
    ]
    has_text = bool(fields[0] & {*TEXT_FIELDS})
    if len(members) == 1:
        return has_text and names[0] not in CONTAINERS and not fields[0] & {*ID_FIELDS}
    whole = [each for each, end in zip(fields, ends, strict=True) if end > 0]
    return has_text or (len(whole) > 1 and all(each == whole[0] for each in whole))


def _members(buffer: bytes) -> Iterator[tuple[str, int]]:
    """Yield (name, beginning of the value) of the members of the outermost objects."""
    depth = 0
    for token in _BRACKET_OR_NAME.finditer(buffer):
        match token[0]:
            case b"{" | b"[":
                depth += 1
            case b"}" | b"]":
                depth -= 1
            case b'"':
                return
            case _ if depth == 1 and token[2]:
                try:
                    yield orjson.loads(token[1]), token.end()
                except orjson.JSONDecodeError:
                    return
