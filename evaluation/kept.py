"""Finished batches of an evaluation, kept in a file from which the same evaluation continues after a stop."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .results import EvaluatedAnswer


@dataclass(frozen=True)
class Answers:
    """Answers to a batch of questions under one condition.

    Attributes:
        answers: the answers, in the order of the batch.
        sizes: size of each document under the condition in bytes, by id.
    """

    answers: Sequence[EvaluatedAnswer]
    sizes: Mapping[str, int]


class KeptBatches:
    """Batches that are finished, by the number of their first question.

    The first line of the file holds the settings, each further line a batch. A line that is torn or holds no
    batch is dropped, with all that follow it.

    Args:
        path: the file, which is made by the first batch; None to keep nothing.
        settings: JSON values that determine the answers.

    Raises:
        InputError: if the file was begun with other settings, is none of an evaluation, or cannot be read.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]):
        self._path = path
        self._settings = dict(settings)
        self._batches: dict[int, list[Answers]] = {}
        self._size = 0
        if path is not None and path.exists():
            self._read(path)

    def get(self, first: int) -> list[Answers] | None:
        """Return the answers of a batch under each condition; None if it is not finished."""
        return self._batches.get(first)

    def keep(self, first: int, batch: Sequence[Answers]) -> None:
        """Write a batch.

        Raises:
            InputError: if it cannot be written, for example because the disk is full.
        """
        if self._path is None:
            return
        lines: list[dict[str, Any]] = [] if self._size else [{"settings": self._settings}]
        lines.append({"first": first, "batch": [asdict(each) for each in batch]})
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        try:
            with self._path.open("r+b" if self._size else "wb") as file:
                file.truncate(self._size)
                file.seek(self._size)
                file.write(content)
        except OSError as error:
            raise InputError(f"{self._path}: the file cannot be written: {error.strerror or error}.") from error
        self._size += len(content)

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: the file cannot be read: {error.strerror or error}.") from error
        for line in content.splitlines(keepends=True):
            value = None
            with suppress(ValueError):
                value = json.loads(line) if line.endswith(b"\n") else None
            if not isinstance(value, dict):
                break
            if not self._size:
                self._require_same_settings(path, value)
            else:
                try:
                    self._batches[value["first"]] = list(map(_answers, value["batch"]))
                except (KeyError, TypeError, ValueError):
                    # Like a torn line: this batch and those behind it are answered again.
                    break
            self._size += len(line)
        if content and not self._size:
            self._require_same_settings(path, {})

    def _require_same_settings(self, path: Path, value: Mapping[str, Any]) -> None:
        begun = value.get("settings")
        if not isinstance(begun, dict):
            raise InputError(f"{path}: the file holds something else than an evaluation. Name another file of answers.")
        names = [name for name in {**begun, **self._settings} if begun.get(name) != self._settings.get(name)]
        if names:
            shown = "; ".join(f"{name} {begun.get(name)!r}, not {self._settings.get(name)!r}" for name in names)
            raise InputError(
                f"{path}: the evaluation was begun with other settings: {shown}. Give the same settings, or delete "
                "this file to begin anew."
            )


def _answers(kept: Mapping[str, Any]) -> Answers:
    answers = [EvaluatedAnswer(**answer | {"references": tuple(answer["references"])}) for answer in kept["answers"]]
    return Answers(answers, kept["sizes"])
