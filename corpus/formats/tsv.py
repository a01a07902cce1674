"""Tab-separated tables: with header and quotes like DPR's ``psgs_w100.tsv``, or without like MS MARCO's collection."""

import csv
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from ...configs.corpus import CorpusConfig
from ...errors import CorpusError
from ..document import Document, check_doc_id
from ..fields import Fields, choose_fields, listed, looks_like_header, require_title_column
from ..framing import MAX_RECORD_BYTES, decode_line, lines, too_long
from ..recognise import Recognised
from ..rejected import RecordError, Rejecter, Tolerance
from ..split import max_id_bytes
from ..streams import TextFile, stream_at
from .text_source import TextSource

_Line = tuple[int, int, bytes | None]


class TsvSource(TextSource):
    """A tab-separated file. Positions are offsets of the lines that rows begin with.

    Attributes:
        columns: names of the columns, from the header or the configuration.
        header: True if the first row is a header.
        quoted: True if quotes enclose fields, as csv writers use them; False if they are part of the text.
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
        """Rebuild the source from its ``spec``."""
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
        """JSON-able description from which another process opens this source."""
        return super().spec | {"columns": list(self.columns), "header": self.header, "quoted": self.quoted}

    @classmethod
    def begin(cls, found: Recognised, config: CorpusConfig) -> Self:
        """Open a recognised file; the columns come from its first line or the configuration.

        Raises:
            CorpusError: if the columns cannot be named, or none of them is the id, the text or the configured title.
        """
        text = found.text
        place = f"{text.name}, line 1"
        cells = [cell.strip('"') for cell in found.first_line.split("\t")]
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
                f"{place}: the table has {len(cells)} columns but no header that names an id and a text; found"
                f" {listed(cell[:20] for cell in cells[:6])}. Set columns, e.g. [id, text, title]."
            )
        fields = choose_fields(columns, config, place)
        require_title_column(columns, config, place)
        quoted = header if config.quoting == "auto" else config.quoting == "csv"
        tolerance = Tolerance(config.on_error)
        return cls(text, fields, config.passage_words, tolerance, columns=columns, header=header, quoted=quoted)

    def _records(self, start: int, stop: int | None, rejecter: Rejecter) -> Iterator[tuple[int, int, str, Document]]:
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
                    self._check_width(cells, rows.place)
                except RecordError as error:
                    rejecter.reject(error, rows.position)
                    rows.resume_after_first_line()
                    continue
                try:
                    document = self._document(cells, rows.place)
                except RecordError as error:
                    rejecter.reject(error, rows.position)
                    continue
                yield rows.position, rows.number, rows.place, document

    def _check_width(self, cells: Sequence[str], place: str) -> None:
        width = len(self.columns)
        if len(cells) != width:
            problem = (
                f"expected {width} columns ({', '.join(self.columns[:20])[:400]}) but found {len(cells)}."
                " Correct the row, or set columns or quoting."
            )
            raise RecordError(place, problem, "wrong columns")

    def _document(self, cells: Sequence[str], place: str) -> Document:
        id_index, text_index, title_index = self._indices
        doc_id = check_doc_id(cells[id_index], place, max_id_bytes(self.passage_words))
        metadata = {
            name: cell
            for index, (name, cell) in enumerate(zip(self.columns, cells, strict=True))
            if index not in self._indices
        }
        title = cells[title_index] if title_index is not None else None
        return Document(doc_id, cells[text_index], title or None, metadata)


def _without_header(found: Iterator[_Line]) -> Iterator[_Line]:
    is_after = False
    for line in found:
        if is_after:
            yield line
        is_after = is_after or line[2] is None or bool(line[2].strip())


class _Rows:
    """The rows of a table. A row is one line, or several if a quoted field has line feeds.

    It is the iterator from which the csv reader takes lines, and remembers the lines of the current row.
    """

    def __init__(self, found: Iterator[_Line], quoted: bool, place: Callable[[int, int], str]):
        self._found = found
        self._place = place
        self._again: deque[_Line] = deque()
        self._row: list[_Line] = []
        self._row_bytes = 0
        # Articles are longer than the csv module's default limit. The limit is global, and raising it harms no one.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
        self._reader = csv.reader(self, delimiter="\t", strict=True) if quoted else None

    @property
    def number(self) -> int:
        """Number of the line that the current row begins with."""
        return self._row[0][0]

    @property
    def position(self) -> int:
        """Offset of the line that the current row begins with."""
        return self._row[0][1]

    @property
    def place(self) -> str:
        """Place of the current row for messages."""
        return self._place(self.number, self.position)

    def next(self) -> list[str] | None:
        """Return the cells of the next row that is not blank; None at the end.

        Raises:
            RecordError: if the row is not UTF-8 or too long, or its quoting is broken.
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

    def resume_after_first_line(self) -> None:
        """Read the second and further lines of the current row again, since they may be rows of their own."""
        self._again.extendleft(reversed(self._row[1:]))

    def _read_quoted(self) -> list[str] | None:
        assert self._reader is not None
        try:
            return next(self._reader, None)
        except csv.Error as error:
            raise self._broken_quoting(f"the row that begins here has broken quoting ({error}).") from None

    def _broken_quoting(self, problem: str) -> RecordError:
        return RecordError(
            self.place, f"{problem} If quotes are part of the text, set quoting: none.", "broken quoting"
        )

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._found)
        self._row.append(line)
        if line[2] is None:
            raise too_long(self.place)
        self._row_bytes += len(line[2]) + 1
        if self._row_bytes > MAX_RECORD_BYTES:
            raise self._broken_quoting(
                f"the row that begins here has a quote that is not closed within {MAX_RECORD_BYTES >> 20} MiB."
            )
        return f"{decode_line(line[2], self.place)}\n"
