"""Read the ids of fragments and hash them, as rows of a new segment of the id map."""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import TypeVar

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import LanceFragment

from ...errors import CorruptStoreError
from ..table.failures import lance_errors
from ..table.rows import read_rows
from .idmap import hashes_of
from .segments import UnsortedRows, integer_for

_Value = TypeVar("_Value")

log = logging.getLogger(__name__)

# Rows of a run: enough to group them quickly, and few enough that copies of them take little memory.
_RUN_ROWS = 1 << 20
# Seconds before the first message about progress, and between two messages.
_QUIET_S = 3.0


def read_runs(
    uri: str, table: lance.LanceDataset, fragments: Sequence[LanceFragment], first: int
) -> Iterator[UnsortedRows]:
    """Yield all rows of fragments, deleted ones included, as runs of a segment.

    If this takes long, progress is logged as a warning, which a command shows.

    Args:
        uri: resolved address of the store.
        table: the table ``memory``, at the version of the fragments.
        fragments: some of its fragments, in their order in the table.
        first: position of their first row in the segment.

    Raises:
        CorruptStoreError: the ids that Lance returns do not match the rows.
        StoreError: the ids cannot be read.
    """
    counts = [each.physical_rows for each in fragments]
    end = first + sum(counts)
    progress = _Progress(uri, end - first)
    pending: list[tuple[np.ndarray, np.ndarray]] = []
    held = 0
    for begin, hashes in _hashes(uri, table, fragments, list(accumulate(counts, initial=first))):
        pending.append((hashes, np.arange(begin, begin + len(hashes), dtype=integer_for(end))))
        held += len(hashes)
        if held >= _RUN_ROWS:
            yield _run(pending)
            progress.add(held)
            pending, held = [], 0
    if pending:
        yield _run(pending)


def _run(pieces: Sequence[tuple[np.ndarray, np.ndarray]]) -> UnsortedRows:
    hashes, positions = zip(*pieces, strict=True)
    return UnsortedRows(np.concatenate(hashes), np.concatenate(positions))


def _hashes(
    uri: str, table: lance.LanceDataset, fragments: Sequence[LanceFragment], begins: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the hashes of ids in all rows of fragments: pieces, each with the position of its first row.

    Args:
        uri: resolved address of the store.
        table: the table ``memory``.
        fragments: some of its fragments.
        begins: position of the first row of each fragment.
    """
    ends = {each.fragment_id: begin for each, begin in zip(fragments, begins, strict=False)}
    for fragment, batch in _ahead(read_rows(table, ["doc_id"], fragments=list(ends))):
        # Only a scan returns the ids of deleted rows, and damage ends the process in a scan. A fragment with deleted
        # rows is read here first, so that damage raises an error.
        if fragment.metadata.deletion_file is None:
            start = ends[fragment.fragment_id]
            ends[fragment.fragment_id] += batch.num_rows
            yield start, _hashes_of(batch)
    for fragment, begin in zip(fragments, begins, strict=False):
        if fragment.metadata.deletion_file is not None:
            yield from _scan(uri, table, fragment, begin)
        elif ends[fragment.fragment_id] != begin + fragment.physical_rows:
            raise _miscounted(uri, ends[fragment.fragment_id] - begin, fragment.physical_rows)


def _scan(uri: str, table: lance.LanceDataset, fragment: LanceFragment, begin: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the hashes of ids in all rows of a fragment, deleted rows included, as ``_hashes`` does."""
    rows, end = fragment.physical_rows, 0
    with lance_errors(f"cannot read the document ids of the store at {uri}"):
        batches = table.scanner(
            columns=["doc_id"],
            fragments=[fragment],
            with_row_id=True,
            with_row_address=True,
            include_deleted_rows=True,
            scan_in_order=True,
        ).to_batches()
        for batch in batches:
            start, end = end, end + batch.num_rows
            if end > rows or not _are_at(batch.column("_rowaddr"), (fragment.fragment_id << 32) + start):
                raise CorruptStoreError(f"the store at {uri} returns its document ids in another order than its rows.")
            yield begin + start, _hashes_of(batch)
    if end != rows:
        raise _miscounted(uri, end, rows)


def _miscounted(uri: str, ids: int, rows: int) -> CorruptStoreError:
    return CorruptStoreError(f"the store at {uri} returns {ids:,} document ids for {rows:,} rows.")


def _hashes_of(batch: pa.RecordBatch) -> np.ndarray:
    return hashes_of(batch.column("doc_id").cast(pa.binary()).to_pylist())


def _are_at(addresses: pa.Array, first: int) -> bool:
    """Return True if the rows that are not deleted have ascending addresses; deleted rows have no address."""
    live = addresses.is_valid().to_numpy(zero_copy_only=False)
    expected = np.arange(first, first + len(live), dtype=np.uint64)
    return bool((addresses.fill_null(0).to_numpy() == expected)[live].all())


def _ahead(values: Iterator[_Value]) -> Iterator[_Value]:
    """Yield values, each read by another thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, values, None)
        while (value := coming.result()) is not None:
            coming = thread.submit(next, values, None)
            yield value


class _Progress:
    """Messages about the progress of reading ids, if it takes long."""

    def __init__(self, uri: str, rows: int):
        self._uri = uri
        self._rows = rows
        self._read = 0
        self._told = time.monotonic()

    def add(self, rows: int) -> None:
        self._read += rows
        if time.monotonic() - self._told > _QUIET_S:
            self._told = time.monotonic()
            log.warning(
                "Reading the %s document ids of %s once, to find documents by them: %d %% done.",
                f"{self._rows:,}",
                self._uri,
                100 * self._read // self._rows,
            )
