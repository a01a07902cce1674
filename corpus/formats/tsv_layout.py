"""The layout of a tab-separated file, recognised from its rows: header, columns, and the meaning of quotes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...configs.corpus import CorpusConfig
from ...errors import CorpusError
from ..fields import PLAIN_COLUMNS, PLAIN_IDS, PLAIN_TEXTS, listed, names_id, names_text, plain_name

# Text of a quoted cell up to a quote that is not doubled.
_INNER = re.compile(r'[^"]*+(?:""[^"]*+)*+')
# A cell that may be a column's name: a few words that begin with a letter.
_NAME = re.compile(r"[^\W\d](?:[^\W\d]|[.()-])*(?: (?:[^\W\d]|[.()-])+){0,2}")
_DIGIT = re.compile(r"\d")


class QuotingError(ValueError):
    """A row whose quotes are not those of a csv writer."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a table.

    Attributes:
        columns: names of the columns; an empty name for a column of row names.
        header: True if the first row is a header.
        quoted: True if the names in the header are quoted, so that cells are too; None if they do not tell.
    """

    columns: tuple[str, ...]
    header: bool
    quoted: bool | None


def recognise_layout(lines: Sequence[str], config: CorpusConfig, place: str) -> Layout:
    """Return the layout of a table.

    Args:
        lines: first lines of the table.
        config: names of columns and fields, and the header, if they are set.
        place: place of the first line for messages.

    Raises:
        CorpusError: if the columns have no names, or the first row may be a header and may be a document.
    """
    first, rows = unquoted(lines[0]), [unquoted(line) for line in lines[1:] if line != lines[0]]
    # A single row may be broken.
    longer = len(rows) > 1 and all(len(row) == len(first) + 1 for row in rows)
    header = _has_header(first, rows, longer, config, place) if config.header is None else config.header
    if not header:
        return Layout(config.columns or _default_columns(first, place), False, None)
    if any("\r" in cell for cell in first):
        raise CorpusError(
            f"{place}: a carriage return stands in the header. If all lines end in one, end them in line feeds,"
            " e.g. with: tr '\\r' '\\n'."
        )
    quoted = True if config.quoting == "auto" and opens_quote(lines[0]) else None
    if config.columns is not None or not longer:
        return Layout(config.columns or tuple(first), True, quoted)
    if all(not row[-1].strip() for row in rows):
        # Some writers end each row in a tab.
        return Layout((*first, ""), True, quoted)
    if names_id(first, config) and not quoted:
        raise CorpusError(
            f"{place}: the rows have one cell more than the header {listed(first)} has names. Set header: true and"
            f" columns, e.g. {listed(('', *first))} if the rows begin with names of their own, as R writes them."
        )
    return Layout(("", *first), True, quoted)


def _default_columns(first: Sequence[str], place: str) -> tuple[str, ...]:
    if len(first) == 2:
        return "id", "text"
    raise CorpusError(
        f"{place}: the table has {len(first)} columns but no header that names an id and a text; found"
        f" {listed(cell[:20] for cell in first[:6])}. Name"
        " them in section corpus of a configuration file (--config), e.g. columns: [id, title, text]."
    )


def _has_header(
    first: Sequence[str], rows: Sequence[Sequence[str]], longer: bool, config: CorpusConfig, place: str
) -> bool:
    if config.columns is not None:
        by_name = config.model_copy(update={"id_field": None, "text_field": None})
        if _plain(first) == _plain(config.columns) or (names_id(first, by_name) and names_text(first, by_name)):
            return True
    elif names_text(first, config) and (names_id(first, config) or longer or not first[0].strip()):
        return True
    if all(_NAME.fullmatch(cell.strip()) and len(cell) <= 40 for cell in first) and (
        any(_is_known(cell) for cell in first) or _differs(first, rows)
    ):
        raise CorpusError(
            f"{place}: the row {listed(first)} looks like a header, but names no known id and text. Set id_field and"
            " text_field to its names; or set header: false if the row is a document."
        )
    return False


def _plain(cells: Sequence[str]) -> list[str]:
    return [plain_name(cell) for cell in cells]


def _is_known(cell: str) -> bool:
    return plain_name(cell) in PLAIN_IDS | PLAIN_TEXTS | PLAIN_COLUMNS


def _differs(first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Return True if all ids but the first have digits, and all texts but the first are more than a word."""
    texts = len(rows) > 1 and " " not in first[-1].strip() and all(" " in row[-1].strip() for row in rows)
    return texts and not _DIGIT.search(first[0]) and all(_DIGIT.search(row[0]) for row in rows)


def opens_quote(line: str) -> bool:
    """Return True if a cell of a line begins with a quote. Only then csv quoting makes a difference."""
    return '"' in line and (line[0] == '"' or '\t"' in line)


def unquoted(line: str) -> list[str]:
    """Return the cells of a line, without quotes around them."""
    try:
        return split_row(line, iter(()))
    except QuotingError:
        return [cell.strip('"') for cell in line.split("\t")]


