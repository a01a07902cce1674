"""The parts of the layout of large values in Lance's data files that this package relies on.

Lance stores a column of large values, such as payloads, in pages with the encoding "full zip". Such a page has two
buffers. One holds the values back to back. The other, the repetition index, holds the offset at which each value begins
and, last, the offset at which the last value ends.

The layout is internal to Lance and may change. Payloads are therefore read without Lance only from pages whose
description is the known one, byte by byte. Each value in them is
``[control byte, if the page has nulls][u64 length][bytes]``.
"""

import os
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from lance.fragment import FragmentMetadata

from .addresses import data_file_uri, local_folder
from .failures import lance_errors
from .footers import FILE_VERSION, Page, column_pages, fields, varint

# Windows has no preadv, and Lance's integers are little-endian.
CAN_READ_DIRECTLY = hasattr(os, "preadv") and sys.byteorder == "little"

Integer = Literal["B", "H", "I", "Q"]
"""Format of an unsigned integer, in the letters of ``struct``."""

_INTEGERS: dict[int, Integer] = {1: "B", 2: "H", 4: "I", 8: "Q"}
_LENGTH_BYTES = 8

# Fields of the messages PageLayout and FullZipLayout.
_FULL_ZIP, _ITEMS = 3, 5
# The whole PageLayout of a page of uncompressed values without nulls, and of one with nulls. Between the pieces are the
# length of what follows and twice the number of rows.
_UNCOMPRESSED = ((b"\x20\x40\x28", b"\x42\x01\x01"), (b"\x10\x01\x20\x40\x28", b"\x42\x01\x03"))
_LENGTHS_OF_64_BITS = bytes.fromhex("3a081206 0a040a02 0840")


class PayloadPage(NamedTuple):
    """The place of the payloads of consecutive rows in a data file.

    Attributes:
        file: name of the data file; empty if only Lance can read the page.
        rows: number of rows in the page.
        data: position of the values in the file.
        data_bytes: size of all values together.
        index: position of the repetition index in the file.
        index_integer: format of the offsets in the index.
        prefix: number of bytes before the payload in each value; 0 if only Lance can read the page.
    """

    file: str
    rows: int
    data: int = 0
    data_bytes: int = 0
    index: int = 0
    index_integer: Integer = "Q"
    prefix: int = 0

    @property
    def index_bytes(self) -> int:
        """Size of the repetition index: one offset more than there are rows."""
        return (self.rows + 1) * np.dtype(self.index_integer).itemsize

    def is_index(self, content: bytes) -> bool:
        """Return True if these bytes can be the page's repetition index: ascending offsets within the values."""
        if len(content) != self.index_bytes:
            return False
        offsets = np.frombuffer(content, np.dtype(self.index_integer).newbyteorder("<"))
        return bool(offsets[-1] <= self.data_bytes and (offsets[1:] >= offsets[:-1]).all())


def payload_pages(uri: str, table: str, fragment: FragmentMetadata, field_id: int) -> tuple[PayloadPage, ...]:
    """Return the pages of a binary column in a fragment, in the order of the rows.

    Pages that only Lance can read have no file name. If there are several of them, the whole fragment is one such page,
    since Lance does not say how many rows each of them has.

    Args:
        uri: resolved address of the store.
        table: name of the table that the fragment belongs to.
        fragment: metadata of the fragment.
        field_id: Lance's number of the column.
    """
    only_lance = (PayloadPage("", fragment.physical_rows),)
    holders = [file for file in fragment.files if field_id in file.fields]
    if not CAN_READ_DIRECTLY or local_folder(uri) is None or len(holders) != 1 or fragment.overlays:
        return only_lance
    (file,) = holders
    if file.base_id is not None or (file.file_major_version, file.file_minor_version) != FILE_VERSION:
        return only_lance
    # In damaged metadata one list can be shorter than the other, or a number in it too large.
    column = dict(zip(file.fields, file.column_indices, strict=False)).get(field_id, -1)
    # Lance makes a class each time that the path is asked for.
    name = str(file.path)
    try:
        described = column_pages(Path(data_file_uri(uri, table, name)), column)
    except (OSError, ValueError):
        return only_lance
    found = [_payload_page(name, page) for page in described]
    pages = [page if page is not None and page.prefix else None for page in found]
    unreadable = pages.count(None)
    rest = fragment.physical_rows - sum(page.rows for page in pages if page is not None)
    if unreadable > 1 or (rest > 0) != bool(unreadable):
        return only_lance
    return tuple(page or PayloadPage("", rest) for page in pages)


def row_index_problem(address: str) -> str | None:
    """Check the offsets by which Lance finds the large values in a local data file.

    Lance believes these offsets: a damaged one makes it allocate as much memory as the offset says, until the process
    runs out of memory. Pages in a layout that is not known here pass the check.

    Returns:
        Description of the problem, to follow the file's name in a message; None if there is none.

    Raises:
        StoreError: the file cannot be opened.
    """
    if local_folder(address) is None:
        return None
    path = Path(address)
    with lance_errors(f"cannot open {address}"):
        described = column_pages(path)
    pages = [_payload_page(address, page) for page in described]
    with path.open("rb") as file:
        for page in pages:
            if page is None:
                continue
            file.seek(page.index)
            if not page.is_index(file.read(page.index_bytes)):
                return "has damaged offsets of values"
    return None


def _payload_page(file: str, page: Page) -> PayloadPage | None:
    """Return the layout of a page; None if the page has no repetition index."""
    prefix = next(
        (_LENGTH_BYTES + has_nulls for has_nulls in (0, 1) if page.layout == uncompressed(page.rows, has_nulls)), 0
    )
    rows = page.rows if prefix else _rows_of_full_zip(page.layout)
    if rows is None or len(page.buffers) != 2:
        return None
    (data, data_bytes), (index, index_bytes) = page.buffers
    width, remainder = divmod(index_bytes, rows + 1)
    if remainder or width not in _INTEGERS:
        return None
    return PayloadPage(file, rows, data, data_bytes, index, _INTEGERS[width], prefix)


def _rows_of_full_zip(layout: bytes) -> int | None:
    """Return the number of rows in a page with a repetition index; None for a page of another layout."""
    try:
        full_zip = dict(fields(layout)).get(_FULL_ZIP)
        rows = dict(fields(full_zip)).get(_ITEMS) if isinstance(full_zip, bytes) else None
    except ValueError:
        return None
    return rows if isinstance(rows, int) else None


def uncompressed(rows: int, has_nulls: int) -> bytes:
    """Return the description of a page of values that can be read without Lance."""
    before, after = _UNCOMPRESSED[has_nulls]
    number = varint(rows)
    described = before + number + b"\x30" + number + _LENGTHS_OF_64_BITS + after
    return bytes([_FULL_ZIP << 3 | 2]) + varint(len(described)) + described
