"""Files of answered questions: one JSON line per question, in their order, which a later run can continue.

The file is always a beginning of the whole result. ``FILE.settings.json`` beside it holds all that determines the
answers; a run with other settings does not continue the file. ``FILE.part`` holds answers that wait for those of
earlier questions, since similar questions are answered together.
"""

import codecs
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO, Self

import orjson
from pydantic import TypeAdapter, ValidationError

from ...errors import InputError, QuestionsError
from ...places import input_path
from .answered import AnsweredQuestion
from .continued import WriterLock, content_of, read_settings, require_equal, write_settings, writing

# Seconds after which written lines are forced to the disk: a power failure loses no more.
_SYNC_SECONDS = 5.0
# Settings for a person, which may differ: ``store_created_at`` identifies a moved store, and ``questions`` their file.
_NOT_COMPARED = frozenset({"store", "questions_file"})
_SHOWN = 100  # Characters of a question that an error shows.
_REMEDY = "Restore the questions, name another file of answers (--out), or begin this one anew with --overwrite."
# Beginning of every line, by which a torn first line is recognised.
_BEGINNING = b'{"id":'
_LINE = TypeAdapter(AnsweredQuestion)
_FIELDS = frozenset(field.name for field in fields(AnsweredQuestion))


class AnswersFile:
    """A file of answers, open to be begun or continued. Use it in a ``with`` block.

    Nothing in the file changes before the first answer is written.

    Args:
        path: the file. If it holds answers, they are kept.
        settings: JSON values that determine the answers.
        question_ids: ids of the questions, in order.
        texts: texts of the questions by id, to name the first question that changed.
        overwrite: True to drop the answers that the file holds.

    Attributes:
        before: the answers that the file held.
        known: answers to later questions that an interrupted run has given, by id.

    Raises:
        InputError: if the file was begun with other settings, holds something else, is in use by another run, or
            cannot be written.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        question_ids: Sequence[str],
        *,
        texts: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ):
        require_place(path)
        for each in (path, part_path(path)):
            _require_answers(each, content_of(each))
        self._path = path
        self._settings = settings
        self._texts = texts or {}
        self._overwrite = overwrite
        self._is_changed = False
        self._synced = time.monotonic()
        self._lock = WriterLock(path)
        try:
            self._open(question_ids)
        except BaseException:
            self._lock.release()
            raise

    def keep(self, answers: Sequence[AnsweredQuestion]) -> None:
        """Write answers beside the file, so that a stop before ``append`` gets them does not lose them.

        Raises:
            InputError: if they cannot be written, for example because the disk is full.
        """
        self._begin()
        with writing(part_path(self._path)):
            _write(self._part, b"".join(map(_line, answers)))
            self._kept |= {answered.id for answered in answers}
            self._sync()

    def append(self, answered: AnsweredQuestion) -> None:
        """Write the next line.

        Raises:
            InputError: if it cannot be written, for example because the disk is full.
        """
        self._begin()
        with writing(self._path):
            _write(self._file, _line(answered))
            self._sync()
            self._kept.discard(answered.id)
            if not self._kept and os.fstat(self._part.fileno()).st_size:
                os.fsync(self._file.fileno())
                self._part.truncate(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            self._part.close()
            if not self._kept and (self._is_changed or not self._overwrite):
                part_path(self._path).unlink(missing_ok=True)
            self._lock.release()
            # After an error, that error says more.
            if kind is None:
                with writing(self._path):
                    os.fsync(self._file.fileno())

    def _open(self, question_ids: Sequence[str]) -> None:
        """Read what the file holds, check that it may be continued or overwritten, and open it."""
        part = part_path(self._path)
        held, beyond = content_of(self._path), content_of(part)
        # Without its file, the part belongs to one that was deleted.
        if self._overwrite or not self._path.exists():
            held = beyond = b""
        self.before = _parse_all(held, self._path)
        _require_order(self._path, self.before, question_ids, _file_of(self._settings))
        self.known, self._part_size = _parse_part(beyond, question_ids[len(self.before) :])
        self._size = held.rfind(b"\n") + 1
        self._kept = set(self.known)
        if held or beyond:
            self._require_same_settings()
        with writing(self._path):
            # Without buffers, which would be written again when the files are closed after an error.
            self._file: BinaryIO = self._path.open("ab", buffering=0)
            self._part: BinaryIO = part.open("ab", buffering=0)

    def _begin(self) -> None:
        """Before the first change, drop what is not kept, and record the settings of a new file."""
        if self._is_changed:
            return
        with writing(self._path):
            self._part.truncate(self._part_size)
            self._file.truncate(self._size)
        if not self._size and not self._part_size:
            write_settings(self._path, self._settings)
        self._is_changed = True

    def _sync(self) -> None:
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._part.fileno())
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def _require_same_settings(self) -> None:
        begun = read_settings(self._path)
        names = [
            name
            for name in {**begun, **self._settings}
            if name not in _NOT_COMPARED and begun.get(name) != self._settings.get(name)
        ]
        # The documents of questions count as theirs only if the answers come from them.
        if "questions" in names and "documents_from" not in names:
            is_other = begun.get("questions_file") not in (None, self._settings.get("questions_file"))
            raise InputError(
                f"{self._path}: the questions in {_file_of(self._settings)} are not those that this file was begun "
                f"with{f' (those in {_file_of(begun)})' * is_other}: {self._changed_question()}. {_REMEDY}"
            )
        compared = [name for name in names if name != "questions"]
        require_equal(
            self._path, begun, self._settings, compared, "name another file, or begin this one anew with --overwrite."
        )

    def _changed_question(self) -> str:
        for each in (*self.before, *self.known.values()):
            if (text := self._texts.get(each.id, each.question)) != each.question:
                return f"question {each.id!r} was {each.question[:_SHOWN]!r}, and is {text[:_SHOWN]!r}"
        return "the answered ones are the same, but later ones, or the documents that questions name, have changed"


def _file_of(settings: Mapping[str, Any]) -> str:
    return str(settings.get("questions_file", "the file of questions"))


def part_path(path: Path) -> Path:
    """Return the path of the answers that wait for those of earlier questions."""
    return path.with_name(path.name + ".part")


def require_place(path: Path) -> None:
    """Check that a file of answers can stand in a place.

    Raises:
        InputError: if there is no such folder, or something else than a file stands there.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}. Create it, or name another file.")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: this is not a regular file. Name another one.")