def split_row(line: str, following: Iterator[str]) -> list[str]:
    """Return the cells of the row that begins with a line, as csv writers quote them.

    Args:
        line: first line of the row, without its line feed.
        following: iterator over the next lines, of which those of the row are taken.

    Raises:
        QuotingError: if a quote is never closed, or text follows the quote that closes a cell.
    """
    cells: list[str] = []
    at = 0
    while True:
        if line.startswith('"', at):
            parts: list[str] = []
            at += 1
            while (end := _end_of_inner(line, at)) == len(line):
                parts += line[at:], "\n"
                further = next(following, None)
                if further is None:
                    raise QuotingError("a quote is never closed")
                line, at = further, 0
            parts.append(line[at:end])
            cells.append("".join(parts).replace('""', '"'))
            at = end + 1
            if line[at:] in ("", "\r"):
                return cells
            if line[at] != "\t":
                raise QuotingError(f"{line[at : at + 20]!r} follows a closing quote")
        else:
            end = line.find("\t", at)
            cells.append(line[at:].removesuffix("\r") if end < 0 else line[at:end])
            if end < 0:
                return cells
            at = end
        at += 1


def _end_of_inner(line: str, at: int) -> int:
    found = _INNER.match(line, at)
    assert found is not None
    return found.end()


class Quoting(NamedTuple):
    """The meaning of a table's quotes.

    Attributes:
        quoted: True if they enclose cells, False if they are text.
        certain: True if the other meaning would make fewer sound rows.
    """

    quoted: bool
    certain: bool


class RowShape(NamedTuple):
    """The shape that makes a line a row of its own.

    Attributes:
        width: number of columns.
        id_index: number of the id's column.
    """

    width: int
    id_index: int

    def fits(self, cells: Sequence[str]) -> bool:
        """Return True if cells are a row with an id."""
        return len(cells) == self.width and bool(cells[self.id_index].strip())

    def may_be_rows(self, lines: Sequence[str]) -> bool:
        """Return True if a quoted row of several lines may be several rows whose quotes are text.

        Its first line and a further one would be rows of their own.
        """
        fitting = (self.fits(line.split("\t")) for line in lines)
        return len(lines) > 1 and next(fitting) and any(fitting)


def recognise_quoting(lines: Sequence[str], shape: RowShape, *, is_cut: bool, is_first: bool, commas: bool) -> Quoting:
    """Return the meaning of quotes, from lines of which the first has a cell that begins with a quote.

    The meaning that makes more lines sound rows is right. If both make as many, quotes enclose cells if a cell is
    quoted because it has to be, or if cells are quoted by a rule of csv writers. Otherwise they are text.

    A quoted row whose lines may be rows of their own shows neither meaning. The quotes of a table with such a row
    enclose cells, so that reading it is an error, unless another cell has a quote inside that no csv writer writes.

    Args:
        lines: lines of the table, without blank ones.
        shape: shape of its rows.
        is_cut: True if the table continues behind the lines.
        is_first: True if no row comes before the lines.
        commas: True if cells before the lines have commas.
    """
    window = _Window(lines)
    wrong, is_ambiguous, unread = 0, False, lines[:0]
    quoted_cells, other_cells = list[str](), list[str]()
    for begin, cells in window.rows():
        row = lines[begin : window.at]
        if cells is None and window.ended and is_cut:
            unread = lines[begin:]
            break
        if cells is None or not shape.fits(cells):
            wrong += len(row) if cells else 1
        elif shape.may_be_rows(row):
            is_ambiguous = True
        elif len(row) == 1:
            for cell in _cells(row[0]):
                (quoted_cells if cell.startswith('"') else other_cells).append(cell)
    fitting = [shape.fits(_cells(line)) for line in lines]
    literally_wrong = fitting[: len(lines) - len(unread)].count(False)
    if wrong != literally_wrong:
        return Quoting(wrong < literally_wrong, True)
    if unread:
        return Quoting(not all(fitting), False)
    had_to = any('"' in cell[1:-1] or "\r" in cell for cell in quoted_cells)
    every = is_first and not other_cells
    # Spreadsheets quote cells with commas in text with tabs too.
    by_comma = len(quoted_cells) > 1 and all("," in cell for cell in quoted_cells)
    by_comma = by_comma and not commas and not any("," in cell for cell in other_cells)
    unclear = is_ambiguous and not any('"' in cell for cell in other_cells)
    return Quoting(not wrong and (had_to or every or by_comma or unclear), False)


def looks_quoted(line: str) -> bool:
    """Return True if a line is a row with quotes that are doubled inside a quoted cell."""
    try:
        split_row(line, iter(()))
    except QuotingError:
        return False
    return any(cell.startswith('"') and '"' in cell[1:-1] for cell in _cells(line))


def _cells(line: str) -> list[str]:
    return line.removesuffix("\r").split("\t")


class _Window(Iterator[str]):
    """Lines that are read as quoted rows.

    Attributes:
        at: number of the next line.
        ended: True if a row continues behind the last line.
    """

    def __init__(self, lines: Sequence[str]):
        self._lines = lines
        self.at = 0
        self.ended = False

    def __next__(self) -> str:
        if self.at == len(self._lines):
            self.ended = True
            raise StopIteration
        self.at += 1
        return self._lines[self.at - 1]

    def rows(self) -> Iterator[tuple[int, list[str] | None]]:
        """Yield the number of each row's first line, and its cells; None for them if its quotes are broken.

        The lines of a broken row are read again as rows of their own, but for the first.
        """
        while self.at < len(self._lines):
            begin = self.at
            try:
                yield begin, split_row(next(self), self)
            except QuotingError:
                yield begin, None
                self.at = begin + 1
