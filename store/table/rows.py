"""Read the rows of a table, in order or by number."""

from collections.abc import Iterator, Sequence

import lance
import numpy as np
import pyarrow as pa

from ...errors import CorruptStoreError, StoreError
from .addresses import MEMORY, data_file_uri
from .failures import check_process, lance_errors
from .pages import row_index_problem

# Name by which Lance returns the address of a row.
_ADDRESS = "_rowaddr"


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


def take_rows(dataset: lance.LanceDataset, addresses: np.ndarray, columns: Sequence[str]) -> pa.Table:
    """Return rows of a table in the order of their addresses.

    An address is the number of a fragment in the upper 32 bits, and below it the number of a row in its data files.
    By numbers of rows, Lance's ``take`` would search the list of deleted rows again for each row, in time that grows
    with the fragment: a thousand rows took 90 times as long.

    Args:
        dataset: the table.
        addresses: addresses of rows that are not deleted, ``(k,)`` uint64. They may repeat.
        columns: names of the columns to read.

    Raises:
        CorruptStoreError: one of the rows is deleted, or Lance returns other rows.
        StoreError: a row does not exist, or a file is missing or cannot be read.
    """
    found, taken = take_live(dataset, addresses, columns)
    if not np.array_equal(found, addresses):
        raise CorruptStoreError(
            f"{dataset.uri} returns {taken.num_rows:,} rows, or other rows, where it should return {len(addresses):,}."
        )
    return taken


def take_live(
    dataset: lance.LanceDataset, addresses: np.ndarray, columns: Sequence[str]
) -> tuple[np.ndarray, pa.Table]:
    """Return the addresses ``(m,)`` and the rows of those addresses ``(k,)`` whose rows are not deleted, in order.

    Arguments are those of ``take_rows``.

    Raises:
        StoreError: a row does not exist, or a file is missing or cannot be read.
    """
    check_process()
    with lance_errors(f"cannot read {len(addresses)} rows of {dataset.uri}"):
        # Without stable row ids, which no store has, Lance's row id is the address.
        taken = dataset._take_rows(pa.array(addresses, pa.uint64()), columns=[*columns, _ADDRESS])
    return taken.column(_ADDRESS).to_numpy(), taken.drop_columns(_ADDRESS)


class RowTaker:
    """Reader of single rows, in one version of ``memory``. It checks their files first. Threads may share it.

    Args:
        uri: address of the store.
        dataset: the table ``memory``, at that version.
    """

    def __init__(self, uri: str, dataset: lance.LanceDataset):
        self._uri = uri
        self._dataset = dataset
        with lance_errors(f"cannot read the store at {uri}"):
            self._fragments = {fragment.fragment_id: fragment for fragment in dataset.get_fragments()}
            self._ids = np.array(list(self._fragments), np.int64)
            counts = np.array([fragment.count_rows() for fragment in self._fragments.values()], np.int64)
        self._ends = np.cumsum(counts)
        self._begins = self._ends - counts
        self._deleted: dict[int, np.ndarray] = {}
        self._checked: set[int] = set()

    def take(self, numbers: Sequence[int] | np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Return rows in the order of the given numbers.

        Args:
            numbers: numbers of rows, counted from 0 over the rows of the table that are not deleted.
            columns: names of the columns to read.

        Raises:
            CorruptStoreError: the offsets of values in a file are damaged.
            StoreError: the table has no such row, or a file is missing or cannot be read.
        """
        return self.take_at(self._addresses(np.asarray(numbers, np.int64)), columns)

    def take_at(self, addresses: Sequence[int] | np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Return rows in the order of their addresses, as ``take_rows`` does.

        Raises:
            CorruptStoreError: the offsets of values in a file are damaged, or Lance returns other rows.
            StoreError: a file is missing or cannot be read.
        """
        wanted = np.asarray(addresses, np.uint64)
        for number in set((wanted >> np.uint64(32)).tolist()) - self._checked:
            self._check(self._fragments[number])
            self._checked.add(number)
        return take_rows(self._dataset, wanted, columns)

    def deleted(self, number: int) -> np.ndarray:
        """Return the numbers of the deleted rows in a fragment's data files, ascending, ``(k,)`` int64.

        Args:
            number: Lance's number of the fragment.

        Raises:
            StoreError: the list of deleted rows cannot be read.
        """
        # No lock: it does no harm if two threads both read the list.
        if number not in self._deleted:
            fragment = self._fragments[number]
            is_deleted = np.ones(fragment.physical_rows, dtype=bool)
            is_deleted[live_rows(fragment)] = False
            self._deleted[number] = np.flatnonzero(is_deleted)
        return self._deleted[number]

    def _addresses(self, numbers: np.ndarray) -> np.ndarray:
        """Return the addresses of rows by their numbers in the table, ``(k,)`` uint64."""
        count = int(self._ends[-1]) if self._ends.size else 0
        if numbers.size and (numbers.min() < 0 or numbers.max() >= count):
            raise StoreError(f"the store at {self._uri} has {count:,} rows; row {numbers.max():,} was requested.")
        at = np.searchsorted(self._ends, numbers, side="right")
        rows = numbers - self._begins[at]
        order = np.argsort(at, kind="stable")
        first = np.flatnonzero(np.diff(at[order], prepend=-1))
        for chosen in np.split(order, first[1:]) if first.size else ():
            fragment = self._fragments[int(self._ids[at[chosen[0]]])]
            if fragment.metadata.deletion_file is not None:
                deleted = self.deleted(fragment.fragment_id)
                # A deleted row comes before a live one if no more live rows come before the deleted one.
                rows[chosen] += np.searchsorted(deleted - np.arange(len(deleted)), rows[chosen], side="right")
        return (self._ids[at] << 32 | rows).astype(np.uint64)

    def _check(self, fragment: lance.LanceFragment) -> None:
        for file in fragment.metadata.files:
            address = data_file_uri(self._uri, MEMORY, file.path)
            if problem := row_index_problem(address):
                raise CorruptStoreError(f"{address} {problem}. See: pisco-index verify {self._uri}")


def pieces(n_mem: np.ndarray, vectors: int, documents: int) -> Iterator[slice]:
    """Cut consecutive documents into pieces whose memory fits into RAM.

    Args:
        n_mem: number of memory tokens of each document, ``(k,)``.
        vectors: largest number of vectors of a piece, unless it is a single document.
        documents: largest number of documents of a piece.
    """
    ends, start, before = np.cumsum(n_mem, dtype=np.int64), 0, 0
    while start < len(n_mem):
        stop = int(np.searchsorted(ends, before + vectors, "right"))
        stop = min(max(stop, start + 1), start + documents, len(n_mem))
        yield slice(start, stop)
        start, before = stop, int(ends[stop - 1])


def fragment_name(fragment: lance.LanceFragment) -> str:
    """Return the path of a fragment's data file in its table's folder, as a name of the fragment in messages."""
    return f"data/{fragment.metadata.files[0].path}" if fragment.metadata.files else f"fragment {fragment.fragment_id}"
