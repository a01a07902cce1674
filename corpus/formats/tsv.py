"""Tab-separated tables: with header and quotes like DPR's ``psgs_w100.tsv``, or without like MS MARCO's collection."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from ...configs.corpus import CorpusConfig
from ...errors import CorpusError
from ..document import Document, Dropped, Event, check_doc_id
from ..fields import (
    PLAIN_COLUMNS,
    PLAIN_IDS,
    PLAIN_TEXTS,
    Fields,
    choose_fields,
    listed,
    names_id,
    plain_name,
    require_title_column,
)
from ..framing import MAX_RECORD_BYTES, decode_line, raw_lines, too_long, without_mark
from ..recognise import Recognised
from ..rejected import RecordError, Tolerance
from ..split import max_id_bytes
from ..streams import TextFile, stream_at
from .text_source import LinesSource
from .tsv_layout import (
    Quoting,
    QuotingError,
    RowShape,
    looks_quoted,
    opens_quote,
    recognise_layout,
    recognise_quoting,
    split_row,
)

_Line = tuple[int, int, bytes | None]

REPEATED_HEADER = "repeated header"
"""Reason for dropping a row that repeats the header, as in files that were joined."""

# Lines, and bytes, from which the meaning of quotes is recognised.
_SAMPLE_LINES = 1000
_SAMPLE_BYTES = 1 << 20
# Names of which a row in the place of the id may be a header.
_NAMES = PLAIN_IDS | PLAIN_TEXTS | PLAIN_COLUMNS


class TsvSource(LinesSource):
    """A tab-separated file. Positions are offsets of the lines that rows begin with.

    Attributes:
        columns: names of the columns, from the header or the configuration.
        header: True if the first row is a header.
        quoting: meaning of quotes; None until reading meets a cell that begins with one, if it is not configured.
        guessed: layout that is recognised and not configured, "header" and "quoting": a row that contradicts it is
            rejected. None in plans of earlier versions, which trust it.
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
        quoting: Quoting | None,
        guessed: Sequence[str] | None,
    ):
        super().__init__(file, fields, passage_words, tolerance)
        self.columns = tuple(columns)
        self.header = header
        self.quoting = quoting
        self.guessed = guessed
        title = self.columns.index(fields.title) if fields.title in self.columns else None
        self.indices = self.columns.index(fields.id), self.columns.index(fields.text), title
        self.shape = RowShape(len(self.columns), self.indices[0])
        # Features of the rows before the first one with a quote, from which the meaning of quotes is recognised.
        self.is_first, self.commas, self.knows_earlier = True, False, True
        own = (self.columns[index] for index in self.indices if index is not None)
        self._names = _NAMES | set(map(plain_name, own)) if guessed is not None else frozenset[str]()

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
            quoting=Quoting(spec["quoted"], spec.get("certain", True)) if "quoted" in spec else None,
            guessed=spec.get("guessed"),
        )

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able description from which another process opens this source."""
        spec = super().spec | {"columns": list(self.columns), "header": self.header}
        if self.quoting is not None:
            spec |= {"quoted": self.quoting.quoted, "certain": self.quoting.certain}
        return spec if self.guessed is None else spec | {"guessed": list(self.guessed)}

    @classmethod
    def begin(cls, found: Recognised, config: CorpusConfig) -> Self:
        """Open a recognised file; the columns come from its first line or the configuration.

        Raises:
            CorpusError: if the columns cannot be named, or none of them is the id, the text or the configured title.
        """
        text = found.text
        place = f"{text.name}, line 1"
        layout = recognise_layout(found.lines, config, place)
        if config.id_field is None and layout.columns[0] == "" and not names_id(layout.columns, config):
            # The rows have names, and the column of these has none.
            config = config.model_copy(update={"id_field": ""})
        fields = choose_fields(layout.columns, config, place)
        require_title_column(layout.columns, config, place)
        quoted = layout.quoted if config.quoting == "auto" else config.quoting == "csv"
        settings = {"header": config.header, "quoting": None if config.quoting == "auto" else config.quoting}
        return cls(
            text,
            fields,
            config.passage_words,
            Tolerance(config.on_error),
            columns=layout.columns,
            header=layout.header,
            quoting=None if quoted is None else Quoting(quoted, True),
            guessed=[name for name, value in settings.items() if value is None],
        )

    @property
    def learnt(self) -> dict[str, Any]:
        """Meaning of quotes; or features of the rows that were read, if none of them has a quote."""
        if self.quoting is not None:
            return {"quoting": tuple(self.quoting)}
        return {"is_first": self.is_first, "commas": self.commas}

    def learn(self, learnt: Mapping[str, Any]) -> None:
        """Take over what a reading of an earlier part of the file found out."""
        if "quoting" in learnt:
            self.quoting = Quoting(*learnt["quoting"])
        elif self.quoting is None:
            self.is_first = self.is_first and learnt["is_first"]
            self.commas = self.commas or learnt["commas"]

    def forget_earlier(self) -> None:
        """Note that an earlier part of the file was not read yet, on which the meaning of quotes depends."""
        self.knows_earlier = False

    def walk(self, start: int, stop: int | None) -> Iterator[Event]:
        """Yield the document or the error of each row between two positions, and repeated headers as dropped."""

        def place(number: int, position: int) -> str:
            return self.place(start, number, position)

        if start == 0:
            self.is_first, self.commas = True, False
        with stream_at(self.file, start) as stream:
            found = raw_lines(stream, stop, self.before(start))
            rows = _Rows(_without_header(found) if self.header and start == 0 else found, self, place)
            while True:
                try:
                    cells = rows.next()
                    if cells is None:
                        return
                    if self._repeats_header(cells, rows.place):
                        yield rows.position, rows.number, rows.place, Dropped(REPEATED_HEADER)
                        continue
                    self._check_width(cells, rows.place)
                except RecordError as error:
                    yield rows.position, rows.number, rows.place, error
                    rows.resume_after_first_line()
                    continue
                try:
                    item = self._document(cells, rows.place)
                except RecordError as error:
                    item = error
                yield rows.position, rows.number, rows.place, item

    def _repeats_header(self, cells: Sequence[str], place: str) -> bool:
        """Return True if a row is the header once more.

        Raises:
            RecordError: if the row looks like a header of the same columns, and may be a document.
            CorpusError: if it looks like a header of other columns, so that the rows below it cannot be read.
        """
        index = min(self.indices[0], len(cells) - 1)
        if plain_name(cells[index][:40]) not in self._names and len(cells) == self.shape.width:
            return False
        names, columns = [plain_name(cell) for cell in cells], [plain_name(name) for name in self.columns]
        if self.header and names in (columns, columns[1:] if columns[0] == "" else columns):
            return True
        held = self._names & set(names)
        if self.guessed is None or not (held & PLAIN_IDS and held & PLAIN_TEXTS) or "header" not in self.guessed:
            return False
        looks = f"the row {listed(cells[:6])} looks like a header"
        if len(names) == len(columns) and names[self.indices[0]] in PLAIN_IDS and names[self.indices[1]] in PLAIN_TEXTS:
            problem = f"{looks}. Remove it; or set header: {str(self.header).lower()} if it is a document."
            raise RecordError(place, problem, "row of names")
        raise CorpusError(
            f"{place}: {looks} of other columns than {listed(self.columns)}. Split the file before it, so that each"
            " part has its own columns."
        )

    def _check_width(self, cells: Sequence[str], place: str) -> None:
        width = len(self.columns)
        if len(cells) != width:
            problem = (
                f"expected {width} columns ({', '.join(self.columns[:20])[:400]}) but found {len(cells)}."
                " Correct the row, or set columns or quoting."
            )
            raise RecordError(place, problem, "wrong columns")

    def _document(self, cells: Sequence[str], place: str) -> Document:
        id_index, text_index, title_index = self.indices
        doc_id = check_doc_id(cells[id_index], place, max_id_bytes(self.passage_words))
        metadata = {
            name: cell
            for index, (name, cell) in enumerate(zip(self.columns, cells, strict=True))
            if index not in self.indices
        }
        title = cells[title_index] if title_index is not None else None
        return Document(doc_id, cells[text_index], title or None, metadata)


def _without_header(found: Iterator[_Line]) -> Iterator[_Line]:
    is_after = False
    for line in found:
        if is_after:
            yield line
        is_after = is_after or line[2] is None or bool(without_mark(line[2]).strip())


class _Rows(Iterator[str]):
    """The rows of a table. A row is one line, or several if a quoted cell has line feeds.

    It iterates over lines, and remembers those of the current row.
    """

    def __init__(self, found: Iterator[_Line], source: TsvSource, place: Callable[[int, int], str]):
        self._found = found
        self._source = source
        self._place = place
        self._ahead: deque[_Line] = deque()
        self._damage: CorpusError | None = None
        self._row: list[_Line] = []
        self._row_bytes = 0

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
            RecordError: if the row is not UTF-8 or too long, or its quotes are broken or may have another meaning.
        """
        while True:
            self._row, self._row_bytes = [], 0
            line = next(self, None)
            if line is None:
                return None
            line = line.lstrip("\ufeff")
            if not line.strip():
                continue
            if opens_quote(line) and self._is_quoted(line):
                return self._quoted_cells(line)
            if self._source.quoting is None:
                self._source.is_first = False
                self._source.commas = self._source.commas or "," in line
            return line.removesuffix("\r").split("\t")

    def resume_after_first_line(self) -> None:
        """Read the second and further lines of the current row again, since they may be rows of their own."""
        self._ahead.extendleft(reversed(self._row[1:]))

    def _is_quoted(self, line: str) -> bool:
        """Return True if the cells of a line are quoted.

        Raises:
            RecordError: if quotes were taken for text, but this line contradicts that.
        """
        quoting = self._source.quoting
        if quoting is None:
            quoting = self._source.quoting = self._recognise_quoting(line)
        if not quoting.quoted and not quoting.certain and looks_quoted(line):
            raise self._broken_quoting("the quotes of this row enclose cells, but those of earlier rows are text.")
        return quoting.quoted

    def _recognise_quoting(self, line: str) -> Quoting:
        if not self._source.knows_earlier:
            raise CorpusError(f"{self.place}: the meaning of quotes depends on earlier rows.")
        sample, size = [line], 0
        for _, _, raw in self._look_ahead():
            if raw is None or size > _SAMPLE_BYTES:
                break
            size += len(raw)
            if (text := without_mark(raw).decode(errors="replace")).strip():
                sample.append(text)
        is_cut = len(self._ahead) >= _SAMPLE_LINES or size > _SAMPLE_BYTES
        return recognise_quoting(
            sample, self._source.shape, is_cut=is_cut, is_first=self._source.is_first, commas=self._source.commas
        )

    def _look_ahead(self) -> Iterator[_Line]:
        """Yield lines behind the current one, which are read again."""
        yield from tuple(self._ahead)
        try:
            while len(self._ahead) < _SAMPLE_LINES and (line := next(self._found, None)):
                self._ahead.append(line)
                yield line
        except CorpusError as error:
            self._damage = error

    def _quoted_cells(self, line: str) -> list[str]:
        lines = [line]

        def following() -> Iterator[str]:
            for each in self:
                lines.append(each)
                yield each

        try:
            cells = split_row(line, following())
        except QuotingError as error:
            raise self._broken_quoting(f"the row that begins here has broken quoting ({error}).") from None
        guessed = self._source.guessed or ()
        if "quoting" in guessed and len(lines) > 1 and self._source.shape.may_be_rows(lines):
            raise self._broken_quoting(
                f"a quote encloses the following {len(lines) - 1} line feeds, but lines in between look like rows. If"
                " they are not, set quoting: csv."
            )
        return cells

    def _broken_quoting(self, problem: str) -> RecordError:
        advice = "If quotes are part of the text, set quoting: none."
        return RecordError(self.place, f"{problem} {advice}", "broken quoting")

    def __next__(self) -> str:
        if self._ahead:
            line = self._ahead.popleft()
        elif self._damage is not None:
            raise self._damage
        else:
            line = next(self._found)
        self._row.append(line)
        if line[2] is None:
            raise too_long(self.place)
        self._row_bytes += len(line[2]) + 1
        if self._row_bytes > MAX_RECORD_BYTES:
            raise self._broken_quoting(
                f"the row that begins here has a quote that is not closed within {MAX_RECORD_BYTES >> 20} MiB."
            )
        return decode_line(line[2], self.place)
