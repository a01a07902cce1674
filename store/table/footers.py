"""Read where the pages of columns are from the end of a local data file, without Lance.

Lance describes all columns of a file as text in .5 ms; a large store has thousands of files. The layout is that of
Lance's file format 2.2: a footer of 40 bytes, a table of the columns' places, and a message in protobuf for each column
(protos/file2.proto and protos/encodings_v2_1.proto in Lance's repository).
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FILE_VERSION = (2, 2)
"""Version of the file format that is read here."""

_MAGIC = b"LANC"
# Places of the columns' messages, of the table of columns and of the table of buffers; numbers of buffers and columns;
# version and magic.
_FOOTER = struct.Struct("<QQQIIHH4s")
_PLACE = struct.Struct("<QQ")
# Bytes that are read at first: the footer, the table of columns, and in most files the columns' messages.
_END_BYTES = 8192

# Fields of messages: ColumnMetadata, its Page, Encoding with DirectEncoding, and google.protobuf.Any.
_PAGES, _BUFFER_OFFSETS, _BUFFER_SIZES, _LENGTH, _ENCODING, _DIRECT, _DIRECT_BYTES, _ANY_BYTES = 2, 1, 2, 3, 4, 2, 1, 2

# Types of fields on the wire.
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


class Page(NamedTuple):
    """A page of a column.

    Attributes:
        rows: number of its rows.
        buffers: position and size of its buffers in the file.
        layout: message ``PageLayout``, which says how the buffers hold the values.
    """

    rows: int
    buffers: tuple[tuple[int, int], ...]
    layout: bytes


def column_pages(path: Path, column: int | None = None) -> list[Page]:
    """Return the pages of a column of a data file, or of all columns one after the other.

    A file of another version of the format has no pages that are known here.

    Args:
        path: the file.
        column: number of the column; None for all.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged, or has no such column.
    """
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - _END_BYTES)
        file.seek(start)
        end = file.read(size - start)
        if len(end) < _FOOTER.size:
            raise ValueError("it is cut short")
        _, table, _, _, columns, *version, magic = _FOOTER.unpack(end[-_FOOTER.size :])
        if magic != _MAGIC:
            raise ValueError("it does not end like a data file")
        if tuple(version) != FILE_VERSION:
            return []

        def read(position: int, length: int) -> bytes:
            if position + length > size:
                raise ValueError("a part lies beyond its end")
            if position >= start:
                return end[position - start : position - start + length]
            file.seek(position)
            return file.read(length)

        places = list(_PLACE.iter_unpack(read(table, columns * _PLACE.size)))
        if column is not None and not 0 <= column < columns:
            raise ValueError(f"it has no column {column}")
        chosen = places if column is None else [places[column]]
        pages = [page for position, length in chosen for page in _pages(read(position, length))]
    if any(position + length > size for page in pages for position, length in page.buffers):
        raise ValueError("a page reaches beyond its end")
    return pages


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a protobuf message: integers, and the bytes of all other values.

    Raises:
        ValueError: the bytes are no message.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in (_FIXED_32, _FIXED_64):
            size = 4 if kind == _FIXED_32 else 8
        else:
            raise ValueError("a field has an unknown type")
        if at + size > len(message):
            raise ValueError("a field reaches beyond its message")
        yield tag >> 3, message[at : at + size]
        at += size


def varint(value: int) -> bytes:
    """Return the bytes of an integer in a protobuf message."""
    pieces = []
    while value >= 0x80:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*pieces, value])


def _pages(message: bytes) -> Iterator[Page]:
    for number, value in fields(message):
        if number == _PAGES:
            page = dict(fields(_bytes(value)))
            offsets, sizes = (list(_varints(_bytes(page.get(each, b"")))) for each in (_BUFFER_OFFSETS, _BUFFER_SIZES))
            layout = _bytes(page.get(_ENCODING, b""))
            for each in (_DIRECT, _DIRECT_BYTES, _ANY_BYTES):
                layout = _bytes(dict(fields(layout)).get(each, b""))
            rows = page.get(_LENGTH, 0)
            if len(offsets) != len(sizes) or isinstance(rows, bytes):
                raise ValueError("a page is damaged")
            yield Page(rows, tuple(zip(offsets, sizes, strict=True)), layout)


def _varints(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return an integer in a message, and the position after it."""
    value = 0
    for place, byte in enumerate(message[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("an integer does not end")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a field has an unexpected type")
    return value
