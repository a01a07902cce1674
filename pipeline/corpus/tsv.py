r"""Tab-separated tables: DPR's ``psgs_w100.tsv`` (header, quoted fields), MS MARCO's ``collection.tsv`` (neither)."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from ...configs.corpus import CorpusConfig
from ...errors import CorpusError
from .document import Document, Record, check_doc_id
from .fields import Fields, choose_fields, listed, looks_like_header
from .source import TextSource
from .split import max_id_bytes
from .streams import MAX_RECORD_BYTES, ByteStream, TextFile, decode_line, lines, stream_at


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
        *,
        columns: Sequence[str],
        header: bool,
        quoted: bool,
    ):
        super().__init__(file, fields, passage_words)
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
        return cls(file, fields, config.passage_words, columns=columns, header=header, quoted=quoted)

    def scan(self, dropped: Counter[str]) -> Iterator[Record]:  # noqa: ARG002  every row is kept
        """Validate every row and yield its record."""
        id_index, text_index, _ = self._indices
        longest = max_id_bytes(self.passage_words)
        with stream_at(self.file, 0) as stream:
            for position, number, cells in self._rows(stream, None, lambda number, _: f"{self.name}, line {number}"):
                doc_id = check_doc_id(cells[id_index], f"{self.name}, line {number}", longest)
                yield Record(position, doc_id, len(cells[text_index]), number)

    def _records(self, start: int, stop: int | None) -> Iterator[Document]:
        id_index, text_index, title_index = self._indices
        with stream_at(self.file, start) as stream:
            for _, _, cells in self._rows(stream, stop, lambda _, position: f"{self.name}, byte {position:,}"):
                metadata = {
                    name: cell
                    for index, (name, cell) in enumerate(zip(self.columns, cells, strict=True))
                    if index not in self._indices
                }
                title = cells[title_index] if title_index is not None else None
                yield Document(cells[id_index], cells[text_index], title or None, metadata)

    def _rows(
        self, stream: ByteStream, stop: int | None, place: Callable[[int, int], str]
    ) -> Iterator[tuple[int, int, list[str]]]:
        """Yield (position, line number, cells); ``place(line number, position)`` names a row in messages."""
        rows = self._quoted_rows(stream, stop, place) if self.quoted else self._plain_rows(stream, stop, place)
        if self.header and stream.offset == 0:
            next(rows, None)
        width = len(self.columns)
        for position, number, cells in rows:
            if len(cells) != width:
                raise CorpusError(
                    f"{place(number, position)}: {len(cells)} columns where {width} are expected"
                    f" ({', '.join(self.columns)}). Correct the row, or set columns or quoting."
                )
            yield position, number, cells

    @staticmethod
    def _plain_rows(
        stream: ByteStream, stop: int | None, place: Callable[[int, int], str]
    ) -> Iterator[tuple[int, int, list[str]]]:
        for number, (position, line) in enumerate(lines(stream, stop), 1):
            if not line or line.isspace():
                continue
            try:
                row = line.decode()
            except UnicodeDecodeError:
                row = decode_line(line, place(number, position))
            yield position, number, row.removesuffix("\r").split("\t")

    @staticmethod
    def _quoted_rows(
        stream: ByteStream, stop: int | None, place: Callable[[int, int], str]
    ) -> Iterator[tuple[int, int, list[str]]]:
        feed = _LineFeed(stream, stop, place)
        # The csv module's limit is one for the whole process; raised, it harms nobody, and articles may be long.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
        reader = csv.reader(feed, delimiter="\t", strict=True)
        while True:
            feed.begin_row()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise CorpusError(
                    f"{place(feed.number, feed.position)}: the quoting of the row that begins here is broken ({error})."
                    " Where quotes are part of the text, set quoting: none."
                ) from None
            if cells is None:
                return
            if cells and not (len(cells) == 1 and not cells[0].strip()):
                yield feed.position, feed.number, cells


class _LineFeed:
    """Feeds lines to a csv reader and remembers where the row at hand begins: a row may go over several lines."""

    def __init__(self, stream: ByteStream, stop: int | None, place: Callable[[int, int], str]):
        # A row that begins before ``stop`` ends before it too, as ``stop`` is the beginning of another row.
        self._lines = enumerate(lines(stream, stop), 1)
        self._place = place
        self._line_number = 0
        self._row_bytes = 0
        self.position = 0
        self.number = 0

    def begin_row(self) -> None:
        self._row_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, (position, line) = next(self._lines)
        if not self._row_bytes:
            self.position, self.number = position, number
        self._row_bytes += len(line) + 1
        if self._row_bytes > MAX_RECORD_BYTES:
            raise CorpusError(
                f"{self._place(self.number, self.position)}: the row that begins here has a quote that is not closed"
                f" within {MAX_RECORD_BYTES >> 20} MiB. Where quotes are part of the text, set quoting: none."
            )
        return f"{decode_line(line, self._place(number, position))}\n"
