"""Reading payloads straight from Lance's data files, at the speed of the disk.

A data file is immutable. In a page with Lance's encoding "full zip" of uncompressed binary values, one buffer holds the
values one after the other, each as ``[control byte, if the page has nulls][u64 length][bytes]``, and another, the
repetition index, where each begins and the last one ends. That layout is Lance's own affair, so nothing is taken for
granted: pages that are not described in exactly these words are left to Lance, and so is every value that does not turn
out to be a payload record of the document asked for.
"""

import os
import re
import sys
import threading
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from lance.fragment import FragmentMetadata

from ...errors import StoreError
from ..codecs.payload import HEADER_BYTES
from .addresses import data_file_uri, local_folder
from .datasets import open_data_file
from .failures import lance_errors

try:
    import resource
except ImportError:  # not a Unix
    resource = None

# posix_fadvise is not on macOS, pread not on Windows, and Lance's integers are little-endian.
_CAN_ADVISE = hasattr(os, "posix_fadvise")
AVAILABLE = hasattr(os, "pread") and sys.byteorder == "little"

_FILE_VERSION = (2, 2)
_FULL_ZIP = re.compile(
    r"PageLayout\{layout:Some\(FullZipLayout\(FullZipLayout\{bits_rep:0,bits_def:(?P<bits_def>[01]),"
    r"num_items:(?P<rows>\d+),num_visible_items:(?P=rows),"
    r"value_compression:Some\(CompressiveEncoding\{compression:Some\(Variable\(Variable\{"
    r"offsets:Some\(CompressiveEncoding\{compression:Some\(Flat\(Flat\{bits_per_value:64,data:None,\},\),\),\},\),"
    r"values:None,\},\),\),\},\),"
    r"layers:\[(?P<layer>RepdefAllValidItem|RepdefNullableItem),\],"
    r"details:Some\(BitsPerOffset\(64,\),\),\},\),\),\}"
)
_LENGTH_BYTES = 8
Integer = Literal["B", "H", "I", "Q"]
_INTEGERS: dict[int, Integer] = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Page(NamedTuple):
    """Where the payloads of consecutive rows lie in a data file.

    Attributes:
        file: name of the data file, or empty if only Lance can read the page.
        rows: rows in the page.
        data: position of the values in the file.
        data_bytes: their size.
        index: position of the repetition index.
        index_integer: format of its integers, in the letters of struct.
        prefix: bytes before each payload in its value.
    """

    file: str
    rows: int
    data: int = 0
    data_bytes: int = 0
    index: int = 0
    index_integer: Integer = "Q"
    prefix: int = 0


def pages_of(uri: str, table: str, fragment: FragmentMetadata, field_id: int) -> tuple[Page, ...]:
    """Where the values of a binary column lie in a fragment, as far as they can be read directly.

    Args:
        uri: resolved address of the store.
        table: the table of the fragment.
        fragment: its metadata.
        field_id: Lance's number of the column.
    """
    only_lance = (Page("", fragment.physical_rows),)
    holders = [file for file in fragment.files if field_id in file.fields]
    if not AVAILABLE or local_folder(uri) is None or len(holders) != 1 or fragment.overlays:
        return only_lance
    (file,) = holders
    if file.base_id is not None or (file.file_major_version, file.file_minor_version) != _FILE_VERSION:
        return only_lance
    # Damage can have made one list shorter than the other, or a number of it too large.
    column = dict(zip(file.fields, file.column_indices, strict=False)).get(field_id, -1)
    address = data_file_uri(uri, table, file.path)
    try:
        with lance_errors(f"cannot read {address}"):
            columns = open_data_file(address).metadata().columns
    except StoreError:
        return only_lance
    if not 0 <= column < len(columns):
        return only_lance
    pages = [_page(file.path, page) for page in columns[column].pages]
    unknown = [i for i, page in enumerate(pages) if page is None]
    rest = fragment.physical_rows - sum(page.rows for page in pages if page is not None)
    if len(unknown) > 1 or (rest > 0) != bool(unknown):
        return only_lance
    return tuple(Page("", rest) if page is None else page for page in pages)


class DataFile:
    """An open data file; it is closed when nobody holds it any more, so that a reader never loses it to another."""

    __slots__ = ("fd",)

    def __init__(self, path: str):
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self):
        if hasattr(self, "fd"):
            os.close(self.fd)


