"""Files of answered questions: one JSON line a question, in the order of the questions, written so that a run goes on.

The file is always a beginning of the whole result. ``FILE.settings.json`` beside it holds all that determines the
answers; a run with other settings does not continue the file.
"""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO, Self

import orjson

from ...errors import InputError, QuestionsError
from .engine import AnsweredQuestion

SETTINGS_SUFFIX = ".settings.json"

# Seconds after which written lines are forced to the disk: a power failure loses no more.
_SYNC_SECONDS = 5.0
_NAMES = frozenset(field.name for field in fields(AnsweredQuestion))
_LISTS = ("documents", "scores", "missing")


class AnswersFile:
    """A file of answers, open to be begun or continued. Use it in a ``with`` block.

    Args:
        path: the file. If it holds answers, they are kept.
        settings: JSON values that determine the answers.
        question_ids: ids of the questions, in order.
        overwrite: True to drop the answers that the file holds.

    Attributes:
        before: the answers that the file held.
        cut: size of an incomplete last line that was cut off, in bytes.

    Raises:
        InputError: if the file was begun with other settings, holds something else, is in use by another run, or
            cannot be written.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], question_ids: Sequence[str], *, overwrite: bool = False
    ):
        self._path = path
        with _writing(path):
            # Without a buffer, which would be written again when the file is closed after an error.
            self._file: BinaryIO = path.open("ab", buffering=0)
        try:
            self._lock()
            if overwrite:
                self._file.truncate(0)
            self.before, kept = self._read(question_ids)
            self._settle(settings)
            with _writing(path):
                self.cut = self._size() - kept
                self._file.truncate(kept)
        except BaseException:
            self._file.close()
            raise
        self._synced = time.monotonic()

    def append(self, answered: AnsweredQuestion) -> None:
        """Write the next line.

        Raises:
            InputError: if it cannot be written, for example because the disk is full.
        """
        with _writing(self._path):
            line = memoryview(orjson.dumps(asdict(answered), option=orjson.OPT_APPEND_NEWLINE))
            while line:
                line = line[self._file.write(line) :]
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            # After an error, that error says more.
            if kind is None:
                with _writing(self._path):
                    os.fsync(self._file.fileno())

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self._path}: another run is writing this file. Wait for it, or name another file."
            ) from None

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _read(self, question_ids: Sequence[str]) -> tuple[list[AnsweredQuestion], int]:
        """Return the answers that the file holds, and the length of their lines in bytes."""
        with _reading(self._path):
            content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        answers = []
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            answered = _parse(line, f"{self._path}, line {number}")
            if number > len(question_ids) or answered.id != question_ids[number - 1]:
                expected = repr(question_ids[number - 1]) if number <= len(question_ids) else "no further question"
                raise InputError(
                    f"{self._path}, line {number}: the answer to question {answered.id!r} stands where {expected} "
                    "belongs. Name another file, or begin this one anew with --overwrite."
                )
            answers.append(answered)
        return answers, whole

    def _settle(self, settings: Mapping[str, Any]) -> None:
        """Compare the settings with those that the file was begun with, or record them."""
        begun = read_settings(self._path)
        if not self._size():
            _replace(settings_path(self._path), orjson.dumps(dict(settings), option=orjson.OPT_INDENT_2))
            return
        if begun is None:
            raise InputError(
                f"{self._path}: the file holds something, but {settings_path(self._path).name} is missing, which says "
                "how answers were made. Name another file, or begin this one anew with --overwrite."
            )
        names = [name for name in {**begun, **settings} if begun.get(name) != settings.get(name)]
        if names:
            shown = "; ".join(f"{name} {begun.get(name)!r}, not {settings.get(name)!r}" for name in names)
            raise InputError(
                f"{self._path}: the file was begun with other settings: {shown}. Give the same settings, name another "
                "file, or begin this one anew with --overwrite."
            )


def settings_path(path: Path) -> Path:
    """Return the path of the settings of a file of answers."""
    return path.with_name(path.name + SETTINGS_SUFFIX)


def read_settings(path: Path) -> dict[str, Any] | None:
    """Return the settings that a file of answers was begun with; None if there are none.

    Raises:
        InputError: if they cannot be read.
    """
    beside = settings_path(path)
    if not beside.is_file():
        return None
    with _reading(beside):
        content = beside.read_bytes()
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{beside}: these are no settings of a file of answers. Begin anew with --overwrite.")
    return found


def read_answers(path: str | Path) -> list[AnsweredQuestion]:
    """Read a file of answers. An incomplete last line, of a run that was interrupted, is left out.

    Raises:
        QuestionsError: naming the file and the line, if it is no file of answers.
    """
    with _reading(Path(path)):
        content = Path(path).read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _parse(line: bytes, where: str) -> AnsweredQuestion:
    try:
        values = orjson.loads(line)
        return AnsweredQuestion(**(values | {name: tuple(values[name]) for name in _LISTS}))
    except (orjson.JSONDecodeError, TypeError, KeyError):
        raise QuestionsError(
            f"{where}: this is no answer that `pisco-index answer` has written. Its fields are "
            f"{', '.join(sorted(_NAMES))}. Name another file, or begin this one anew with --overwrite."
        ) from None


def _replace(path: Path, content: bytes) -> None:
    """Replace a file atomically."""
    unfinished = path.with_name(f".{path.name}.tmp")
    with _writing(path):
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: the file cannot be written: {error.strerror or error}. Correct that and run the same command "
            "again: it continues the file."
        ) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise QuestionsError(f"{path}: the file cannot be read: {error.strerror or error}.") from error
