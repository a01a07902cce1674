"""Row numbers in open Parquet and Arrow files, from which batches of rows are read forward."""

import os
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate, chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import CorpusError
from ..rejected import UnreadableError, unreadable
from .columns import column_names

MAX_ROWS = 2048
"""Largest number of rows of a batch."""

# Largest number of bytes of a batch, unless one row has more: memory stays bounded whatever the table holds.
_BATCH_BYTES = 32 << 20


class TableCursor:
    """A row number in an open table.

    Attributes:
        schema: schema of the table.
        row: number of the next row, counted from 0.
        at_end: True if the table was read to its end.
        starts: rows at which reading can begin without reading what is before them.
    """

    schema: pa.Schema
    starts: tuple[int, ...] = (0,)

    def __init__(self, name: str):
        self.name = name
        self.row = 0
        self.at_end = False
        self._pending: pa.RecordBatch | None = None
        self._later: Iterator[pa.RecordBatch] = iter(())

    @property
    def column_names(self) -> list[str]:
        """Names of all columns of the table, and of the fields inside of them."""
        return _guarded(lambda: column_names(self.schema), self.name)

    @abstractmethod
    def _begin(self, position: int) -> None:
        """Set ``row`` to the last row at or before ``position`` where reading can begin, and ``_later`` from there."""

    @abstractmethod
    def _nearest(self, position: int) -> int:
        """Return the row that ``_begin`` would begin at."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def seek(self, position: int) -> None:
        """Move to a row: forward from the current one, or from the nearest row group before it."""
        if not self._nearest(position) <= self.row <= position:
            self._pending = None
            self.at_end = False
            self._begin(position)
        while self.row < position:
            if self.read(position - self.row) is None:
                raise UnreadableError(
                    f"{self.name}: the file has {self.row:,} rows, but row {position + 1:,} was planned. The file has"
                    " changed since then. Run the build again."
                )

    def read(self, rows: int) -> pa.RecordBatch | None:
        """Return at most ``rows`` rows, fewer if they are large; None at the end."""
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


class _ParquetCursor(TableCursor):
    def __init__(self, path: str, name: str, columns: tuple[str, ...] | None):
        super().__init__(name)
        # Bounded buffers instead of whole column chunks: a row group may hold gigabytes of text.
        # The name is given in bytes, because it may not be UTF-8.
        self._file = _guarded(lambda: pq.ParquetFile(pa.OSFile(os.fsencode(path)), buffer_size=1 << 20), name)
        self._columns = columns
        self.schema = _guarded(lambda: self._file.schema_arrow, name)
        metadata = self._file.metadata
        groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        if min(groups, default=0) < 0:
            raise _damaged(name, f"a row group has {min(groups)} rows")
        self._starts = [0, *accumulate(groups)]
        self.starts = tuple(self._starts[:-1]) or (0,)
        self._begin(0)

    def _begin(self, position: int) -> None:
        group = bisect_right(self._starts, position) - 1
        self.row = self._starts[group]
        # Each row group is read separately. A batch that spanned two would begin elsewhere, and meet damage at another
        # row, if reading began at another group.
        groups = range(group, len(self._starts) - 1)
        self._later = chain.from_iterable(map(self._batches_of, groups))

    def _batches_of(self, group: int) -> Iterator[pa.RecordBatch]:
        metadata = self._file.metadata.row_group(group)
        row_bytes = metadata.total_byte_size // max(metadata.num_rows, 1)
        rows = min(MAX_ROWS, max(_BATCH_BYTES // max(row_bytes, 1), 1))
        return self._file.iter_batches(rows, row_groups=[group], columns=self._columns)

    def _nearest(self, position: int) -> int:
        return self._starts[bisect_right(self._starts, position) - 1]

    def close(self) -> None:
        self._file.close(force=True)


class _ArrowCursor(TableCursor):
    def __init__(self, path: str, name: str, columns: tuple[str, ...] | None):
        super().__init__(name)
        self._columns = columns
        self._map = _guarded(lambda: pa.memory_map(os.fsencode(path)), name)
        self.schema = self._open(None).schema
        self._begin(0)

    def _open(self, options: pa.ipc.IpcReadOptions | None) -> Any:
        self._map.seek(0)
        is_file = self._map.read(6) == b"ARROW1"
        self._map.seek(0)
        opener = pa.ipc.open_file if is_file else pa.ipc.open_stream
        return _guarded(lambda: opener(self._map, options=options), self.name)

    def _begin(self, position: int) -> None:  # noqa: ARG002  skipping rows costs little in a mapped file
        names = self.schema.names if self._columns else []
        roots = (name if name in names else name.partition(".")[0] for name in self._columns or ())
        included = sorted({names.index(name) for name in roots})
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


CURSORS: dict[str, Callable[[str, str, tuple[str, ...] | None], TableCursor]] = {
    "parquet": _ParquetCursor,
    "arrow": _ArrowCursor,
}
"""Constructor of the cursor for each format, given path, name in messages, and columns (None for the schema only)."""


def _guarded(read: Callable[[], Any], place: str) -> Any:
    """Call into pyarrow, which raises ``OSError`` for damaged files as often as its own errors."""
    try:
        return read()
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(place, error) from None
        raise _damaged(place, (str(error).splitlines() or [type(error).__name__])[0]) from None


def _damaged(place: str, problem: str) -> CorpusError:
    return CorpusError(f"{place}: the table is damaged or truncated ({problem}). Download the file again.")
