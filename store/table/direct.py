"""Read payloads from local data files without Lance, at the speed of the disk.

Data files never change, so a position that was found once stays right. The layout of the files is internal to Lance, so
every value that is read must turn out to be a payload record of the requested document; Lance reads the row otherwise.
"""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from ..codecs.codec import Bodies
from ..codecs.record import HEADER_BYTES
from .pages import PayloadPage

try:
    import resource
except ImportError:  # Windows
    resource = None

# macOS has no posix_fadvise.
_CAN_ADVISE = hasattr(os, "posix_fadvise")
# Makes a read fail that would have to wait for the disk. Only Linux has it.
_NOWAIT = getattr(os, "RWF_NOWAIT", None)
# Most data files that are kept open: all those of 24 million documents in shards of 4,096 fit.
_MOST_OPEN = 8192


class DataFile:
    """An open data file, closed when the last reference to it is gone, so that no reader loses it while reading."""

    __slots__ = ("fd", "is_used")

    def __init__(self, path: str):
        self.is_used = True
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self):
        if hasattr(self, "fd"):
            os.close(self.fd)


class DataFiles:
    """The data files of a table in a local folder. A limited number of them stays open. Threads may share it.

    The file that was opened first is closed first, unless it was used since it was last looked at.

    Args:
        folder: path of the folder.
        count: number of the files. If the process may not keep as many open, its soft limit is raised.

    Attributes:
        opened: files that are open, by name. Reading it needs no lock.
    """

    def __init__(self, folder: str, count: int):
        self._folder = folder
        self.opened: dict[str, DataFile] = {}
        self._lock = threading.Lock()
        self._limit = _open_files_limit(count)

    def get(self, name: str) -> DataFile:
        """Return the file with a name, and open it if it is not open.

        Raises:
            OSError: the file cannot be opened.
        """
        with self._lock:
            if name not in self.opened:
                while len(self.opened) >= self._limit:
                    oldest = next(iter(self.opened))
                    file = self.opened.pop(oldest)
                    if file.is_used:
                        file.is_used = False
                        self.opened[oldest] = file
                self.opened[name] = DataFile(f"{self._folder}/{name}")
            return self.opened[name]


Late = tuple[DataFile, int, int, tuple[memoryview, memoryview]]
"""A record that is not in the system's cache: file, position, length, and the buffers of its header and body."""


class PageReader:
    """Reader that finds the payloads of one page in its file. It keeps the page's repetition index."""

    __slots__ = ("_data", "_files", "_index", "_name", "_opened", "_page", "_prefix")

    def __init__(self, page: PayloadPage, files: DataFiles):
        self._page = page
        self._files = files
        self._opened = files.opened
        self._name = page.file
        self._prefix = page.prefix
        self._data = page.data + page.prefix
        self._index: memoryview | None = None

    def locate(self, row: int) -> tuple[DataFile, int, int] | None:
        """Return file, position and length of the payload in a row of the page; None if only Lance can read the row.

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
        file = self._opened.get(self._name) or self._files.get(self._name)
        file.is_used = True
        return file, self._data + start, length

    def _read_index(self) -> memoryview:
        """Return the offsets of the page's repetition index; none if the file does not hold a valid one there."""
        page, index = self._page, memoryview(b"")
        if page.file:
            content = _pread(self._files.get(page.file).fd, page.index_bytes, page.index)
            if page.is_index(content):
                index = memoryview(content).cast(page.index_integer)
        # Assigned once and last, because threads share this reader.
        self._index = index
        return index


def read_cached(ranges: Sequence[tuple[DataFile, int, int]]) -> tuple[bytearray, Bodies, list[Late]]:
    """Read payload records from the system's cache, up to the first that is not there; do not wait for the disk.

    Args:
        ranges: file, position and length of each record.

    Returns:
        Headers and bodies of all records, and what ``read_late`` must fill in.
    """
    heads = bytearray(HEADER_BYTES * len(ranges))
    joined = np.empty(sum([each[2] for each in ranges]) - len(heads), np.uint8)
    head_view, body_view, parts = memoryview(heads), joined.data, []
    late: list[Late] = []
    preadv, nowait = os.preadv, _NOWAIT
    head = start = 0
    for file, position, length in ranges:
        end = start + length - HEADER_BYTES
        body = body_view[start:end]
        parts.append(body)
        buffers = head_view[head : head + HEADER_BYTES], body
        try:
            is_read = not late and nowait is not None and preadv(file.fd, buffers, position, nowait) == length
        # Also raised by file systems that do not know the flag. The second attempt tells a broken disk.
        except OSError:
            is_read = False
        # After one record that is not in the cache, the others rarely are.
        if not is_read:
            late.append((file, position, length, buffers))
        head, start = head + HEADER_BYTES, end
    return heads, Bodies(joined, parts), late


def read_late(late: Sequence[Late]) -> None:
    """Read the records that ``read_cached`` left, and wait for the disk.

    All are announced before the first is waited for, so that the disk can work on them at the same time. A record that
    reaches beyond the end of its file is filled with zeros, which fail its checks.

    Raises:
        OSError: a file cannot be read.
    """
    if _CAN_ADVISE and len(late) > 1:
        for file, position, length, _ in late:
            os.posix_fadvise(file.fd, position, length, os.POSIX_FADV_WILLNEED)
    for file, position, length, buffers in late:
        if os.preadv(file.fd, buffers, position) != length:
            # A short read is either the end of the file or a record beyond 2 GiB, which one call cannot read.
            content = _pread(file.fd, length, position).ljust(length, b"\0")
            buffers[0][:], buffers[1][:] = content[:HEADER_BYTES], content[HEADER_BYTES:]


def _pread(fd: int, length: int, position: int) -> bytes:
    """Read a whole range. One call of the system reads at most 2 GiB."""
    pieces = []
    while length and (piece := os.pread(fd, length, position)):
        pieces.append(piece)
        position, length = position + len(piece), length - len(piece)
    return b"".join(pieces)


def _open_files_limit(count: int) -> int:
    """Return the number of data files to keep open: at most half of what the process may open.

    Opening a file for each document that is read would take longer than reading it. The soft limit, often 1,024, is
    therefore raised as far as the files need it and the hard limit allows.

    Args:
        count: number of the data files.
    """
    if resource is None:
        return 64
    wanted = min(count, _MOST_OPEN)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 2 * wanted:
        raised = 2 * wanted if hard == resource.RLIM_INFINITY else min(2 * wanted, hard)
        # macOS refuses more than it has by another limit.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    return _MOST_OPEN if soft == resource.RLIM_INFINITY else max(16, min(_MOST_OPEN, soft // 2))
