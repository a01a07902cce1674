r"""Tab-separated tables: DPR's ``psgs_w100.tsv`` (header, quoted fields), MS MARCO's ``collection.tsv`` (neither)."""

import csv
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from ...configs.corpus import CorpusConfig
from ...errors import CorpusError
from ..document import Document, RecordError, Refusals, Tolerance, check_doc_id
from ..fields import Fields, choose_fields, listed, looks_like_header
from ..split import max_id_bytes
from ..streams import MAX_RECORD_BYTES, TextFile, decode_line, lines, stream_at, too_long
from .text_source import TextSource

_Line = tuple[int, int, bytes | None]


class TsvSource(TextSource):
    """A tab-separated file; positions are offsets of the lines that rows begin with.

    Attributes:
        columns: names of the columns, from the header or the configuration.
        header: whether the first row holds them.
        quoted: whether quotes enclose fields, as csv writers do, rather than being text.
    """

    format: ClassVar[str] = "tsv"

    def __init__(
        self,
        file: TextFile,
        fields: Fields,
        passage_words: int | None,
        tolerance: Tolerance = Tolerance(),  # noqa: B008
        *,
        columns: Sequence[str],
        header: bool,
        quoted: bool,
    ):
        super().__init__(file, fields, passage_words, tolerance)
        self.columns = tuple(columns)
        self.header = header
        self.quoted = quoted
        title = self.columns.index(fields.title) if fields.title in self.columns else None
        self._indices = self.columns.index(fields.id), self.columns.index(fields.text), title

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Rebuild from ``spec``."""
        return cls(
            TextFile.from_spec(spec["file"]),
            Fields.from_spec(spec["fields"]),
            spec["passage_words"],
            Tolerance.from_spec(spec),
            columns=spec["columns"],
            header=spec["header"],
            quoted=spec["quoted"],
        )

    @property
    def spec(self) -> dict[str, Any]:
        """All that another process needs to open this source: JSON-able."""
        return super().spec | {"columns": list(self.columns), "header": self.header, "quoted": self.quoted}

    @classmethod
    def begin(cls, file: TextFile, first_line: str, config: CorpusConfig) -> Self:
        """Make a source by its first line and the configuration.

        Raises:
            CorpusError: when the columns cannot be told.
        """
        cells = [cell.strip('"') for cell in first_line.split("\t")]
        header = config.columns is None and (
            looks_like_header(cells) or (config.id_field in cells and config.text_field in cells)
        )
        if header:
            columns: Sequence[str] = cells
        elif config.columns is not None:
            columns = config.columns
        elif len(cells) == 2:
            columns = ("id", "text")
        else:
            raise CorpusError(
                f"{file.name}, line 1: {len(cells)} columns and no header that names an id and a text, but"
                f" {listed(cell[:20] for cell in cells[:6])}. Set columns, e.g. [id, text, title]."
            )
        fields = choose_fields(columns, config, f"{file.name}, line 1")
        if config.title_field is not None and config.title_field not in columns:
            raise CorpusError(f"{file.name}, line 1: no column {config.title_field!r}; found {listed(columns)}.")
        quoted = header if config.quoting == "auto" else config.quoting == "csv"
        tolerance = Tolerance(config.on_error)
        return cls(file, fields, config.passage_words, tolerance, columns=columns, header=header, quoted=quoted)

    def _records(self, start: int, stop: int | None, refusals: Refusals) -> Iterator[tuple[int, int, str, Document]]:
        def place(number: int, position: int) -> str:
            return self.place(start, number, position)

        with stream_at(self.file, start) as stream:
            found = lines(stream, stop)
            rows = _Rows(_without_header(found) if self.header and start == 0 else found, self.quoted, place)
            while True:
                try:
                    cells = rows.next()
                    if cells is None:
                        return
                    self._check_width(cells, rows.where)
                except RecordError as error:
                    refusals.record(error, rows.position)
                    rows.go_behind_first_line()
                    continue
                try:
                    document = self._document(cells, rows.where)
                except RecordError as error:
                    refusals.record(error, rows.position)
                    continue
                yield rows.position, rows.number, rows.where, document

    def _check_width(self, cells: Sequence[str], where: str) -> None:
        width = len(self.columns)
        if len(cells) != width:
            what = (
                f"{len(cells)} columns where {width} are expected ({', '.join(self.columns[:20])[:400]})."
                " Correct the row, or set columns or quoting."
            )
            raise RecordError(where, what, "wrong columns")

    def _document(self, cells: Sequence[str], where: str) -> Document:
        id_index, text_index, title_index = self._indices
        doc_id = check_doc_id(cells[id_index], where, max_id_bytes(self.passage_words))
        metadata = {
            name: cell
            for index, (name, cell) in enumerate(zip(self.columns, cells, strict=True))
            if index not in self._indices
        }
        title = cells[title_index] if title_index is not None else None
        return Document(doc_id, cells[text_index], title or None, metadata)


def _without_header(found: Iterator[_Line]) -> Iterator[_Line]:
    is_behind = False
    for line in found:
        if is_behind:
            yield line
        is_behind = is_behind or line[2] is None or bool(line[2].strip())


class _Rows:
    """Rows of a table, each of one line, or where fields are quoted of several.

    As an iterator it feeds lines to the csv reader and remembers those of the row at hand.
    """

    def __init__(self, found: Iterator[_Line], quoted: bool, place: Callable[[int, int], str]):
        self._found = found
        self._place = place
        self._again: deque[_Line] = deque()
        self._row: list[_Line] = []
        self._row_bytes = 0
        # The csv module's limit is one for the whole process; raised, it harms nobody, and articles may be long.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
        self._reader = csv.reader(self, delimiter="\t", strict=True) if quoted else None

    @property
    def number(self) -> int:
        """Number of the line that the row at hand begins with."""
        return self._row[0][0]

    @property
    def position(self) -> int:
        """Offset of that line."""
        return self._row[0][1]

    @property
    def where(self) -> str:
        """Its place, for messages."""
        return self._place(self.number, self.position)

    def next(self) -> list[str] | None:
        """Read the next row that is not blank; None at the end.

        Raises:
            RecordError: it is no UTF-8 or too long, or its quoting is broken.
        """
        while True:
            self._row, self._row_bytes = [], 0
            if self._reader is None:
                line = next(self, None)
                cells = None if line is None else line[:-1].removesuffix("\r").split("\t")
                is_blank = line is not None and not line.strip()
            else:
                cells = self._read_quoted()
                is_blank = cells is not None and len(cells) < 2 and not "".join(cells).strip()
            if not is_blank:
                return cells

    def go_behind_first_line(self) -> None:
        """Go on with the line behind the first one of the row at hand, whose others may be rows of their own."""
        self._again.extendleft(reversed(self._row[1:]))

    def _read_quoted(self) -> list[str] | None:
        assert self._reader is not None
        try:
            return next(self._reader, None)
        except csv.Error as error:
            what = (
                f"the quoting of the row that begins here is broken ({error})."
                " Where quotes are part of the text, set quoting: none."
            )
            raise RecordError(self.where, what, "broken quoting") from None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._found)
        self._row.append(line)
        if line[2] is None:
            raise too_long(self.where)
        self._row_bytes += len(line[2]) + 1
        if self._row_bytes > MAX_RECORD_BYTES:
            what = (
                "the row that begins here has a quote that is not closed"
                f" within {MAX_RECORD_BYTES >> 20} MiB. Where quotes are part of the text, set quoting: none."
            )
            raise RecordError(self.where, what, "broken quoting")
        return f"{decode_line(line[2], self.where)}\n"
