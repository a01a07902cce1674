"""Parquet files, Arrow IPC files and streams, and what Hugging Face ``datasets`` saves: tables read by columns."""

from abc import abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, chain
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...configs.corpus import CorpusConfig
from ...errors import CorpusError
from ..document import (
    Document,
    OnRejected,
    Record,
    RecordError,
    Refusals,
    Tolerance,
    UnreadableError,
    check_doc_id,
)
from ..fields import Fields, choose_fields, listed
from ..split import max_id_bytes, split_document
from ..streams import MAX_RECORD_BYTES, cursor_at, file_identity, too_long

_ROWS = 2048
# Rows that are read at a time have no more bytes than this, where one has less.
_BATCH_BYTES = 32 << 20


class ColumnarSource:
    """A Parquet or Arrow file; positions are row numbers from 0. Only the columns in use are read."""

    def __init__(
        self,
        path: str,
        name: str,
        kind: Literal["parquet", "arrow"],
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
    def begin(cls, path: str, name: str, kind: Literal["parquet", "arrow"], config: CorpusConfig) -> Self:
        """Make a source by the file's schema and the configuration.

        Raises:
            CorpusError: when the file is damaged, or a column is missing or of a wrong type.
        """
        cursor = _CURSORS[kind](path, name, None)
        schema = cursor.schema
        cursor.close()
        fields = choose_fields(schema.names, config, name)
        if fields.title is not None and fields.title not in schema.names:
            raise CorpusError(f"{name}: no column {fields.title!r} for the title; found {listed(schema.names)}.")
        for role, column in (("id", fields.id), ("text", fields.text), ("title", fields.title)):
            if column is not None:
                _check_type(schema.field(column), role, name)
        return cls(path, name, kind, fields, config.passage_words, Tolerance(config.on_error))

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Rebuild from ``spec``."""
        fields = Fields.from_spec(spec["fields"])
        tolerance = Tolerance.from_spec(spec)
        return cls(spec["path"], spec["name"], spec["format"], fields, spec["passage_words"], tolerance)

    @property
    def spec(self) -> dict[str, Any]:
        """All that another process needs to open this source: JSON-able."""
        return {
            "format": self.format,
            "path": self.path,
            "name": self.name,
            "fields": self.fields.spec,
            "passage_words": self.passage_words,
            **self.tolerance.spec,
        }

    def scan(self, dropped: Counter[str], on_rejected: OnRejected = bool) -> Iterator[Record]:  # noqa: ARG002
        """Validate all rows, column by column, and yield their records."""
        for row, (ids, texts, *_) in self._sound(0, None, Refusals(self.name, self.tolerance, on_rejected)):
            doc_ids = ids.to_pylist()
            rows = range(row, row + len(doc_ids))
            numbers = range(row + 1, row + len(doc_ids) + 1)
            yield from map(Record, rows, doc_ids, pc.call_function("utf8_length", [texts]).to_pylist(), numbers)

    def read(self, start: int, stop: int | None, on_rejected: OnRejected = bool) -> Iterator[Document]:
        """Yield the documents of the rows from ``start`` up to, not including, ``stop``."""
        refusals = Refusals(self.name, self.tolerance, on_rejected)
        for first, columns in self._sound(start, stop, refusals):
            for row, (doc_id, text, *title) in enumerate(zip(*(c.to_pylist() for c in columns), strict=True), first):
                if not refusals.is_repeated(row, doc_id, f"{self.name}, row {row + 1}"):
                    document = Document(doc_id, text, title[0] or None if title else None)
                    yield from split_document(document, self.passage_words)

    def _sound(self, start: int, stop: int | None, refusals: Refusals) -> Iterator[tuple[int, list[pa.Array]]]:
        """Yield (first row, ids, texts and, where there are any, titles) of consecutive rows that can be used."""
        names = tuple(name for name in (self.fields.id, self.fields.text, self.fields.title) if name is not None)
        for row, batch in refusals.until_damage(self._batches(start, stop, names)):
            yield from self._sound_parts(row, batch, refusals)

    def _sound_parts(self, row: int, batch: pa.RecordBatch, refusals: Refusals) -> Iterator[tuple[int, list[pa.Array]]]:
        try:
            columns = self._checked(row, batch)
        except RecordError as error:
            if self.tolerance.on_error == "fail" or batch.num_rows == 1:
                refusals.record(error, row)
                return
            half = batch.num_rows // 2
            yield from self._sound_parts(row, batch.slice(0, half), refusals)
            yield from self._sound_parts(row + half, batch.slice(half), refusals)
        else:
            yield row, columns

    def _batches(self, start: int, stop: int | None, columns: tuple[str, ...]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield (first row, at most 2,048 rows of the columns in the order asked for)."""
        key = (*file_identity(self.path, self.name), columns)
        with cursor_at(key, lambda: _CURSORS[self.format](self.path, self.name, columns), start) as cursor:
            while stop is None or cursor.row < stop:
                row = cursor.row
                batch = cursor.read(_ROWS if stop is None else min(_ROWS, stop - row))
                if batch is None:
                    return
                yield row, batch.select(list(columns))

    def _checked(self, row: int, batch: pa.RecordBatch) -> list[pa.Array]:
        """Return the columns of some rows as strings.

        Raises:
            RecordError: for a row with a null, what is no UTF-8, an id that cannot be used, or too long a text.
        """
        ids = self._strings(batch.column(0), self.fields.id, row)
        longest = max_id_bytes(self.passage_words)
        if not _plainly_valid(ids, longest):
            for number, doc_id in enumerate(ids.to_pylist(), row + 1):
                check_doc_id(doc_id, f"{self.name}, row {number}", longest)
        columns = [ids, self._strings(batch.column(1), self.fields.text, row)]
        if self.fields.title is not None:
            columns.append(self._strings(batch.column(2), self.fields.title, row, nullable=True))
        return columns

    def _strings(self, column: pa.Array, field: str, row: int, nullable: bool = False) -> pa.Array:
        """Return a column as strings, its offsets, UTF-8, nulls and lengths checked."""
        try:
            # First as it is: all else trusts the offsets in the file. A cast from bytes checks the UTF-8,
            # but one from strings does not, as readers of files do not.
            column.validate(full=True)
            strings = column.cast(pa.large_string())
        except pa.ArrowException:
            number = row + 1 + _first_invalid(column)
            what = f"{field!r} is not valid UTF-8. Write the file again from clean text."
            raise RecordError(f"{self.name}, row {number}", what, "invalid UTF-8") from None
        if strings.null_count and not nullable:
            missing = pc.index(strings.is_null(), True).as_py()
            what = f"{field!r} is null. Give the row a value or leave it out."
            raise RecordError(f"{self.name}, row {row + missing + 1}", what, "missing value")
        if strings.nbytes > MAX_RECORD_BYTES:
            sizes = pc.call_function("binary_length", [strings]).to_pylist()
            for number, size in enumerate(sizes, row + 1):
                if (size or 0) > MAX_RECORD_BYTES:
                    raise too_long(f"{self.name}, row {number}")
        return strings


def _plainly_valid(ids: pa.Array, longest: int) -> bool:
    """Whether no id can be at fault: a check of all at once, as that of each takes longer than all the rest."""
    if not len(ids):
        return True
    trimmed = pc.call_function("binary_length", [pc.call_function("utf8_trim_whitespace", [ids])])
    lengths = pc.call_function("min_max", [pc.call_function("binary_length", [ids])]).as_py()
    return pc.index(trimmed, 0).as_py() < 0 and lengths["max"] <= longest


def _first_invalid(column: pa.Array) -> int:
    for index in range(len(column)):
        try:
            value = column.slice(index, 1)
            value.validate(full=True)
            value.cast(pa.large_string())
        except pa.ArrowException:
            return index
    return 0


def _check_type(column: pa.Field, role: str, name: str) -> None:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    stringlike = (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )
    if not stringlike and not (role == "id" and pa.types.is_integer(kind)):
        wanted = "strings or integers" if role == "id" else "strings"
        raise CorpusError(
            f"{name}: the {role} column {column.name!r} holds {column.type}, not {wanted}. Set {role}_field to another."
        )


class _TableCursor:
    """A row number in an open table, from which batches are read forward."""

    schema: pa.Schema

    def __init__(self, name: str):
        self.name = name
        self.row = 0
        self.at_end = False
        self._pending: pa.RecordBatch | None = None
        self._later: Iterator[pa.RecordBatch] = iter(())

    @abstractmethod
    def _begin(self, position: int) -> None:
        """Set ``row`` to the last row at or before ``position`` where reading can begin, and ``_later`` from there."""

    @abstractmethod
    def _nearest(self, position: int) -> int:
        """Return the row that ``_begin`` would begin at."""

    @abstractmethod
    def close(self) -> None:
        """Give back the file."""

    def seek(self, position: int) -> None:
        """Go to a row: forward from here, or from the nearest row group before it."""
        if not self._nearest(position) <= self.row <= position:
            self._pending = None
            self.at_end = False
            self._begin(position)
        while self.row < position:
            if self.read(position - self.row) is None:
                raise UnreadableError(
                    f"{self.name}: has {self.row:,} rows, but row {position + 1:,} was planned. The file has changed;"
                    " plan the build again."
                )

    def read(self, rows: int) -> pa.RecordBatch | None:
        """Return at most ``rows`` rows, fewer where they are large, or None at the end."""
        while self._pending is None or not self._pending.num_rows:
            self._pending = _guarded(lambda: next(self._later, None), f"{self.name}, after row {self.row:,}")
            if self._pending is None:
                self.at_end = True
                return None
        batch = self._pending.slice(0, rows)
        while batch.num_rows > 1 and batch.nbytes > _BATCH_BYTES:
            batch = batch.slice(0, batch.num_rows // 2)
        self._pending = self._pending.slice(batch.num_rows)
        self.row += batch.num_rows
        return batch


class _ParquetCursor(_TableCursor):
    def __init__(self, path: str, name: str, columns: tuple[str, ...] | None):
        super().__init__(name)
        # Bounded buffers instead of whole column chunks: a row group may hold gigabytes of text.
        self._file = _guarded(lambda: pq.ParquetFile(path, buffer_size=1 << 20), name)
        self._columns = columns
        self.schema = _guarded(lambda: self._file.schema_arrow, name)
        metadata = self._file.metadata
        groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        if min(groups, default=0) < 0:
            raise CorpusError(
                f"{name}: the table is damaged (a number of rows is {min(groups)}); fetch the file again."
            )
        self._starts = [0, *accumulate(groups)]
        self._begin(0)

    def _begin(self, position: int) -> None:
        group = bisect_right(self._starts, position) - 1
        self.row = self._starts[group]
        # Each group by itself: batches that spanned two would begin elsewhere, and meet damage at another row, for a
        # reader that begins at another group.
        groups = range(group, len(self._starts) - 1)
        self._later = chain.from_iterable(map(self._batches_of, groups))

    def _batches_of(self, group: int) -> Iterator[pa.RecordBatch]:
        metadata = self._file.metadata.row_group(group)
        size = metadata.total_byte_size // max(metadata.num_rows, 1)
        rows = min(_ROWS, max(_BATCH_BYTES // max(size, 1), 1))
        return self._file.iter_batches(rows, row_groups=[group], columns=self._columns)

    def _nearest(self, position: int) -> int:
        return self._starts[bisect_right(self._starts, position) - 1]

    def close(self) -> None:
        self._file.close()


class _ArrowCursor(_TableCursor):
    def __init__(self, path: str, name: str, columns: tuple[str, ...] | None):
        super().__init__(name)
        self._columns = columns
        self._map = _guarded(lambda: pa.memory_map(path), name)
        self.schema = self._open(None).schema
        self._begin(0)

    def _open(self, options: pa.ipc.IpcReadOptions | None) -> Any:
        self._map.seek(0)
        is_file = self._map.read(6) == b"ARROW1"
        self._map.seek(0)
        opener = pa.ipc.open_file if is_file else pa.ipc.open_stream
        return _guarded(lambda: opener(self._map, options=options), self.name)

    def _begin(self, position: int) -> None:  # noqa: ARG002  skipping costs little in a mapped file
        included = [self.schema.get_field_index(name) for name in self._columns or ()]
        reader = self._open(pa.ipc.IpcReadOptions(included_fields=included))
        self.row = 0
        if isinstance(reader, pa.ipc.RecordBatchFileReader):
            self._later = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            self._later = iter(reader)

    def _nearest(self, position: int) -> int:  # noqa: ARG002
        return 0

    def close(self) -> None:
        self._map.close()


_CURSORS: dict[str, Callable[[str, str, tuple[str, ...] | None], Any]] = {
    "parquet": _ParquetCursor,
    "arrow": _ArrowCursor,
}


def _guarded(read: Callable[[], Any], where: str) -> Any:
    """Call into pyarrow, whose errors on damaged files are ``OSError`` as often as its own."""
    try:
        return read()
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UnreadableError(f"{where}: cannot be read ({error.strerror}).") from None
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorpusError(f"{where}: the table is damaged or truncated ({what}); fetch the file again.") from None
