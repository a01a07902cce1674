"""The records of a question file: recognised as JSON lines, a JSON array, a table, or a question a line."""

import ast
import csv
import io
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from ...corpus.formats.tsv_layout import looks_quoted
from ...errors import QuestionsError
from .lines import TextLines

ID_FIELDS = ("id", "_id", "query_id", "qid", "question_id", "query-id", "questionid")
TEXT_FIELDS = ("question", "query", "text", "input", "title")
ANSWER_FIELDS = ("answers", "answer", "golden_answers", "possible_answers", "output")
DOCUMENT_FIELD = "doc_ids"

_LISTS = {*ANSWER_FIELDS, DOCUMENT_FIELD}
# Fields under which a JSON object holds the list of all questions.
_LIST_FIELDS = ("questions", "data", "Data")
# Delimiters of columns. Spreadsheets write semicolons where a comma stands in decimal numbers.
_DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons"}
# Names of columns have no digits: q1 is an id.
_COLUMN_NAME = re.compile(r"[^\W\d](?:[^\W\d]|[ .-]){0,29}")
# The beginning of a cell that should be a list of strings, perhaps between quotation marks.
_LIST_OF_STRINGS = re.compile(r"""\"?\[\s*["']""")
_RUN_LINE = re.compile(r"\S+\s+Q0\s+\S+\s+\d+\s+\S+(\s+\S+)?\s*")


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
    lines = TextLines(path)
    if lines.format == "json":
        return Records("JSON array", _array(path, lines.text()))
    if lines.format in ("tsv", "text"):
        return _table(path, lines)
    return Records("JSON lines", _json_lines(path, lines))


def _json_lines(path: str | Path, lines: TextLines) -> Iterator[Record]:
    is_first = True
    for number, line in lines:
        where = f"{path}, line {number}"
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise _not_json(where, str(error), is_first) from None
        is_first = False
        if (listed := _listed(value)) is None:
            yield Record(number, where, value)
        else:
            yield from _items(path, listed)


def _array(path: str | Path, text: str) -> Iterator[Record]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _not_json(f"{path}, line {error.lineno}", error.msg, error.lineno == 1) from None
    listed = value if isinstance(value, list) else _listed(value)
    yield from _items(path, [value] if listed is None else listed)


def _not_json(where: str, problem: str, is_first: bool) -> QuestionsError:
    remedy = "Write one JSON object per line, or one array of them."
    if is_first:
        remedy = (
            "A file that begins with a brace or bracket is read as JSON. Write one JSON object per line, or one array "
            "of them. For questions as text, write id<TAB>question below a header with these two names."
        )
    return QuestionsError(f"{where}: not JSON: {problem}. {remedy}")


def _listed(value: Any) -> list[Any] | None:
    """Return the list of all questions that a JSON object holds; None if it is something else, as a question is."""
    if not isinstance(value, dict) or value.keys() & {*TEXT_FIELDS} - {"title"}:
        return None
    return next((value[name] for name in _LIST_FIELDS if isinstance(value.get(name), list)), None)


def _items(path: str | Path, values: list[Any]) -> Iterator[Record]:
    for number, value in enumerate(_flat(values), start=1):
        yield Record(number, f"{path}, item {number}", {"question": value} if isinstance(value, str) else value)


def _flat(values: list[Any]) -> Iterator[Any]:
    """Yield the questions of a list, also of one of SQuAD's articles, whose paragraphs hold the questions."""
    for value in values:
        match value:
            case {"paragraphs": [_, *_] as paragraphs} if all(map(_has_questions, paragraphs)):
                for paragraph in paragraphs:
                    yield from paragraph["qas"]
            case _:
                yield value


def _has_questions(paragraph: Any) -> bool:
    return isinstance(paragraph, dict) and isinstance(paragraph.get("qas"), list)


def _table(path: str | Path, lines: TextLines) -> Records:
    """Return the records of a text file: a table with columns between tabs or commas, or a question per line."""
    numbered = iter(lines)
    number, line = first = next(numbered, (1, ""))
    rest = chain([first] if line else [], numbered)
    if _RUN_LINE.fullmatch(line):
        raise QuestionsError(
            f"{path}, line {number}: this is a line of a TREC run, not a question. Give the run as --run, and the file "
            "of the questions' texts as --questions."
        )
    tab = "\t" in line
    for delimiter, kind in _DELIMITERS.items():
        names = _header(line, delimiter)
        if {*TEXT_FIELDS} & {*names}:
            # The numbers of TREC's topics are ids. In JSON, a number may be anything.
            columns = ["id" if name == "number" and not {*ID_FIELDS} & {*names} else name for name in names]
            where = f"{path}, line"
            cells_of = _tabbed if tab else _cells
            rows = ((n, cells_of(f"{where} {n}", line, delimiter)) for n, line in numbered)
            return Records(f"text with {kind} and a header", _rows(path, rows, columns, _named_cell))
        if {*ID_FIELDS} & {*names}:
            raise QuestionsError(
                f"{path}, line {number}: the header {names} names no column of questions. Name it "
                f"{' or '.join(TEXT_FIELDS)}."
            )
    if not tab:
        return Records("a question per line", (Record(n, f"{path}, line {n}", {"question": line}) for n, line in rest))
    if _as_list(line.split("\t")[-1], f"{path}, line {number}") is not None:
        # DPR writes its files as Python's csv module does: a cell with a quotation mark in it is quoted.
        rows = ((n, _cells(f"{path}, line {n}", line, "\t")) for n, line in rest)
        names = ["id", "question", "answers"][-line.count("\t") - 1 :]
        return Records("text with tabs", _rows(path, rows, names, _cell))
    rows = ((n, _tabbed(f"{path}, line {n}", line, "\t")) for n, line in rest)
    return Records("text with tabs", _rows(path, rows, ["id", "question"], _cell))


