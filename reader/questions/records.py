"""The records of a question file: recognised as JSON lines, a JSON array, text with tabs, or a question a line."""

import ast
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ...errors import QuestionsError
from .lines import lines_of, read_text

ID_FIELDS = ("id", "_id", "query_id", "qid", "question_id")
TEXT_FIELDS = ("question", "query", "text", "input", "title")
ANSWER_FIELDS = ("answers", "answer", "golden_answers", "possible_answers", "output")
DOCUMENT_FIELD = "doc_ids"

_COLUMNS = {*ID_FIELDS, *TEXT_FIELDS, *ANSWER_FIELDS, DOCUMENT_FIELD}
_LISTS = {*ANSWER_FIELDS, DOCUMENT_FIELD}
# Fields under which a JSON object holds the list of all questions.
_LIST_FIELDS = ("questions", "data", "Data")


@dataclass(frozen=True)
class Record:
    """A question as the file has it.

    Attributes:
        number: number of its line, or of its place in a JSON array, from 1.
        where: file and line, for messages.
        values: its fields; of another type if the file is wrong there.
    """

    number: int
    where: str
    values: Any


@dataclass(frozen=True)
class Records:
    """The records of a file.

    Attributes:
        kind: kind of the file, for a person.
        items: the records, read as they are iterated over.
    """

    kind: str
    items: Iterator[Record]


def read_records(path: str | Path) -> Records:
    """Recognise a question file and return its records.

    Raises:
        QuestionsError: if the file cannot be read; while iterating, naming the line that is not as the file's kind
            demands.
    """
    format_, text = read_text(path)
    match format_:
        case "json":
            return Records("JSON array", _array(path, text))
        case "tsv":
            return _table(path, text)
        case "text":
            lines = (Record(n, f"{path}, line {n}", {"question": line}) for n, line in lines_of(text))
            return Records("a question per line", lines)
        case _:
            return Records("JSON lines", _json_lines(path, text))


def _json_lines(path: str | Path, text: str) -> Iterator[Record]:
    for number, line in lines_of(text):
        where = f"{path}, line {number}"
        try:
            yield Record(number, where, orjson.loads(line))
        except orjson.JSONDecodeError as error:
            raise QuestionsError(f"{where}: not JSON: {error}. Write one JSON object per line.") from None


def _array(path: str | Path, text: str) -> Iterator[Record]:
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise QuestionsError(
            f"{path}, line {error.lineno}: not JSON: {error.msg}. Write one JSON object per line, or one array of them."
        ) from None
    if isinstance(values, dict):
        values = next((values[name] for name in _LIST_FIELDS if isinstance(values.get(name), list)), [values])
    for number, value in enumerate(values, start=1):
        yield Record(number, f"{path}, item {number}", value)


def _table(path: str | Path, text: str) -> Records:
    rows = [(number, line.split("\t")) for number, line in lines_of(text)]
    first = [cell.strip().lower() for cell in rows[0][1]]
    if set(first) <= _COLUMNS and set(first) & set(TEXT_FIELDS):
        return Records("text with tabs and a header", _rows(path, rows[1:], first))
    if len(first) > 1 and _as_list(rows[0][1][-1]) is not None:
        # DPR writes its files as Python's csv module does: a cell with a quotation mark in it is quoted.
        rows = [(number, next(csv.reader(["\t".join(cells)], delimiter="\t"))) for number, cells in rows]
        return Records("text with tabs", _rows(path, rows, ["id", "question", "answers"][-len(first) :]))
    return Records("text with tabs", _rows(path, rows, ["id", "question"]))


def _rows(path: str | Path, rows: list[tuple[int, list[str]]], columns: list[str]) -> Iterator[Record]:
    for number, cells in rows:
        where = f"{path}, line {number}"
        if len(cells) != len(columns):
            raise QuestionsError(
                f"{where}: the line has {len(cells)} fields between tabs, not {len(columns)} ({', '.join(columns)}). "
                "Write id and question; question and a list of answers; or a header with the names of the columns."
            )
        values: dict[str, Any] = dict(zip(columns, cells, strict=True))
        for name in _LISTS & values.keys():
            values[name] = cell if (cell := _as_list(values[name])) is not None else values[name]
        yield Record(number, where, values)


def _as_list(cell: str) -> list[Any] | None:
    """Return the list that a cell holds, as JSON or as Python writes it; None if it holds something else."""
    cell = cell.strip()
    if cell.startswith('"['):
        cell = next(csv.reader([cell]))[0]
    if not cell.startswith("["):
        return None
    try:
        # It reads literals only, and runs nothing.
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, list) else None
