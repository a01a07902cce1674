"""Reading rows by document id: found by the id map, read directly where that is possible, and by Lance where not."""

import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import lance
import numpy as np
from lance.fragment import LanceFragment

from ...errors import CorruptStoreError, StoreError
from ..codecs.payload import is_record_of
from ..table.addresses import MEMORY, data_file_uri
from ..table.direct import DataFile, DataFiles, PageReader, read_ranges
from ..table.failures import lance_errors
from ..table.rows import RowTaker, live_rows
from .idcache import named_fragments, open_map, remake_map
from .idmap import DamagedMapError, IdMap


class RowReader:
    """Reads rows of one version of ``memory`` by id. Threads may share it.

    Rows with the same 64-bit hash are read by Lance, and their ids compared: ids in the store are never taken for each
    other. A row that is alone with its hash is read directly and known by 96 bits: those 64, and 32 of another hash in
    its payload. So an id that the store does not hold is taken for one of its n documents with a probability of n/2⁹⁶.

    Attributes:
        direct: payloads that were read directly.
        by_lance: rows that Lance read.
    """

    def __init__(self, uri: str, table: lance.LanceDataset, taker: RowTaker):
        self.direct = 0
        self.by_lance = 0
        self._uri = uri
        self._table = table
        self._taker = taker
        self._lock = threading.Lock()
        with lance_errors(f"cannot read the store at {uri}"):
            self._fragments = named_fragments(table)
            counts = [fragment.count_rows() for fragment in self._fragments.values()]
        self._files = DataFiles(data_file_uri(uri, MEMORY, "").rstrip("/"))
        self._live_before = dict(zip(self._fragments, accumulate(counts, initial=0), strict=False))
        self._places = self._place(open_map(uri, table, self._fragments))

    def read(
        self, wanted: Mapping[str, None], columns: Sequence[str]
    ) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
        """Read documents; each that is there comes in one of two ways.

        Args:
            wanted: their ids.
            columns: what to read beside payloads.

        Returns:
            Payloads by id. And rows by id, with ``doc_id``, ``payload``, ``error`` and the columns: of the documents
            without a payload, of all if there are columns to read, and of those that only Lance can read.

        Raises:
            CorruptStoreError: an id is there twice.
            StoreError: the store cannot be read.
        """
        try:
            ranges, owners, by_lance = self._locate(wanted, direct=not columns)
            records = read_ranges(ranges)
        except FileNotFoundError as error:
            raise StoreError(
                f"the data file {error.filename} is gone: the store was changed and cleaned up, or deleted, since it "
                "was opened. Open it again."
            ) from error
        except OSError as error:
            raise StoreError(f"cannot read documents of the store at {self._uri}: {error}") from error
        payloads: dict[str, bytes] = {}
        for (doc_id, rows, position), record in zip(owners, records, strict=True):
            if is_record_of(record, doc_id):
                payloads[doc_id] = record
            else:
                by_lance.append(rows.offset(position))
        self.direct += len(payloads)
        return payloads, self._take(by_lance, wanted, columns) if by_lance else {}

    def held(self, wanted: Mapping[str, None]) -> set[str]:
        """Which of some ids are there; every id is compared.

        Raises:
            StoreError: the store cannot be read.
        """
        _, _, offsets = self._locate(wanted, direct=False)
        ids = self._taker.take(sorted(set(offsets)), ["doc_id"]) if offsets else None
        return set() if ids is None else wanted.keys() & set(ids.column(0).to_pylist())

    def _locate(
        self, wanted: Mapping[str, None], direct: bool
    ) -> tuple[list[tuple[DataFile, int, int]], list[tuple[str, "_FragmentRows", int]], list[int]]:
        """Find rows that are not deleted.

        Returns:
            File, position and length of each payload to read directly; id, fragment and position of their rows; and
            the offsets, in the table, of the rows that Lance has to read.

        Raises:
            OSError: a data file cannot be read.
            StoreError: the deletions cannot be read.
        """
        ranges: list[tuple[DataFile, int, int]] = []
        owners: list[tuple[str, _FragmentRows, int]] = []
        by_lance: list[int] = []
        found, places = self._find(wanted)
        firsts, pages = places.firsts, places.pages
        for doc_id, position in zip(wanted, found, strict=True):
            if isinstance(position, tuple):
                live = [each for each in position if not places.rows_at(each).is_deleted(each)]
                if len(live) != 1:
                    by_lance += [places.rows_at(each).offset(each) for each in live]
                    continue
                (position,) = live
            reader, first, rows = pages[bisect_right(firsts, position) - 1]
            if rows.has_deleted and rows.is_deleted(position):
                continue
            place = reader.locate(position - first) if direct else None
            if place is None:
                by_lance.append(rows.offset(position))
            else:
                ranges.append(place)
                owners.append((doc_id, rows, position))
        return ranges, owners, by_lance

    def _find(self, wanted: Mapping[str, None]) -> tuple[list[int | tuple[int, ...]], "_Places"]:
        """Where the map says that documents may be, and the places that its positions count through."""
        places = self._places
        try:
            return places.id_map.find(wanted), places
        except DamagedMapError:
            with self._lock:
                if self._places is places:
                    self._places = self._place(remake_map(self._uri, self._table, self._fragments))
            return self._places.id_map.find(wanted), self._places

    def _place(self, id_map: IdMap) -> "_Places":
        places = _Places(id_map)
        position = 0
        for segment in id_map.segments:
            rows = _FragmentRows(self._fragments[segment.key], position, self._live_before[segment.key])
            for page in segment.pages:
                places.firsts.append(position)
                places.pages.append((PageReader(page, self._files), position, rows))
                position += page.rows
        return places

    def _take(
        self, offsets: Sequence[int], wanted: Mapping[str, None], columns: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        """Rows by id, read by Lance; rows of other ids are here only because they share a hash."""
        names = list(dict.fromkeys(["doc_id", "payload", "error", *columns]))
        rows = self._taker.take(sorted(set(offsets)), names).to_pylist()
        self.by_lance += len(rows)
        taken: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["doc_id"] in wanted and taken.setdefault(row["doc_id"], row) is not row:
                raise CorruptStoreError(f"the store at {self._uri} holds document {row['doc_id']!r} twice.")
        return taken


class _Places:
    """What the positions of a map count through: pages, each with its first position and its fragment."""

    def __init__(self, id_map: IdMap):
        self.id_map = id_map
        self.firsts: list[int] = []
        self.pages: list[tuple[PageReader, int, _FragmentRows]] = []

    def rows_at(self, position: int) -> "_FragmentRows":
        return self.pages[bisect_right(self.firsts, position) - 1][2]


class _FragmentRows:
    """The rows of a fragment: which are deleted, and where the others are in the table.

    Args:
        fragment: at the version that is read.
        first: position of its first row.
        live_before: rows of the table before it, without deleted ones.
    """

    def __init__(self, fragment: LanceFragment, first: int, live_before: int):
        self._fragment = fragment
        self._first = first
        self._live_before = live_before
        self._deleted: np.ndarray | None = None
        self.has_deleted = fragment.metadata.deletion_file is not None

    def is_deleted(self, position: int) -> bool:
        """Whether the row at a position is deleted."""
        return self.has_deleted and bool(self._mask()[position - self._first])

    def offset(self, position: int) -> int:
        """The number of a row that is not deleted among all such rows of the table."""
        row = position - self._first
        gone = int(np.count_nonzero(self._mask()[:row])) if self.has_deleted else 0
        return self._live_before + row - gone

    def _mask(self) -> np.ndarray:
        """Which rows are deleted, ``(rows,)`` bool; read once."""
        if self._deleted is None:
            deleted = np.ones(self._fragment.physical_rows, dtype=bool)
            deleted[live_rows(self._fragment)] = False
            self._deleted = deleted
        return self._deleted
