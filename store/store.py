"""The store: created once, then opened at a version to read the memory of documents by id."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import lance
import numpy as np
import pyarrow as pa

from ..configs.names import MissingIds
from ..errors import CorruptStoreError, FailedDocumentsError, StoreError, some
from .assets import META_ASSET, NOTE_PREFIXES, asset_names, read_asset, read_calibration
from .codecs import codec_by_name, is_calibrated
from .codecs.calibration import CALIBRATION_PREFIX, Calibration
from .ledger import Ledger
from .lookup.absent import absent_error
from .lookup.row_reader import RowReader
from .lookup.rows import Rows
from .meta import StoreMeta
from .schema import ASSETS_SCHEMA, OPTIONAL_COLUMNS, REJECTED_SCHEMA, memory_schema
from .table.addresses import ASSETS, MEMORY, REJECTED, TABLES, local_folder, resolve_uri
from .table.datasets import create_empty_table, create_table, find_table
from .table.deletions import checked, open_checked
from .table.failures import check_process, lance_errors
from .table.rows import RowTaker, read_rows

# Largest number of failed documents whose errors a message repeats; more would hide the message's beginning.
_SHOWN = 10


class Store:
    """A store that is opened at one version: what it reads does not change, even while a build adds to the store.

    Threads may share a store. It can be pickled; unpickling opens the same version again. It does not survive a fork,
    because Lance does not: a forked child gets an error that says so.

    Attributes:
        uri: absolute path or object-store URI.
        meta: description that the store was created with.
        table: Lance dataset of ``memory``, at this version.
        ledger: cache of the shards that are done, for commits.
    """

    def __init__(self, uri: str, meta: StoreMeta, table: lance.LanceDataset):
        self.uri = uri
        self.meta = meta
        self.table = table
        self.ledger = Ledger()
        self._calibrations: dict[int, Calibration] = {}
        self._row_reader: RowReader | None = None
        self._row_reader_lock = threading.Lock()
        self._turn = threading.RLock()

    @classmethod
    def create(
        cls,
        uri: str | Path,
        *,
        meta: StoreMeta,
        assets: Mapping[str, bytes],
        metadata: Mapping[bytes, bytes] | None = None,
        further_columns: Sequence[str] = (),
    ) -> Self:
        """Create an empty store.

        The table ``assets`` comes last, in one atomic commit that completes the store. After a crash before that, the
        store can be created again.

        Args:
            uri: object-store URI, or a folder that is new, empty, or holds a store that was never completed.
            meta: description of the store.
            assets: named bytes to keep in the store, for example connector weights and the plan.
            metadata: schema metadata for ``memory``, to copy the plan in force of another store.
            further_columns: optional columns besides those of the description; ``contents`` makes the store searchable.

        Raises:
            StoreError: the folder holds a store or something else, an asset's name is reserved, or writing failed.
        """
        uri = resolve_uri(uri)
        if reserved := [name for name in assets if name == META_ASSET or name.startswith(NOTE_PREFIXES)]:
            raise StoreError(f"an asset cannot be called {reserved[0]!r}: the format reserves that name.")
        if cls.exists(uri):
            raise StoreError(f"{uri} already holds a store. Open it, or name another place.")
        cls.require_free(uri)
        columns = memory_schema((*meta.optional_columns, *further_columns))
        create_empty_table(uri, MEMORY, columns.with_metadata(metadata))
        create_empty_table(uri, REJECTED, REJECTED_SCHEMA)
        names, values = [*assets, META_ASSET], [*assets.values(), meta.to_json()]
        create_table(uri, ASSETS, pa.table([names, values], schema=ASSETS_SCHEMA))
        return cls.open(uri)

    @classmethod
    def open(cls, uri: str | Path, version: int | None = None) -> Self:
        """Open a store.

        Args:
            uri: address of the store.
            version: version of the table ``memory``; the latest by default.

        Raises:
            StoreError: there is no store, it was never completed, its format is newer than this package, or the version
                does not exist any more.
            CorruptStoreError: a list of deleted rows is damaged, or a column is missing.
        """
        uri = resolve_uri(uri)
        assets = find_table(uri, ASSETS)
        if assets is None:
            if find_table(uri, MEMORY) is not None:
                raise StoreError(f"the store at {uri} was never completed. Run its build again.")
            raise StoreError(f"there is no store at {uri}. Check the address, or build the store first.")
        meta = StoreMeta.from_json(read_asset(uri, checked(assets, uri), META_ASSET), uri)
        table = open_checked(uri, MEMORY, version)
        with lance_errors(f"cannot read the columns of the store at {uri}"):
            absent = set(memory_schema(meta.optional_columns).names) - set(table.schema.names)
        if absent:
            raise CorruptStoreError(
                f"the store at {uri} lacks the column {min(absent)!r}, perhaps because a manifest is damaged. "
                f"See: pisco-index verify {uri}"
            )
        return cls(uri, meta, table)

    @staticmethod
    def exists(uri: str | Path) -> bool:
        """Return True if the address has a complete store.

        Raises:
            StoreError: the address holds something that cannot be read.
        """
        return find_table(resolve_uri(uri), ASSETS) is not None

    @staticmethod
    def require_free(uri: str | Path) -> None:
        """Check that a store can be created in a folder: it is new, empty, or holds a store that was never completed.

        Raises:
            StoreError: the folder holds something else, is a file, or cannot be created or written.
        """
        folder = local_folder(resolve_uri(uri))
        if folder is None:
            return
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not nearest.is_dir():
            raise StoreError(f"{nearest} is a file; a store needs a folder.")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise StoreError(f"{folder} cannot be created: {nearest} is not writable. Name another place.")
        if nearest != folder:
            return
        # Hidden files, such as the lock of a build, do not count.
        ours = {f"{table}.lance" for table in TABLES}
        if others := sorted(p.name for p in folder.iterdir() if p.name not in ours and p.name[0] != "."):
            raise StoreError(f"{folder} is no store but holds {some(others)}. Name a new or empty folder.")

    def refresh(self) -> Self:
        """Open the latest version of the same store; this object stays at its own version."""
        return type(self).open(self.uri)

    @property
    def version(self) -> int:
        """Version of the table ``memory`` that this store reads."""
        return self.table.version

    @property
    def kept_columns(self) -> frozenset[str]:
        """Names of the optional columns that ``memory`` has: those kept from the documents, and the searched one."""
        return frozenset(OPTIONAL_COLUMNS.keys() & self.table.schema.names)

    @property
    def count(self) -> int:
        """Number of documents, failed ones included."""
        check_process()
        return self.table.count_rows()

    def ids(self) -> Iterator[str]:
        """Yield the ids of all documents, in the order of their rows.

        Raises:
            StoreError: the store cannot be read.
        """
        check_process()
        with lance_errors(f"cannot read the store at {self.uri}"):
            for _, batch in read_rows(self.table, ["doc_id"]):
                yield from batch.column(0).to_pylist()

    def sample(self, count: int, seed: int | None = None) -> list[str]:
        """Return the ids of random documents with memory, in the order of their rows.

        Args:
            count: number of rows to choose, or all rows if there are fewer; chosen rows without memory are left out.
            seed: seed of the choice; None chooses other documents each time.

        Raises:
            StoreError: the store cannot be read.
        """
        total = self.count
        chosen = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False, shuffle=False))
        rows = self._taker.take(chosen, ["doc_id", "error"]).to_pylist()
        return [row["doc_id"] for row in rows if row["error"] is None]

    def asset(self, name: str) -> bytes:
        """Return the bytes of an asset.

        Raises:
            StoreError: there is no asset of that name; the message lists the existing names.
        """
        return read_asset(self.uri, open_checked(self.uri, ASSETS), name)

    def asset_names(self) -> list[str]:
        """Return the names of all assets, in the order in which they were added.

        Raises:
            StoreError: the names cannot be read.
        """
        return asset_names(open_checked(self.uri, ASSETS))

    def calibration(self, reference: int) -> Calibration:
        """Return the calibration that payloads refer to by a number. It is read once.

        Raises:
            StoreError: the store has no calibration of that number.
            CorruptStoreError: the calibration is damaged.
        """
        # No lock: it does no harm if two threads both read the calibration.
        if reference not in self._calibrations:
            self._calibrations[reference] = read_calibration(self.uri, reference)
        return self._calibrations[reference]

    def own_calibration(self) -> Calibration | None:
        """Return the calibration of new payloads, the first in the store; None if the store's codec needs none.

        Raises:
            StoreError: the codec needs a calibration, and the store has none.
        """
        if not is_calibrated(codec_by_name(self.meta.codec)):
            return None
        first = next((name for name in self.asset_names() if name.startswith(CALIBRATION_PREFIX)), None)
        if first is None:
            raise StoreError(
                f"the store at {self.uri} has codec {self.meta.codec} but no calibration, so no memory can be added. "
                f"See: pisco-index verify {self.uri}"
            )
        return self.calibration(int(first.removeprefix(CALIBRATION_PREFIX), 16))

    def fetch(self, doc_ids: Sequence[str], *, columns: Sequence[str] = (), missing: MissingIds = "error") -> Rows:
        """Read the memory of documents.

        Args:
            doc_ids: ids in any order; a repeated id gives a repeated row.
            columns: further columns to read, for example ``tokens_fed``, ``title`` or ``text``.
            missing: treatment of ids that the store does not hold.

        Returns:
            The documents in the order of the ids.

        Raises:
            MissingDocumentsError: the store does not hold some of the ids.
            FailedDocumentsError: a document has no memory because it failed.
            StoreError: the store holds a document twice, a column is unknown, or reading failed.
        """
        self._require_columns(columns)
        check_process()
        if not doc_ids:
            return Rows((), (), columns={name: [] for name in columns})
        names, records, taken = self._rows().read(doc_ids, columns)
        if not taken and len(names) == len(doc_ids):
            return Rows(tuple(names), records, calibrations=self.calibration)
        payloads = dict(zip(names, records.payloads(), strict=True))
        payloads |= {doc_id: row["payload"] for doc_id, row in taken.items()}
        if missing == "error" and (absent := [doc_id for doc_id in dict.fromkeys(doc_ids) if doc_id not in payloads]):
            raise absent_error(self.uri, absent, self._rows().held)
        if failed := [doc_id for doc_id, row in taken.items() if row["payload"] is None]:
            reasons = "; ".join(f"{doc_id!r}: {taken[doc_id]['error']}" for doc_id in failed[:_SHOWN])
            raise FailedDocumentsError(
                f"{len(failed)} of the requested documents have no memory. Leave them out. {reasons}", failed
            )
        found = tuple(doc_id for doc_id in doc_ids if doc_id in payloads)
        return Rows(
            doc_ids=found,
            stored=tuple(map(payloads.__getitem__, found)),
            columns={name: [taken[doc_id][name] for doc_id in found] for name in columns},
            calibrations=self.calibration,
        )

    def turn(self) -> threading.RLock:
        """Return the lock under which threads fetch one after another. ``fetch`` gives it up while it waits for a disk.

        A caller that holds it while it fetches and decodes a few documents saves all threads the switches in between.
        """
        check_process()
        return self._turn

    def columns(
        self, doc_ids: Sequence[str], names: Sequence[str], *, missing: MissingIds = "error"
    ) -> dict[str, dict[str, Any]]:
        """Return columns of documents, without their memory; failed documents have columns too.

        Args:
            doc_ids: ids in any order.
            names: names of the columns.
            missing: treatment of ids that the store does not hold.

        Returns:
            For each id that the store holds, its columns by name, ``doc_id`` included.

        Raises:
            MissingDocumentsError: the store does not hold some of the ids.
            CorruptStoreError: the store holds a document twice.
            StoreError: a column is unknown, or reading failed.
        """
        self._require_columns(names)
        check_process()
        found = self._rows().columns(doc_ids, names) if doc_ids else {}
        if missing == "error" and (absent := [doc_id for doc_id in dict.fromkeys(doc_ids) if doc_id not in found]):
            raise absent_error(self.uri, absent, self._rows().held)
        return found

    def _require_columns(self, names: Sequence[str]) -> None:
        if unknown := [name for name in names if name not in self.table.schema.names]:
            known = ", ".join(self.table.schema.names)
            raise StoreError(f"the store at {self.uri} has no column {unknown[0]!r}. Its columns are {known}.")

    def _rows(self) -> RowReader:
        with self._row_reader_lock:
            if self._row_reader is None:
                self._row_reader = RowReader(self.uri, self.table, self._taker, self._turn)
            return self._row_reader

    @cached_property
    def _taker(self) -> RowTaker:
        return RowTaker(self.uri, self.table)

    def read(self, rows: Sequence[int] | np.ndarray) -> Rows:
        """Read the memory of documents by the numbers of their rows. Rows without memory are left out.

        Args:
            rows: numbers of the rows, from 0 and below ``count``, for example a range.

        Raises:
            StoreError: the rows cannot be read.
        """
        check_process()
        taken = self._taker.take(rows, ["doc_id", "payload"])
        stored = taken.filter(taken.column("payload").is_valid())
        return Rows(
            doc_ids=tuple(stored.column("doc_id").to_pylist()),
            stored=tuple(stored.column("payload").to_pylist()),
            calibrations=self.calibration,
        )

    def row_ids(self, rows: Sequence[int]) -> list[str]:
        """Return the ids of documents by the numbers of their rows, from 0 and below ``count``.

        Raises:
            StoreError: the rows cannot be read.
        """
        check_process()
        return self._taker.take(rows, ["doc_id"]).column(0).to_pylist()

    def missing(self, doc_ids: Sequence[str]) -> list[str]:
        """Return those of the given ids that the store does not hold, in their order.

        Raises:
            StoreError: the store cannot be read.
        """
        check_process()
        held = self._rows().held(doc_ids) if doc_ids else set()
        return [doc_id for doc_id in doc_ids if doc_id not in held]

    def memory_tokens(self) -> int:
        """Return the number of memory tokens of all documents together.

        Raises:
            StoreError: the store cannot be read.
        """
        with lance_errors(f"cannot read the store at {self.uri}"):
            return sum(int(batch.column(0).to_numpy().sum()) for _, batch in read_rows(self.table, ["n_mem"]))

    def number_column(self, name: str) -> np.ndarray:
        """Return a column of numbers, one for each row, ``(count,)``.

        Raises:
            StoreError: the column cannot be read.
        """
        values = [batch.column(0).to_numpy() for _, batch in read_rows(self.table, [name])]
        return np.concatenate(values) if values else np.empty(0, np.int64)

    def __reduce__(self):
        return type(self).open, (self.uri, self.version)

    def __repr__(self) -> str:
        return f"Store({self.uri!r}, version={self.version})"