def is_begun(path: Path) -> bool:
    """Return True if a file holds answers, or some wait beside it."""
    sizes = [each.stat().st_size for each in (path, part_path(path)) if each.is_file()]
    return path.is_file() and any(sizes)


def read_answers(path: str | Path) -> list[AnsweredQuestion]:
    """Read a file of answers, also one that another program has written: of a line, only ``id`` and ``answer`` count.

    ``answer`` is null for a question without an answer. Other fields may be missing, or be none of ours. An incomplete
    last line, of a run that was interrupted, is left out.

    Raises:
        QuestionsError: naming the file and the line, if it is no file of answers.
    """
    try:
        content = input_path(path, QuestionsError).read_bytes()
    except OSError as error:
        raise QuestionsError(f"{path}: the file cannot be read: {error.strerror or error}.") from error
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    found = {}
    for number, line in enumerate(lines, start=1):
        # Behind the last line break there is nothing, or what an interrupted run has written of its next line.
        answered = _read(line, f"{path}, line {number}") if line.strip() else None
        if answered is None and line.strip() and number < len(lines):
            raise QuestionsError(
                f"{path}, line {number}: this is no answer. A line is a JSON object with id, a string or an integer, "
                "and answer, a string or null, as `pisco-index answer` writes it. Correct the line or the file's name."
            )
        if answered is not None and answered.id in found:
            raise QuestionsError(f"{path}, line {number}: question {answered.id!r} has an answer in an earlier line.")
        if answered is not None:
            found[answered.id] = answered
    return list(found.values())


def _read(line: bytes, where: str) -> AnsweredQuestion | None:
    """Return the answer in a line of any program; None if there is none.

    Raises:
        QuestionsError: if it has all fields of ours, and one of them is wrong.
    """
    with suppress(orjson.JSONDecodeError):
        match orjson.loads(line):
            case dict(value) if value.keys() >= _FIELDS:
                return _parse(line, where)
            case {"id": str() | int() as name, "answer": str() | None as answer, **others}:
                listed = others.get("documents")
                documents = (
                    tuple(listed) if isinstance(listed, list) and all(isinstance(d, str) for d in listed) else ()
                )
                return AnsweredQuestion(str(name), "", answer, None, documents, (), (), 0, 0, 0, 0.0)
    return None


def _parse_all(content: bytes, path: str | Path) -> list[AnsweredQuestion]:
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _parse(line: bytes, where: str) -> AnsweredQuestion:
    try:
        return _LINE.validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        raise QuestionsError(
            f"{where}: this is no answer that `pisco-index answer` has written: {problem}. Name another file."
        ) from None


def _parse_part(content: bytes, question_ids: Sequence[str]) -> tuple[dict[str, AnsweredQuestion], int]:
    """Return the answers to some questions by id, and the size of the lines before the first that is torn."""
    found: dict[str, AnsweredQuestion] = {}
    size = 0
    for line in content.splitlines(keepends=True):
        try:
            answered = _parse(line, "") if line.endswith(b"\n") else None
        except QuestionsError:
            answered = None
        if answered is None:
            break
        found[answered.id] = answered
        size += len(line)
    expected = set(question_ids)
    return {name: answered for name, answered in found.items() if name in expected}, size


def _require_answers(path: Path, content: bytes) -> None:
    """Check the first line of a file that will be changed."""
    line, end, _ = content.partition(b"\n")
    if end:
        _parse(line, f"{path}, line 1")
    elif not _BEGINNING.startswith(line[: len(_BEGINNING)]):
        raise InputError(f"{path}: the file holds something else than answers. Name another file.")


def _require_order(path: Path, answers: Sequence[AnsweredQuestion], ids: Sequence[str], questions_file: str) -> None:
    for number, answered in enumerate(answers, start=1):
        if number > len(ids) or answered.id != ids[number - 1]:
            expected = repr(ids[number - 1]) if number <= len(ids) else "no further question"
            raise InputError(
                f"{path}, line {number}: the answer to question {answered.id!r} stands where {expected} belongs: "
                f"{questions_file} has changed since this file was begun, or is another one. {_REMEDY}"
            )


def _line(answered: AnsweredQuestion) -> bytes:
    return orjson.dumps(asdict(answered), option=orjson.OPT_APPEND_NEWLINE)


def _write(file: BinaryIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
