"""Files of answers that a later run continues: the lock of their writer, and the settings beside them.

``FILE.settings.json`` beside the file holds all that determines the answers. A run with other settings does not
continue the file.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import orjson
from filelock import FileLock, Timeout

from ...errors import InputError


class WriterLock:
    """The lock of a file that one run at a time may write. It is taken at once; use it in a ``with`` block.

    Args:
        path: the file, which need not exist. Its folder must.

    Raises:
        InputError: if another run holds the lock, or the lock cannot be written.
    """

    def __init__(self, path: Path):
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            with writing(path):
                self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{path}: another run is writing this file. Wait for it, or name another file.") from None

    def release(self) -> None:
        """Give the lock back, and delete its file."""
        # Deleted while it is held: whoever waits for it notices that its file is gone, and tries again.
        with suppress(OSError):
            Path(self._lock.lock_file).unlink()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def settings_path(path: Path) -> Path:
    """Return the path of the settings of a file of answers."""
    return path.with_name(path.name + ".settings.json")


def read_settings(
    path: Path, remedy: str = "Name another file, or begin this one anew with --overwrite."
) -> dict[str, Any]:
    """Return the settings that a file of answers was begun with.

    Args:
        path: file of the answers.
        remedy: sentence that says what to do if the settings cannot be read.

    Raises:
        InputError: if they are missing or damaged.
    """
    beside = settings_path(path)
    try:
        found = orjson.loads(content_of(beside))
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        state = "is damaged" if beside.exists() else "is missing"
        raise InputError(
            f"{path}: the file holds something, but {beside.name}, which says how answers were made, {state}. {remedy}"
        )
    return found


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a file of answers, atomically.

    Raises:
        InputError: if they cannot be written, for example because the disk is full.
    """
    beside = settings_path(path)
    unfinished = beside.with_name(f".{beside.name}.tmp")
    with writing(beside):
        with unfinished.open("wb") as file:
            file.write(orjson.dumps(dict(settings), option=orjson.OPT_INDENT_2))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(beside)


def require_equal(
    path: Path, begun: Mapping[str, Any], settings: Mapping[str, Any], names: Collection[str], remedy: str
) -> None:
    """Check that the settings of some names are those that a file was begun with.

    Args:
        path: file of the answers.
        begun: settings that it was begun with.
        settings: settings of this run.
        names: names of the settings to compare.
        remedy: end of the sentence that begins with "Give the same settings".

    Raises:
        InputError: naming all settings that differ, with both values.
    """
    values = {name: (begun.get(name), settings.get(name)) for name in names}
    different = {name: (before, now) for name, (before, now) in values.items() if before != now}
    if different:
        shown = "; ".join(f"{name} {before!r}, not {now!r}" for name, (before, now) in different.items())
        raise InputError(f"{path}: the file was begun with other settings: {shown}. Give the same settings, {remedy}")


def content_of(path: Path) -> bytes:
    """Return the bytes of a file; none if it does not exist.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read: {error.strerror or error}.") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise each failure to write as an InputError that names the file."""
    try:
        yield
    except OSError as error:
        # A lock that another run holds is no failure to write.
        if isinstance(error, Timeout):
            raise
        raise InputError(
            f"{path}: the file cannot be written: {error.strerror or error}. Correct that and run the same command "
            "again: it continues the file."
        ) from error
