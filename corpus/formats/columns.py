"""Columns of a table as strings, whatever Arrow type a writer gave them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import CorpusError
from ..fields import listed
from .json.record import join_paragraphs
from .nested import nested_names

Role = Literal["id", "text", "title"]

_UUID_BYTES = 16
_types: Any = pa.types
_STRINGS = (
    _types.is_null,
    _types.is_string,
    _types.is_large_string,
    _types.is_string_view,
    _types.is_binary,
    _types.is_large_binary,
    _types.is_binary_view,
    _types.is_fixed_size_binary,
)
_LISTS = (
    _types.is_list,
    _types.is_large_list,
    _types.is_list_view,
    _types.is_large_list_view,
    _types.is_fixed_size_list,
)
_NAMES = (*_STRINGS, _types.is_integer, _types.is_decimal, _types.is_date)
# Types of the columns that can have each role, and their description.
_ALLOWED: dict[Role, tuple[tuple[Any, ...], str]] = {
    "id": (_NAMES, "strings or integers"),
    "text": ((*_STRINGS, *_LISTS), "strings or lists of strings"),
    "title": ((*_NAMES, _types.is_floating), "strings or numbers"),
}


def column_names(schema: pa.Schema) -> list[str]:
    """Return the names of the columns, then those of the fields inside, e.g. ``_source.text``."""

    def inside(path: str) -> list[str]:
        kind = _type_of(schema, path)
        return [field.name for field in kind] if _types.is_struct(kind) else []

    return nested_names(schema.names, inside)


def column_of(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Return a column, or a field inside of one, which is null where the column is."""
    if name in batch.schema.names:
        return batch.column(name)
    outer, *inner = name.split(".")
    column = batch.column(outer)
    column.validate()
    return pc.call_function("struct_field", [column], pc.StructFieldOptions(inner))


def check_column(schema: pa.Schema, name: str, role: Role, place: str) -> None:
    """Check that a column has a type that can hold an id, a text or a title.

    Raises:
        CorpusError: if it has another type, or several columns have its name.
    """
    if schema.names.count(name) > 1:
        raise CorpusError(
            f"{place}: several columns are named {name!r}. Rename them, or set {role}_field to another one."
        )
    kind = _type_of(schema, name)
    allowed, described = _ALLOWED[role]
    plain = _plain_type(kind)
    is_allowed = any(each(plain) for each in allowed)
    if is_allowed and any(each(plain) for each in _LISTS):
        is_allowed = any(each(_plain_type(plain.value_type)) for each in _STRINGS)
    if not is_allowed:
        inner = [f"{name}.{field.name}" for field in plain] if _types.is_struct(plain) else []
        advice = f"a field inside: {listed(inner)}" if inner else f"another column, or write it as {described}"
        raise CorpusError(
            f"{place}: the {role} column {name!r} holds {kind}, not {described}. Set {role}_field to {advice}."
        )


def strings_of(column: pa.Array, role: Role) -> pa.Array:
    """Return a valid column as ``large_string``.

    Integers, decimals and dates are their usual text, UUIDs and ids of 16 bytes too; lists are joined; NaN is null.

    Raises:
        pyarrow.ArrowInvalid: if a value is no text: invalid UTF-8, an id with a fraction, infinity, a null in a list.
    """
    is_uuid = isinstance(column.type, pa.UuidType)
    column = _plain(column)
    kind = column.type
    if _types.is_decimal(kind):
        # An id is an integer, however many places its column has. A title keeps the places that it is written with.
        column = column.cast(pa.decimal256(76, 0)) if role == "id" or kind.scale < 0 else column
    elif _types.is_floating(kind):
        values = column.to_pylist()
        if any(value is not None and math.isinf(value) for value in values):
            raise pa.ArrowInvalid("infinite number")
        column = column.cast(pa.large_string())
        is_missing = pa.array([value is None or math.isnan(value) for value in values], pa.bool_())
        return pc.call_function("if_else", [is_missing, pa.scalar(None, pa.large_string()), column])
    elif _types.is_fixed_size_binary(kind) and kind.byte_width == _UUID_BYTES:
        if role == "id" or is_uuid:
            return pa.array([_id_of_16(value) for value in column.to_pylist()], pa.large_string())
    elif any(each(kind) for each in _LISTS):
        return pa.array([_joined(value) for value in column.to_pylist()], pa.large_string())
    return column.cast(pa.large_string())


def problem_of(column: pa.Array) -> tuple[str, str]:
    """Return the problem of a value that ``strings_of`` refuses, and the reason that it is counted under."""
    kind = _plain_type(column.type)
    if _types.is_decimal(kind):
        return "has a fraction, so it is no integer. Write it as a string.", "unusable id"
    if _types.is_floating(kind):
        return "is infinite. Write it as a string or null.", "wrong type"
    if any(each(kind) for each in _LISTS):
        return "is a list with a null or with invalid UTF-8. Write a list of strings.", "wrong type"
    return "is not valid UTF-8. Write the file again from clean text.", "invalid UTF-8"


def _type_of(schema: pa.Schema, name: str) -> pa.DataType:
    outer, *inner = [name] if name in schema.names else name.split(".")
    kind = schema.field(schema.names.index(outer)).type
    for each in inner:
        kind = kind.field(each).type
    return kind


def _wrappings(kind: pa.DataType) -> Iterator[pa.DataType]:
    """Yield the types that a column's values have when its wrappings are taken off one by one."""
    while True:
        yield kind
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif _types.is_dictionary(kind) or _types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return


def _plain_type(kind: pa.DataType) -> pa.DataType:
    *_, plain = _wrappings(kind)
    return plain


def _plain(column: pa.Array) -> pa.Array:
    for kind in _wrappings(column.type):
        if isinstance(kind, pa.BaseExtensionType):
            column = column.storage
        elif _types.is_dictionary(kind):
            column = column.dictionary_decode()
        elif _types.is_run_end_encoded(kind):
            column = pc.call_function("run_end_decode", [column])
    return column


def _id_of_16(value: bytes | None) -> str | None:
    """Return 16 bytes as text if they are printable, otherwise as the text of a UUID, whose bytes never are."""
    if value is None:
        return None
    return value.decode() if value.isascii() and value.decode().isprintable() else str(UUID(bytes=value))


def _joined(parts: Sequence[str | bytes | None] | None) -> str | None:
    if parts is None:
        return None
    texts: list[str] = []
    for part in parts:
        if part is None:
            raise pa.ArrowInvalid("null in a list")
        try:
            texts.append(part if isinstance(part, str) else part.decode())
        except UnicodeDecodeError as error:
            raise pa.ArrowInvalid(str(error)) from None
    return join_paragraphs(texts)
