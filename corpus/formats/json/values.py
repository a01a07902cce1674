"""Values of a JSON object: parsed fast, and again with Python's parser where the text of a value matters."""

import json
import re
from collections.abc import Iterable, Mapping
from math import isnan
from typing import Any, Final

import orjson

from ...document import BAD_ID
from ...fields import listed
from ...framing import decode_line
from ...rejected import RecordError
from ..nested import nested_names

MISSING: Final = object()
"""Value of a field that a record lacks."""

# Python converts at most 4,300 digits.
_LONGEST_INTEGER = 4000
_INTEGER = re.compile(r"-?[0-9]+")
_WRONG_TYPE = "wrong type"


class Number(float):
    """A JSON number that a float or an integer cannot tell: NaN, 1e3, 1.50, -0.

    Attributes:
        written: number as the file has it.
    """

    written: str

    def __new__(cls, written: str):
        """Make the number from its text."""
        number = super().__new__(cls, written)
        number.written = written
        return number


def _integer(written: str) -> int | Number:
    return int(written) if len(written) < _LONGEST_INTEGER and written != "-0" else Number(written)


# It reads NaN and halves of surrogate pairs, which Python writes by default, and control characters in strings.
_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=Number, parse_constant=Number, strict=False)


def _leniently(raw: bytes) -> Any:
    return _DECODER.decode(raw.decode("utf-8", errors="surrogateescape"))


class JsonRecord:
    """A parsed JSON object.

    orjson parses it. What orjson refuses may still be read with Python's parser, so that a value that nobody needs
    makes no record unusable. Then the strings that are needed are checked one by one.

    Args:
        raw: bytes of the object.
        place: place of the record for messages.

    Raises:
        ValueError: the error of orjson, if Python's parser cannot read the object either.
        RecordError: if the JSON value is not an object.
    """

    def __init__(self, raw: bytes, place: str):
        self.raw = raw
        self.place = place
        self._is_checked = True
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            try:
                value = _leniently(raw)
            except (ValueError, RecursionError):
                raise error from None
            self._is_checked = False
        if not isinstance(value, dict):
            problem = (
                f"a JSON {json_type(value)} stands here instead of an object with fields. Write records as objects."
            )
            raise RecordError(place, problem, _WRONG_TYPE)
        self.values: dict[str, Any] = value

    def get(self, name: str) -> Any:
        """Return the value of a field, or of one inside of a field, e.g. ``_source.text``; MISSING if there is none.

        A number is an integer or, if that would not tell how it is written, a ``Number``.

        Raises:
            RecordError: if the value is a string, or a list of strings, that holds no text.
        """
        value = self.values.get(name, MISSING)
        if type(value) is str and self._is_checked:
            return value
        if value is MISSING:
            value = value_of(self.values, name)
        if type(value) is float or (type(value) is int and value == 0):
            value = value_of(_leniently(self.raw), name)
        if not self._is_checked:
            for string in value if isinstance(value, list) else (value,):
                self._check_text(string, name)
        return value

    def _check_text(self, value: object, name: str) -> None:
        try:
            if isinstance(value, str):
                value.encode()
        except UnicodeEncodeError as error:
            decode_line(self.raw, self.place)
            half = ascii(error.object[error.start])
            problem = f"{name!r} has half of a surrogate pair, {half}, which is no character. Remove or replace it."
            raise RecordError(self.place, problem, "invalid UTF-8") from None

    def id(self, name: str) -> str:
        """Return the id in a field; an integer becomes its digits.

        Raises:
            RecordError: if there is no such field, or its value is neither a string nor an integer.
        """
        value = self._needed(name)
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, Number) and _INTEGER.fullmatch(value.written):
            return value.written
        found = self._described(value, name)
        problem = f"the id {name!r} must be a string or an integer, not {found}. Write it as a string."
        raise RecordError(self.place, problem, BAD_ID)

    def text(self, name: str) -> str | list[str]:
        """Return the text in a field, or the list of its paragraphs.

        Raises:
            RecordError: if there is no such field, or its value is neither a string nor a list of strings.
        """
        value = self._needed(name)
        if isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value)):
            return value
        problem = f"{name!r} must be a string or a list of strings, not {self._described(value, name)}."
        raise RecordError(self.place, f"{problem} Correct the value or remove the record.", _WRONG_TYPE)

    def title(self, name: str) -> str | None:
        """Return the title in a field; None if it is missing, null, NaN or empty. A number is its text in the file.

        Raises:
            RecordError: if the value is neither a string nor a number.
        """
        value = self.get(name)
        if value is MISSING or value is None or (isinstance(value, Number) and isnan(value)):
            return None
        if isinstance(value, str):
            return value or None
        if isinstance(value, Number) and not value.written.endswith("Infinity"):
            return value.written
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        problem = f"{name!r} must be a string or a number, not {self._described(value, name)}."
        raise RecordError(self.place, f"{problem} Correct the value or remove it.", _WRONG_TYPE)

    def _needed(self, name: str) -> Any:
        value = self.get(name)
        if value is MISSING:
            problem = f"no field {name!r}; found {listed(self.values)}. Add the field or remove the record."
            raise RecordError(self.place, problem, "missing field")
        return value

    def _described(self, value: object, name: str) -> str:
        """Describe a value that is not usable, and the fields inside that may be meant."""
        if isinstance(value, (int, Number)) and not isinstance(value, bool):
            return f"the number {getattr(value, 'written', value)}"
        if isinstance(value, dict) and value:
            inner = [f"{name}.{each}" for each in value]
            return f"an object; perhaps one of its fields is meant: {listed(inner)}"
        return json_type(value)


def value_of(values: Mapping[str, Any], name: str) -> Any:
    """Return the value of a field, or of one inside of a field, e.g. ``_source.text``; MISSING if there is none."""
    if name in values:
        return values[name]
    outer, _, inner = name.partition(".")
    value = values.get(outer) if inner else None
    return value_of(value, inner) if isinstance(value, dict) else MISSING


def names_of(values: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields, then those of the fields inside, e.g. ``_source.text``."""

    def inside(path: str) -> Iterable[str]:
        value = value_of(values, path)
        return value if isinstance(value, dict) else ()

    return nested_names(list(values), inside)


def json_type(value: object) -> str:
    """Return the name that JSON has for the type of a value."""
    names: dict[type, str] = {
        type(None): "null",
        bool: "boolean",
        int: "number",
        float: "number",
        Number: "number",
        str: "string",
        list: "array",
    }
    return names.get(type(value), "object")
