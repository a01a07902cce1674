"""Tables read by columns: Parquet, Arrow IPC files and streams, and the files that Hugging Face ``datasets`` saves."""

from collections.abc import Iterator, Mapping
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from ...configs.corpus import CorpusConfig
from ..cursors import cursor_at, file_identity
from ..document import Document, Event, Record, check_doc_id
from ..fields import Fields, require_title_column
from ..framing import MAX_RECORD_BYTES, too_long
from ..recognise import Recognised
from ..rejected import RecordError, Tolerance
from ..split import max_id_bytes
from .columns import Role, check_column, column_of, problem_of, strings_of
from .nested import choose_nested_fields
from .source import RecordSource
from .tables import CURSORS, MAX_ROWS


class ColumnarSource(RecordSource):
    """A Parquet or Arrow file. Positions are row numbers from 0. Only the columns in use are read."""

    def __init__(
        self,
        path: str,
        name: str,
        kind: str,
        fields: Fields,
        passage_words: int | None,
        tolerance: Tolerance = Tolerance(),  # noqa: B008
    ):
        self.path = path
        self.tolerance = tolerance
        self.name = name
        self.format = kind
        self.fields = fields
        self.passage_words = passage_words

    @classmethod
    def begin(cls, found: Recognised, config: CorpusConfig) -> Self:
        """Open a recognised file; its schema shows the fields.

        Raises:
            CorpusError: if the file is damaged, or a column is missing or has a wrong type.
        """
        path, name = str(found.file.path), found.file.name
        cursor = CURSORS[found.format](path, name, None)
        schema, columns = cursor.schema, cursor.column_names
        cursor.close()
        fields = choose_nested_fields(columns, config, name)
        require_title_column(columns, config, name)
        check_column(schema, fields.id, "id", name)
        check_column(schema, fields.text, "text", name)
        if fields.title is not None:
            check_column(schema, fields.title, "title", name)
        return cls(path, name, found.format, fields, config.passage_words, Tolerance(config.on_error))

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Rebuild the source from its ``spec``."""
        fields = Fields.from_spec(spec["fields"])
        tolerance = Tolerance.from_spec(spec)
        return cls(spec["path"], spec["name"], spec["format"], fields, spec["passage_words"], tolerance)

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able description from which another process opens this source."""
        return {
            "format": self.format,
            "path": self.path,
            "name": self.name,
            "fields": self.fields.spec,
            "passage_words": self.passage_words,
            **self.tolerance.spec,
        }

    def starts(self, rows: int) -> list[int]:
        """Return rows at which reading can begin, from 0 on and at least ``rows`` apart.

        Raises:
            CorpusError: if the file is damaged.
        """
        cursor = CURSORS[self.format](self.path, self.name, None)
        starts = [0]
        for start in cursor.starts:
            if start >= starts[-1] + rows:
                starts.append(start)
        cursor.close()
        return starts

    def survey(self, start: int, stop: int | None) -> Iterator[Event]:
        """Validate the rows between two positions, column by column, and yield their records without their texts."""
        for row, columns in self._sound(start, stop):
            if isinstance(columns, RecordError):
                yield row, row + 1, columns.place, columns
                continue
            ids, texts, *_ = columns
            lengths = pc.call_function("utf8_length", [texts]).to_pylist()
            for number, (doc_id, length) in enumerate(zip(ids.to_pylist(), lengths, strict=True), row + 1):
                yield number - 1, number, "", Record(number - 1, doc_id, length, number)

    def walk(self, start: int, stop: int | None) -> Iterator[Event]:
        """Yield the document or the error of each row between two positions."""
        for row, columns in self._sound(start, stop):
            if isinstance(columns, RecordError):
                yield row, row + 1, columns.place, columns
                continue
            for number, (doc_id, text, *title) in enumerate(
                zip(*(c.to_pylist() for c in columns), strict=True), row + 1
            ):
                document = Document(doc_id, text, title[0] or None if title else None)
                yield number - 1, number, f"{self.name}, row {number}", document

    def _sound(self, start: int, stop: int | None) -> Iterator[tuple[int, list[pa.Array] | RecordError]]:
        """Yield (first row, [ids, texts, titles if there are any]) of consecutive rows, or the error of one row."""
        names = tuple(name for name in (self.fields.id, self.fields.text, self.fields.title) if name is not None)
        for row, batch in self._batches(start, stop, names):
            yield from self._sound_parts(row, batch)

    def _sound_parts(self, row: int, batch: pa.RecordBatch) -> Iterator[tuple[int, list[pa.Array] | RecordError]]:
        """Yield the parts of a batch between its unusable rows, which are found by halving it."""
        try:
            columns = self._checked(row, batch)
        except RecordError as error:
            if self.tolerance.on_error == "fail" or batch.num_rows == 1:
                yield row, error
                return
            half = batch.num_rows // 2
            yield from self._sound_parts(row, batch.slice(0, half))
            yield from self._sound_parts(row + half, batch.slice(half))
        else:
            yield row, columns

    def _batches(self, start: int, stop: int | None, columns: tuple[str, ...]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield (first row, batch of at most 2,048 rows with the given columns)."""
        key = (*file_identity(self.path, self.name), columns)
        with cursor_at(key, lambda: CURSORS[self.format](self.path, self.name, columns), start) as cursor:
            while stop is None or cursor.row < stop:
                row = cursor.row
                batch = cursor.read(MAX_ROWS if stop is None else min(MAX_ROWS, stop - row))
                if batch is None:
                    return
                yield row, batch

    def _checked(self, row: int, batch: pa.RecordBatch) -> list[pa.Array]:
        """Return the columns of a batch as strings.

        Raises:
            RecordError: if a row has a null, invalid UTF-8, an unusable id, or too long a text.
        """
        ids = self._strings(batch, self.fields.id, "id", row)
        longest = max_id_bytes(self.passage_words)
        if not _all_usable(ids, longest):
            for number, doc_id in enumerate(ids.to_pylist(), row + 1):
                check_doc_id(doc_id, f"{self.name}, row {number}", longest)
        columns = [ids, self._strings(batch, self.fields.text, "text", row)]
        if self.fields.title is not None:
            columns.append(self._strings(batch, self.fields.title, "title", row))
        return columns

    def _strings(self, batch: pa.RecordBatch, field: str, role: Role, row: int) -> pa.Array:
        """Return a column as strings, after checking its offsets, UTF-8, nulls and lengths."""
        column = column_of(batch, field)
        try:
            # The column is validated before anything trusts its offsets. Validation also checks the UTF-8 of strings,
            # which neither readers of files nor a cast between string types do.
            column.validate(full=True)
            strings = strings_of(column, role)
        except pa.ArrowException:
            problem, reason = problem_of(column)
            place = f"{self.name}, row {row + 1 + _first_invalid(column, role)}"
            raise RecordError(place, f"{field!r} {problem}", reason) from None
        if strings.null_count and role != "title":
            missing = pc.index(strings.is_null(), True).as_py()
            problem = f"{field!r} is null. Give the row a value or remove it."
            raise RecordError(f"{self.name}, row {row + missing + 1}", problem, "missing value")
        if strings.nbytes > MAX_RECORD_BYTES:
            sizes = pc.call_function("binary_length", [strings]).to_pylist()
            for number, size in enumerate(sizes, row + 1):
                if (size or 0) > MAX_RECORD_BYTES:
                    raise too_long(f"{self.name}, row {number}")
        return strings


def _all_usable(ids: pa.Array, longest: int) -> bool:
    """Return True if no id is blank or too long. One check of all ids is much faster than a check of each."""
    if not len(ids):
        return True
    trimmed = pc.call_function("binary_length", [pc.call_function("utf8_trim_whitespace", [ids])])
    lengths = pc.call_function("min_max", [pc.call_function("binary_length", [ids])]).as_py()
    return pc.index(trimmed, 0).as_py() < 0 and lengths["max"] <= longest


def _first_invalid(column: pa.Array, role: Role) -> int:
    for index in range(len(column)):
        try:
            value = column.slice(index, 1)
            value.validate(full=True)
            strings_of(value, role)
        except pa.ArrowException:
            return index
    return 0