class DataFiles:
    """The data files of a table in a local folder, of which a limited number is kept open. Threads may share it."""

    def __init__(self, folder: str):
        self._folder = folder
        self._open: dict[str, DataFile] = {}
        self._lock = threading.Lock()
        self._limit = _open_files_limit()

    def get(self, name: str) -> DataFile:
        """The open file of a name.

        Raises:
            OSError: it cannot be opened.
        """
        return self._open.get(name) or self._add(name)

    def _add(self, name: str) -> DataFile:
        with self._lock:
            if name not in self._open:
                while len(self._open) >= self._limit:
                    del self._open[next(iter(self._open))]
                self._open[name] = DataFile(f"{self._folder}/{name}")
            return self._open[name]


class PageReader:
    """Finds values of one page in its file; what it needs of the repetition index is read once and kept."""

    __slots__ = ("_data", "_files", "_index", "_name", "_page", "_prefix")

    def __init__(self, page: Page, files: DataFiles):
        self._page = page
        self._files = files
        self._name = page.file
        self._prefix = page.prefix
        self._data = page.data + page.prefix
        self._index: memoryview | None = None

    def locate(self, row: int) -> tuple[DataFile, int, int] | None:
        """File, position and length of the payload of a row of the page, or None if only Lance can tell.

        Raises:
            OSError: the file cannot be read.
        """
        index = self._read_index() if self._index is None else self._index
        if not index:
            return None
        start = index[row]
        length = index[row + 1] - start - self._prefix
        if length < HEADER_BYTES:  # a null
            return None
        return self._files.get(self._name), self._data + start, length

    def _read_index(self) -> memoryview:
        """The repetition index, or nothing if it is not one: where rows + 1 values begin, ascending, in the page."""
        page = self._page
        if not page.file:
            self._index = memoryview(b"")
            return self._index
        integer = np.dtype(page.index_integer)
        size = (page.rows + 1) * integer.itemsize
        read = _pread(self._files.get(page.file).fd, size, page.index)
        index = memoryview(b"")
        if len(read) == size:
            starts = np.frombuffer(read, integer)
            if starts[-1] <= page.data_bytes and bool((starts[1:] >= starts[:-1]).all()):
                index = memoryview(read).cast(page.index_integer)
        self._index = index
        return index


def read_ranges(ranges: Sequence[tuple[DataFile, int, int]]) -> list[bytes]:
    """Read ranges of files, given as file, position and length; what lies beyond the end of a file is left out.

    The system is told of all ranges first, so that the disk works on them at the same time.

    Raises:
        OSError: a file cannot be read.
    """
    if _CAN_ADVISE and len(ranges) > 1:
        advise, will_need = os.posix_fadvise, os.POSIX_FADV_WILLNEED
        for file, position, length in ranges:
            advise(file.fd, position, length, will_need)
    pread = os.pread
    return [pread(file.fd, length, position) for file, position, length in ranges]


def _page(file: str, page) -> Page | None:
    """What is known of a page of Lance's, or None if it is of another kind."""
    match = _FULL_ZIP.fullmatch("".join(page.encoding.split()))
    if match is None or len(page.buffers) != 2:
        return None
    data, index = page.buffers
    rows, with_nulls = int(match["rows"]), match["bits_def"] == "1"
    width, remainder = divmod(index.size, rows + 1)
    if remainder or width not in _INTEGERS or with_nulls != (match["layer"] == "RepdefNullableItem"):
        return None
    prefix = _LENGTH_BYTES + with_nulls
    return Page(file, rows, data.position, data.size, index.position, _INTEGERS[width], prefix)


def _pread(fd: int, length: int, position: int) -> bytes:
    """Read all of a range: the system may give less than 2 GiB at once."""
    pieces = []
    while length and (piece := os.pread(fd, length, position)):
        pieces.append(piece)
        position, length = position + len(piece), length - len(piece)
    return b"".join(pieces)


def _open_files_limit() -> int:
    """A quarter of what a process may have open, since a store is not alone in it."""
    if resource is None:
        return 64
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1024 if soft == resource.RLIM_INFINITY else max(16, min(1024, soft // 4))
