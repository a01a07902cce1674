"""Read the rows of a table, in order or by number."""

from collections.abc import Iterator, Sequence

import lance
import numpy as np
import pyarrow as pa

from ...errors import CorruptStoreError
from .addresses import MEMORY, data_file_uri
from .failures import check_process, lance_errors
from .pages import row_index_problem


def read_rows(
    dataset: lance.LanceDataset,
    columns: Sequence[str],
    *,
    fragments: Sequence[int] | None = None,
    batch_rows: int = 65_536,
) -> Iterator[tuple[lance.LanceFragment, pa.RecordBatch]]:
    """Yield the rows of a table, or of some of its fragments, in order: batches, each with its fragment.

    Rows are taken by number instead of scanned. Lance passes a scan on as an Arrow C stream, in which a damaged file
    can end the process: by an error message with a zero byte, or by a panic. Taking rows raises an error in both cases.
    It is as fast as a scan, and faster for payloads.

    Args:
        dataset: the table.
        columns: names of the columns to read.
        fragments: ids of the fragments to read; None for all.
        batch_rows: largest number of rows in a batch.

    Raises:
        StoreError: a file is missing or cannot be read; the message names it.
    """
    check_process()
    for fragment in _fragments(dataset, fragments):
        with lance_errors(f"cannot read {fragment_name(fragment)} of {dataset.uri}"):
            rows = fragment.count_rows()
            for start in range(0, rows, batch_rows):
                taken = fragment.take(range(start, min(start + batch_rows, rows)), columns=list(columns))
                yield fragment, taken.combine_chunks().to_batches()[0]


def _fragments(dataset: lance.LanceDataset, numbers: Sequence[int] | None) -> list[lance.LanceFragment]:
    if numbers is not None and len(numbers) == 1:
        # Listing all fragments for each of thousands takes longer than reading them.
        found = dataset.get_fragment(numbers[0])
        return [] if found is None else [found]
    wanted = None if numbers is None else set(numbers)
    return [each for each in dataset.get_fragments() if wanted is None or each.fragment_id in wanted]


def live_rows(fragment: lance.LanceFragment) -> np.ndarray:
    """Return the numbers of the rows in a fragment's data files that are not deleted, ``(k,)`` uint64, ascending.

    Raises:
        StoreError: the list of deleted rows cannot be read.
    """
    if fragment.metadata.deletion_file is None:
        return np.arange(fragment.physical_rows, dtype=np.uint64)
    with lance_errors(f"cannot read which rows of {fragment_name(fragment)} are deleted"):
        # A scan without columns, which reads only that list.
        addresses = fragment.to_table(columns=[], with_row_address=True).column("_rowaddr").to_numpy()
    return addresses & np.uint64(0xFFFFFFFF)


def read_addressed(
    dataset: lance.LanceDataset, columns: Sequence[str], *, fragments: Sequence[int] | None = None
) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
    """Yield the rows of a table, or of some of its fragments, in order: batches, each with the addresses of its rows.

    The addresses are ``(k,)`` uint64. All rows of a batch are from one fragment.

    Raises:
        StoreError: a file is missing or cannot be read; the message names it.
    """
    current, begin, addresses = None, 0, np.empty(0, np.uint64)
    for fragment, batch in read_rows(dataset, columns, fragments=fragments):
        if fragment.fragment_id != current:
            current, begin = fragment.fragment_id, 0
            addresses = live_rows(fragment) | np.uint64(current << 32)
        begin, start = begin + batch.num_rows, begin
        yield addresses[start:begin], batch


class RowTaker:
    """Reader of rows by number, in one version of ``memory``. It checks their files first. Threads may share it.

    Args:
        uri: address of the store.
        dataset: the table ``memory``, at that version.
    """

    def __init__(self, uri: str, dataset: lance.LanceDataset):
        self._uri = uri
        self._dataset = dataset
        with lance_errors(f"cannot read the store at {uri}"):
            self._fragments = dataset.get_fragments()
            self._ends = np.cumsum([fragment.count_rows() for fragment in self._fragments])
        self._checked: set[int] = set()

    def take(self, numbers: Sequence[int] | np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Return rows in the order of the given numbers.

        Args:
            numbers: numbers of rows, counted from 0 over the rows of the table that are not deleted.
            columns: names of the columns to read.

        Raises:
            CorruptStoreError: the offsets of values in a file are damaged.
            StoreError: a file is missing or cannot be read.
        """
        for at in set(np.searchsorted(self._ends, numbers, side="right").tolist()) - self._checked:
            for file in self._fragments[at].metadata.files:
                address = data_file_uri(self._uri, MEMORY, file.path)
                if problem := row_index_problem(address):
                    raise CorruptStoreError(f"{address} {problem}. See: pisco-index verify {self._uri}")
            self._checked.add(at)
        with lance_errors(f"cannot read {len(numbers)} documents of the store at {self._uri}"):
            return self._dataset.take(pa.array(numbers), columns=list(columns))


def fragment_name(fragment: lance.LanceFragment) -> str:
    """Return the path of a fragment's data file in its table's folder, as a name of the fragment in messages."""
    return f"data/{fragment.metadata.files[0].path}" if fragment.metadata.files else f"fragment {fragment.fragment_id}"
