"""Read rows by document id. The id map finds them; payloads are read directly if possible, and otherwise by Lance."""

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any

import lance
import numpy as np

from ...errors import CorruptStoreError, StoreError
from ..codecs.record import Records
from ..table.addresses import MEMORY, data_file_uri
from ..table.direct import DataFile, DataFiles, PageReader, read_cached, read_late
from ..table.failures import lance_errors
from ..table.rows import RowTaker
from .idcache import named_fragments, open_map, remake_map
from .idmap import IdMap
from .segments import DamagedMapError


class RowReader:
    """Reader of rows by document id, in one version of ``memory``. Threads may share it.

    If several rows have the same 64-bit hash, Lance reads them and their ids are compared, so two ids in the store are
    never confused. A row with a unique hash is read directly and recognised by 96 bits: these 64, and 32 bits of
    another hash in its payload. An id that is not in a store of n documents is taken for one of them with probability
    n/2⁹⁶.

    Threads take turns at what needs no disk. Otherwise they take Python's lock from each other at every read, and eight
    threads are half as fast as one.

    Args:
        uri: address of the store.
        table: Lance dataset of ``memory``.
        taker: reader of rows by number.
        turn: lock of the thread whose turn it is. A caller may hold it already.

    Attributes:
        direct: number of payloads that were read directly.
        by_lance: number of rows that Lance read.
    """

    def __init__(self, uri: str, table: lance.LanceDataset, taker: RowTaker, turn: threading.RLock):
        self.direct = 0
        self.by_lance = 0
        self._uri = uri
        self._table = table
        self._taker = taker
        self._lock = threading.Lock()
        self._turn = turn
        with lance_errors(f"cannot read the store at {uri}"):
            self._fragments = named_fragments(table)
        self._files = DataFiles(data_file_uri(uri, MEMORY, "").rstrip("/"), len(self._fragments))
        self._places = self._place(open_map(uri, table, self._fragments))

    def read(
        self, doc_ids: Sequence[str], columns: Sequence[str]
    ) -> tuple[list[str], Records, dict[str, dict[str, Any]]]:
        """Read the rows of documents. A document that the store holds appears in one of the two results.

        Args:
            doc_ids: ids of the documents. A repeated id is read again.
            columns: names of further columns to read.

        Returns:
            Ids, in request order, and checked records of the documents that were read directly. Rows by id, with
            ``doc_id``, ``payload``, ``error`` and the further columns, of the documents that Lance read: all of them if
            there are further columns, otherwise those without a payload, and those that cannot be read directly or fail
            their checks, which the caller repeats.

        Raises:
            CorruptStoreError: the store holds an id twice.
            StoreError: the store cannot be read.
        """
        with self._turn:
            try:
                names, ranges, positions, by_lance, places = self._locate(doc_ids, direct=not columns)
                heads, bodies, late = read_cached(ranges)
                if late:
                    with _given_up(self._turn):
                        read_late(late)
            except FileNotFoundError as error:
                raise StoreError(
                    f"the data file {error.filename} is gone: since the store was opened, it was changed and cleaned "
                    "up, or deleted. Open it again."
                ) from error
            except OSError as error:
                raise StoreError(f"cannot read documents of the store at {self._uri}: {error}") from error
            records = Records(heads, bodies)
            if wrong := records.wrong(names):
                by_lance += [places.rows_at(positions[i]).address(positions[i]) for i in wrong]
                kept = sorted(set(range(len(names))).difference(wrong))
                names, records = [names[i] for i in kept], records.select(kept)
            self.direct += len(names)
            if not by_lance:
                return names, records, {}
            with _given_up(self._turn):
                return names, records, self._take(by_lance, set(doc_ids), ["doc_id", "payload", "error", *columns])

    def held(self, doc_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that the store holds. Ids are compared themselves, not only their hashes.

        Raises:
            CorruptStoreError: the store holds an id twice.
            StoreError: the store cannot be read.
        """
        return set(self.columns(doc_ids, ()))

    def columns(self, doc_ids: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return columns by id, ``doc_id`` included, of those documents that the store holds.

        Raises:
            CorruptStoreError: the store holds an id twice.
            StoreError: the store cannot be read.
        """
        *_, addresses, _ = self._locate(doc_ids, direct=False)
        return self._take(addresses, set(doc_ids), ["doc_id", *columns]) if addresses else {}

    def _locate(
        self, doc_ids: Sequence[str], direct: bool
    ) -> tuple[list[str], list[tuple[DataFile, int, int]], list[int], list[int], "_Places"]:
        """Find the rows of documents, less the deleted ones.

        Returns:
            Id of each payload to read directly; file, position and length of the same payloads; positions of the same
            rows; the addresses of the rows that Lance must read; and the places that the positions belong to.

        Raises:
            OSError: a data file cannot be read.
            StoreError: a list of deleted rows cannot be read.
        """
        names: list[str] = []
        ranges: list[tuple[DataFile, int, int]] = []
        positions: list[int] = []
        by_lance: list[int] = []
        found, places = self._find(doc_ids)
        firsts, pages = places.firsts, places.pages
        for doc_id, position in zip(doc_ids, found, strict=True):
            if isinstance(position, tuple):
                live = [each for each in position if not places.rows_at(each).is_deleted(each)]
                if len(live) != 1:
                    by_lance += [places.rows_at(each).address(each) for each in live]
                    continue
                (position,) = live
            reader, first, rows = pages[bisect_right(firsts, position) - 1]
            if rows.has_deleted and rows.is_deleted(position):
                continue
            place = reader.locate(position - first) if direct else None
            if place is None:
                by_lance.append(rows.address(position))
            else:
                names.append(doc_id)
                ranges.append(place)
                positions.append(position)
        return names, ranges, positions, by_lance, places

    def _find(self, doc_ids: Sequence[str]) -> tuple[list[int | tuple[int, ...]], "_Places"]:
        """Return the rows that may be those of documents, as the map says, and the places that belong to this map."""
        places = self._places
        try:
            return places.id_map.find(doc_ids), places
        except DamagedMapError:
            with self._lock:
                if self._places is places:
                    self._places = self._place(remake_map(self._uri, self._table, self._fragments))
            return self._places.id_map.find(doc_ids), self._places

    def _place(self, id_map: IdMap) -> "_Places":
        places = _Places(id_map)
        position = 0
        for share in id_map.shares:
            for part, counts in zip(share.segment.parts, share.has, strict=True):
                fragment = self._fragments[part.key].fragment_id if counts else None
                has_deleted = not counts or self._fragments[part.key].metadata.deletion_file is not None
                rows = _PartRows(self._taker, fragment, position, part.rows, has_deleted)
                for page in part.pages:
                    places.firsts.append(position)
                    places.pages.append((PageReader(page, self._files), position, rows))
                    position += page.rows
        return places

    def _take(self, addresses: Sequence[int], wanted: Set[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return rows by id, read by Lance. A row with another id is ignored: it shares its hash with a wanted id."""
        rows = self._taker.take_at(sorted(set(addresses)), list(dict.fromkeys(columns))).to_pylist()
        self.by_lance += len(rows)
        taken: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["doc_id"] in wanted and taken.setdefault(row["doc_id"], row) is not row:
                raise CorruptStoreError(
                    f"the store at {self._uri} holds document {row['doc_id']!r} twice. Build it again from its corpus."
                )
        return taken


@contextmanager
def _given_up(turn: threading.RLock) -> Iterator[None]:
    """Release a lock that this thread holds, however often it has taken it, and take it again as often."""
    times = 0
    try:
        while True:
            turn.release()
            times += 1
    except RuntimeError:  # not held any more
        pass
    try:
        yield
    finally:
        for _ in range(times):
            turn.acquire()


class _Places:
    """The pages that the positions of a map count, each with its first position and its fragment."""

    def __init__(self, id_map: IdMap):
        self.id_map = id_map
        self.firsts: list[int] = []
        self.pages: list[tuple[PageReader, int, _PartRows]] = []

    def rows_at(self, position: int) -> "_PartRows":
        return self.pages[bisect_right(self.firsts, position) - 1][2]


class _PartRows:
    """The rows of a part of the map: their addresses, and which of them are deleted.

    Args:
        taker: reader of the lists of deleted rows.
        fragment: number of the fragment in the version that is read; None if the part does not count, as if all its
            rows were deleted.
        first: position of its first row.
        count: number of its rows.
        has_deleted: True if some rows may be deleted.
    """

    def __init__(self, taker: RowTaker, fragment: int | None, first: int, count: int, has_deleted: bool):
        self._taker = taker
        self._fragment = fragment
        self._first = first
        self._count = count
        self._deleted: np.ndarray | None = None
        self.has_deleted = has_deleted

    def is_deleted(self, position: int) -> bool:
        """Return True if the row at a position is deleted."""
        if self._fragment is None or not self.has_deleted:
            return self.has_deleted
        if self._deleted is None:
            deleted = np.zeros(self._count, dtype=bool)
            deleted[self._taker.deleted(self._fragment)] = True
            self._deleted = deleted
        return bool(self._deleted[position - self._first])

    def address(self, position: int) -> int:
        """Return the address of a row that is not deleted."""
        assert self._fragment is not None
        return self._fragment << 32 | (position - self._first)
