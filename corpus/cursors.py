"""Open files that are kept between readings, so that rising positions read a file once per process.

A compressed file of one stream, or an Arrow stream, can only be read forward. A reader that stops in the middle leaves
its cursor here, and the next reader resumes from it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .rejected import unreadable

# Largest number of open files that are kept in a process, so that it stays far from the usual limit of 1,024.
_MAX_IDLE = 16


class Cursor(Protocol):
    """A place in an open file, from which reading moves forward."""

    @property
    def at_end(self) -> bool:
        """True if the file was read to its end."""
        ...

    def seek(self, position: int) -> None:
        """Move to a position: forward from the current one if that is shorter."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


_Cursor = TypeVar("_Cursor", bound=Cursor)
_idle: OrderedDict[tuple[object, ...], Cursor] = OrderedDict()
_idle_lock = threading.Lock()


@contextmanager
def cursor_at(key: tuple[object, ...], open_cursor: Callable[[], _Cursor], position: int) -> Iterator[_Cursor]:
    """Lend a cursor at ``position``: the idle one under ``key`` if there is one, otherwise a new one.

    Two readers never share a cursor, even if they read the same file.
    """
    with _idle_lock:
        cursor: Any = _idle.pop(key, None)
    cursor = cursor or open_cursor()
    try:
        cursor.seek(position)
        yield cursor
    except BaseException:  # also if a reader stops in the middle: the cursor's place is unknown then
        cursor.close()
        raise
    if cursor.at_end:
        cursor.close()
        return
    with _idle_lock:
        unwanted: list[Cursor] = [_idle.pop(key)] if key in _idle else []
        _idle[key] = cursor
        unwanted += [_idle.popitem(last=False)[1] for _ in range(len(_idle) - _MAX_IDLE)]
    for each in unwanted:
        each.close()


def file_identity(path: str, name: str) -> tuple[object, ...]:
    """Return a key that changes when another file is written to the same path.

    Raises:
        UnreadableError: if there is no such file.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise unreadable(name, error) from None
    return path, status.st_ino, status.st_size, status.st_mtime_ns
