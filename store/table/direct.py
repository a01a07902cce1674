"""Read payloads from local data files without Lance, at the speed of the disk.

Data files never change, so a position that was found once stays right. The layout of the files is internal to Lance, so
every value that is read must turn out to be a payload record of the requested document; Lance reads the row otherwise.
"""

import os
import threading
from collections.abc import Sequence

from ..codecs.payload import HEADER_BYTES
from .pages import PayloadPage

try:
    import resource
except ImportError:  # Windows
    resource = None

# macOS has no posix_fadvise.
_CAN_ADVISE = hasattr(os, "posix_fadvise")


class DataFile:
    """An open data file, closed when the last reference to it is gone, so that no reader loses it while reading."""

    __slots__ = ("fd",)

    def __init__(self, path: str):
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self):
        if hasattr(self, "fd"):
            os.close(self.fd)


class DataFiles:
    """The data files of a table in a local folder. A limited number of them stays open. Threads may share it."""

    def __init__(self, folder: str):
        self._folder = folder
        self._open: dict[str, DataFile] = {}
        self._lock = threading.Lock()
        self._limit = _open_files_limit()

    def get(self, name: str) -> DataFile:
        """Return the open file with a name.

        Raises:
            OSError: the file cannot be opened.
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
    """Reader that finds the payloads of one page in its file. It keeps the page's repetition index."""

    __slots__ = ("_data", "_files", "_index", "_name", "_page", "_prefix")

    def __init__(self, page: PayloadPage, files: DataFiles):
        self._page = page
        self._files = files
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
        return self._files.get(self._name), self._data + start, length

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


def read_ranges(ranges: Sequence[tuple[DataFile, int, int]]) -> list[bytes]:
    """Read ranges of files, each given as file, position and length. A range is cut off at the end of its file.

    All ranges are announced to the system before the first is read, so that the disk can work on them at the same time.

    Raises:
        OSError: a file cannot be read.
    """
    if _CAN_ADVISE and len(ranges) > 1:
        advise, will_need = os.posix_fadvise, os.POSIX_FADV_WILLNEED
        for file, position, length in ranges:
            advise(file.fd, position, length, will_need)
    pread = os.pread
    return [pread(file.fd, length, position) for file, position, length in ranges]


def _pread(fd: int, length: int, position: int) -> bytes:
    """Read a whole range. One call of the system reads at most 2 GiB."""
    pieces = []
    while length and (piece := os.pread(fd, length, position)):
        pieces.append(piece)
        position, length = position + len(piece), length - len(piece)
    return b"".join(pieces)


def _open_files_limit() -> int:
    """Return how many data files to keep open: a quarter of what the process may open, to leave room for the rest."""
    if resource is None:
        return 64
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1024 if soft == resource.RLIM_INFINITY else max(16, min(1024, soft // 4))