def _header(line: str, delimiter: str) -> list[str]:
    """Return the names of columns in a line, in lower case; no names if the line is no header."""
    try:
        cells = _cells("", line, delimiter) if '"' in line else line.split(delimiter)
    except QuestionsError:
        return []
    names = [cell.strip().lower() if delimiter == "\t" else cell.lower() for cell in cells]
    # pandas writes an index without a name before the columns.
    is_header = len(names) > 1 and all(map(_COLUMN_NAME.fullmatch, names[not names[0] :]))
    return names if is_header else []


def _tabbed(where: str, line: str, delimiter: str) -> list[str]:
    """Return the cells of a line between tabs, where quotation marks are text unless one is doubled inside a cell."""
    return _cells(where, line, delimiter) if looks_quoted(line) else line.split(delimiter)


def _cells(where: str, line: str, delimiter: str) -> list[str]:
    """Return the cells of a line that Python's csv module, or a spreadsheet, has written."""
    # The limit is the process's, and cells are as long as their line at most.
    csv.field_size_limit(max(csv.field_size_limit(), len(line)))
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise QuestionsError(
            f"{where}: the quotation marks do not enclose whole cells of one line ({error}). "
            f"Write a quotation mark in a cell twice and the cell between quotation marks; or JSON lines."
        ) from None


def _rows(
    path: str | Path,
    rows: Iterable[tuple[int, list[str]]],
    columns: list[str],
    value_of: Callable[[str, str], list[Any] | str],
) -> Iterator[Record]:
    for number, cells in rows:
        where = f"{path}, line {number}"
        if len(cells) != len(columns):
            fields = "1 field" if len(cells) == 1 else f"{len(cells)} fields"
            raise QuestionsError(
                f"{where}: the line has {fields}, not {len(columns)} ({', '.join(columns)}). Write id and question "
                "between tabs; question and a list of answers; or a header with the names of the columns."
            )
        values: dict[str, Any] = dict(zip(columns, cells, strict=True))
        for name in _LISTS & values.keys():
            values[name] = value_of(values[name], where)
        yield Record(number, where, values)


def _cell(cell: str, where: str) -> list[Any] | str:
    return cell if (listed := _as_list(cell, where)) is None else listed


def _named_cell(cell: str, where: str) -> list[Any] | str:
    """Return a cell of a column with a name: a list as JSON or Python writes it, or text, as in brackets [sic] is."""
    try:
        return _cell(cell, where)
    except QuestionsError:
        if _LIST_OF_STRINGS.match(cell.strip()):
            raise
        return cell


def json_list(text: str) -> list[Any] | None:
    """Return the list that a text holds as JSON; None for another text."""
    with suppress(orjson.JSONDecodeError):
        found = orjson.loads(text) if text.strip().startswith("[") else None
        return found if isinstance(found, list) else None
    return None


def _as_list(cell: str, where: str) -> list[Any] | None:
    """Return the list that a cell holds, as JSON or as Python writes a list of strings; None for another text.

    Raises:
        QuestionsError: if the cell is in brackets and holds no such list.
    """
    cell = cell.strip()
    if cell.startswith('"[') and cell.endswith(']"'):
        (cell,) = _cells(where, cell, "\t")
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    if (listed := json_list(cell)) is not None:
        return listed
    with suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        # It reads literals only, and runs nothing.
        found = ast.literal_eval(cell)
        # Python joins strings without a comma between them, as NumPy writes arrays. encode refuses lone surrogates.
        strings = sum(token.type == tokenize.STRING for token in tokenize.generate_tokens(io.StringIO(cell).readline))
        if isinstance(found, list) and len(found) == strings and "".join(found).encode() is not None:
            return found
    raise QuestionsError(
        f"{where}: {cell[:80]!r} is in brackets, but is no list. Write a list of strings as JSON does."
    )
