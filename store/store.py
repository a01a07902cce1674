"""A store: created once, opened to read documents' memory by id."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import lance
import numpy as np
import pyarrow as pa

from ..errors import CorruptStoreError, MissingDocumentsError, StoreError, some
from .codecs import codec_by_name, is_calibrated
from .codecs.calibration import CALIBRATION_PREFIX, Calibration, asset_name, reference_of
from .codecs.payload import Calibrations, Latents, decode_batch, decode_latents, read_header
from .ledger import EMPTY_SHARD_PREFIX, FALLBACK_PREFIX, Ledger, asset_names
from .lookup.row_reader import RowReader
from .meta import StoreMeta
from .schema import ASSETS_SCHEMA, REJECTED_SCHEMA, memory_schema
from .table.addresses import ASSETS, MEMORY, REJECTED, TABLES, local_folder, resolve_uri
from .table.datasets import create_table, find_table
from .table.deletions import checked, open_checked
from .table.failures import check_process, lance_errors
from .table.rows import RowTaker, read_rows

META_ASSET = "meta"

_SHOWN = 10
# Names that commits add.
_NOTES = (EMPTY_SHARD_PREFIX, FALLBACK_PREFIX)


@dataclass(frozen=True)
class Rows:
    """Documents fetched from a store, in request order; k of them.

    Attributes:
        doc_ids: their ids, k.
        payloads: their records, k.
        columns: the further columns that were asked for, each a list of k values.
        calibrations: finds what the payloads refer to.
    """

    doc_ids: tuple[str, ...]
    payloads: tuple[bytes, ...] = field(repr=False)
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    calibrations: Calibrations | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.doc_ids)

    @property
    def n_mem(self) -> np.ndarray:
        """Memory tokens of each document, ``(k,)`` int64.

        Raises:
            CorruptStoreError: a payload has no valid header.
        """
        return np.array([read_header(payload).n_mem for payload in self.payloads], dtype=np.int64)

    def memory(self) -> tuple[np.ndarray, np.ndarray]:
        """Decode: values ``(Σ n_mem, dim)`` float32 and lengths ``(k,)`` int64.

        Raises:
            CorruptStoreError: a payload is damaged or belongs to another document.
            StoreError: a payload refers to a calibration that the store lacks.
        """
        return decode_batch(self.payloads, self.doc_ids, self.calibrations)

    def latents(self) -> Latents | None:
        """Decode as far as look-up and scales go, if there are rows and all have one codec and calibration; else None.

        Raises as memory does.
        """
        return decode_latents(self.payloads, self.doc_ids, self.calibrations) if self.payloads else None


class Store:
    """A store opened at one version: what it reads never changes while a build goes on.

    Threads may share it. It can be pickled, and opens again at the same version where it arrives. It does not survive
    a fork, because Lance does not: a forked child gets an error that says so.

    Attributes:
        uri: absolute path or object-store URI.
        meta: what the store was created with.
        table: the Lance dataset of ``memory``, at this version.
        ledger: which shards are done, for those who commit.
    """

    def __init__(self, uri: str, meta: StoreMeta, table: lance.LanceDataset):
        self.uri = uri
        self.meta = meta
        self.table = table
        self.ledger = Ledger()
        self._calibrations: dict[int, Calibration] = {}
        self._row_reader: RowReader | None = None
        self._row_reader_lock = threading.Lock()

    @classmethod
    def create(
        cls,
        uri: str | Path,
        *,
        meta: StoreMeta,
        assets: Mapping[str, bytes],
        metadata: Mapping[bytes, bytes] | None = None,
    ) -> Self:
        """Create an empty store.

        The table ``assets`` comes last, in one atomic commit that makes the store complete. After a crash before it,
        create again.

        Args:
            uri: a folder that is new, empty or holds a store that was never completed; or an object-store URI.
            meta: its description.
            assets: named bytes to keep in it, for example connector weights and the plan.
            metadata: of the schema of ``memory``: another store's, whose plan is to be in force.

        Raises:
            StoreError: the folder holds a store or something else, an asset's name is reserved, or writing failed.
        """
        uri = resolve_uri(uri)
        if reserved := [name for name in assets if name == META_ASSET or name.startswith(_NOTES)]:
            raise StoreError(f"an asset cannot be called {reserved[0]!r}: the store uses that name itself.")
        if cls.exists(uri):
            raise StoreError(f"{uri} already holds a store. Open it, or name another place.")
        cls.require_free(uri)
        _create_empty(uri, MEMORY, memory_schema(meta.optional_columns).with_metadata(metadata))
        _create_empty(uri, REJECTED, REJECTED_SCHEMA)
        names, values = [*assets, META_ASSET], [*assets.values(), meta.to_json()]
        create_table(uri, ASSETS, pa.table([names, values], schema=ASSETS_SCHEMA))
        return cls.open(uri)

    @classmethod
    def open(cls, uri: str | Path, version: int | None = None) -> Self:
        """Open a store.

        Args:
            uri: where it is.
            version: of the table ``memory``; the latest by default.

        Raises:
            StoreError: there is no store, it was never completed, its format is newer than this package, or that
                version is gone.
            CorruptStoreError: a list of deleted rows is damaged, or a column is missing.
        """
        uri = resolve_uri(uri)
        assets = find_table(uri, ASSETS)
        if assets is None:
            if find_table(uri, MEMORY) is not None:
                raise StoreError(f"the store at {uri} was never completed. Run its build again.")
            raise StoreError(f"there is no store at {uri}.")
        meta = StoreMeta.from_json(_read_asset(uri, checked(assets, uri), META_ASSET), uri)
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
        """Whether a complete store is there.

        Raises:
            StoreError: something is there that cannot be read.
        """
        return find_table(resolve_uri(uri), ASSETS) is not None

    @staticmethod
    def require_free(uri: str | Path) -> None:
        """Check that a store could be created there: a folder that is new, empty, or holds one never completed.

        Raises:
            StoreError: the folder holds something else, is a file, or cannot be made or written.
        """
        folder = local_folder(resolve_uri(uri))
        if folder is None:
            return
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not nearest.is_dir():
            raise StoreError(f"{nearest} is a file; a store needs a folder.")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise StoreError(f"{folder} cannot be made: {nearest} is not writable. Name another place.")
        if nearest != folder:
            return
        # Hidden files do not count: the build's lock is one.
        ours = {f"{table}.lance" for table in TABLES}
        if others := sorted(p.name for p in folder.iterdir() if p.name not in ours and p.name[0] != "."):
            raise StoreError(f"{folder} is no store but holds {some(others)}. Name a new or empty folder.")

    def refresh(self) -> Self:
        """The same store opened at its latest version; this one stays on its own."""
        return type(self).open(self.uri)

    @property
    def version(self) -> int:
        """Version of the table ``memory`` that is read."""
        return self.table.version

    @property
    def count(self) -> int:
        """Number of documents, those with an error included."""
        check_process()
        return self.table.count_rows()

    def ids(self) -> Iterator[str]:
        """Ids of all documents, in the order of their rows.

        Raises:
            StoreError: they cannot be read.
        """
        check_process()
        with lance_errors(f"cannot read the store at {self.uri}"):
            for _, batch in read_rows(self.table, ["doc_id"]):
                yield from batch.column(0).to_pylist()

    def sample(self, count: int, seed: int | None = None) -> list[str]:
        """Ids of up to so many random documents that have memory, in the order of their rows.

        Args:
            count: rows to choose; of fewer, all.
            seed: the same one chooses the same documents; None others each time.

        Raises:
            StoreError: they cannot be read.
        """
        total = self.count
        chosen = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False, shuffle=False))
        rows = self._taker.take(chosen, ["doc_id", "error"]).to_pylist()
        return [row["doc_id"] for row in rows if row["error"] is None]

    def asset(self, name: str) -> bytes:
        """The bytes kept under a name.

        Raises:
            StoreError: there are none; names those there are.
        """
        return _read_asset(self.uri, open_checked(self.uri, ASSETS), name)

    def asset_names(self) -> list[str]:
        """The names under which bytes are kept, in the order in which they were added, those of the format included.

        Raises:
            StoreError: they cannot be read.
        """
        return asset_names(open_checked(self.uri, ASSETS))

    def calibration(self, reference: int) -> Calibration:
        """The calibration that payloads refer to by a number; read once.

        Raises:
            StoreError: the store lacks it.
            CorruptStoreError: it is damaged.
        """
        # Two threads that both read it do no harm.
        if reference not in self._calibrations:
            name = asset_name(reference)
            names = self.asset_names()
            if name not in names:
                held = ", ".join(n for n in names if n.startswith(CALIBRATION_PREFIX)) or "none"
                raise StoreError(
                    f"a payload needs {name}, which the store at {self.uri} lacks; it has {held}. The payload was "
                    "encoded for another store."
                )
            data = self.asset(name)
            if reference_of(data) != reference:
                raise CorruptStoreError(f"{name} of the store at {self.uri} fails its checksum.")
            self._calibrations[reference] = Calibration.from_bytes(data)
        return self._calibrations[reference]

    def own_calibration(self) -> Calibration | None:
        """The calibration of new payloads: the first that the store holds; None if its codec has none.

        Raises:
            StoreError: the store lacks it.
        """
        if not is_calibrated(codec_by_name(self.meta.codec)):
            return None
        first = next((name for name in self.asset_names() if name.startswith(CALIBRATION_PREFIX)), None)
        if first is None:
            raise StoreError(f"the store at {self.uri} has codec {self.meta.codec} but no calibration.")
        return self.calibration(int(first.removeprefix(CALIBRATION_PREFIX), 16))

    def fetch(
        self,
        doc_ids: Sequence[str],
        *,
        columns: Sequence[str] = (),
        missing: Literal["error", "skip"] = "error",
    ) -> Rows:
        """Read the memory of documents.

        Args:
            doc_ids: in any order; a repeated id gives a repeated row.
            columns: further columns to read, for example ``tokens_fed``, ``title`` or ``text``.
            missing: whether ids that the store does not hold are an error or are left out.

        Returns:
            The documents in request order.

        Raises:
            MissingDocumentsError: the store does not hold some ids.
            CorruptStoreError: an id is there twice.
            StoreError: a document has no memory because it failed, a column is unknown, or reading failed.
        """
        if unknown := [name for name in columns if name not in self.table.schema.names]:
            raise StoreError(f"the store at {self.uri} has no column {unknown[0]!r}.")
        check_process()
        wanted = dict.fromkeys(doc_ids)
        payloads, taken = self._rows().read(wanted, columns) if wanted else ({}, {})
        if taken:
            payloads |= {doc_id: row["payload"] for doc_id, row in taken.items()}
        if missing == "error" and len(payloads) < len(wanted):
            absent = [doc_id for doc_id in wanted if doc_id not in payloads]
            raise MissingDocumentsError(
                f"the store at {self.uri} does not hold {len(absent)} of the documents asked for: {some(absent)}.",
                absent,
            )
        if failed := [doc_id for doc_id, row in taken.items() if row["payload"] is None]:
            reasons = "; ".join(f"{doc_id!r}: {taken[doc_id]['error']}" for doc_id in failed[:_SHOWN])
            raise StoreError(f"{len(failed)} of the documents asked for have no memory. {reasons}")
        found = tuple(doc_id for doc_id in doc_ids if doc_id in payloads)
        return Rows(
            doc_ids=found,
            payloads=tuple(map(payloads.__getitem__, found)),
            columns={name: [taken[doc_id][name] for doc_id in found] for name in columns},
            calibrations=self.calibration,
        )

    def _rows(self) -> RowReader:
        with self._row_reader_lock:
            if self._row_reader is None:
                self._row_reader = RowReader(self.uri, self.table, self._taker)
            return self._row_reader

    @cached_property
    def _taker(self) -> RowTaker:
        return RowTaker(self.uri, self.table)

    def read(self, start: int, stop: int) -> Rows:
        """Read the memory of the documents in some of the rows, in their order, without those that have none.

        Args:
            start: number of the first row, from 0.
            stop: number of the row after the last; no more than ``count``.

        Raises:
            StoreError: they cannot be read.
        """
        check_process()
        rows = self._taker.take(range(start, stop), ["doc_id", "payload"])
        stored = rows.filter(rows.column("payload").is_valid())
        return Rows(
            doc_ids=tuple(stored.column("doc_id").to_pylist()),
            payloads=tuple(stored.column("payload").to_pylist()),
            calibrations=self.calibration,
        )

    def missing(self, doc_ids: Sequence[str]) -> list[str]:
        """Which of some ids the store does not hold, in order.

        Raises:
            StoreError: it cannot be read.
        """
        check_process()
        held = self._rows().held(dict.fromkeys(doc_ids)) if doc_ids else set()
        return [doc_id for doc_id in doc_ids if doc_id not in held]

    def memory_tokens(self) -> int:
        """Memory tokens of all documents together.

        Raises:
            StoreError: they cannot be read.
        """
        with lance_errors(f"cannot read the store at {self.uri}"):
            return sum(int(batch.column(0).to_numpy().sum()) for _, batch in read_rows(self.table, ["n_mem"]))

    def __reduce__(self):
        return type(self).open, (self.uri, self.version)

    def __repr__(self) -> str:
        return f"Store({self.uri!r}, version={self.version})"


def _create_empty(uri: str, table: str, schema: pa.Schema) -> None:
    found = find_table(uri, table)
    if found is None:
        create_table(uri, table, schema.empty_table())
    elif not found.schema.equals(schema, check_metadata=True) or found.count_rows():
        raise StoreError(
            f"{uri} is no store, but holds a table {table!r} with {found.count_rows()} rows and the columns "
            f"{', '.join(found.schema.names)}. Delete it, or name another place."
        )


def _read_asset(uri: str, assets: lance.LanceDataset, name: str) -> bytes:
    with lance_errors(f"cannot read the assets of the store at {uri}"):
        names = asset_names(assets)
        if name not in names:
            own = [n for n in names if not n.startswith(_NOTES)]
            raise StoreError(f"the store at {uri} has no asset {name!r}; it has {', '.join(own)}.")
        return assets.take([names.index(name)], columns=["value"]).column(0)[0].as_py()
