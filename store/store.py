"""A store: created once, opened to read documents' memory by id."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import lance
import numpy as np
import pyarrow as pa

from ..errors import CorruptStoreError, MissingDocumentsError, StoreError
from .idmap import IdMap
from .ledger import EMPTY_SHARD_PREFIX, Ledger
from .meta import StoreMeta
from .payload import decode_batch, read_header
from .schema import ASSETS_SCHEMA, REJECTED_SCHEMA, memory_schema
from .tables import (
    ASSETS,
    MEMORY,
    REJECTED,
    TABLES,
    check_process,
    create_table,
    lance_errors,
    local_folder,
    open_table,
    resolve_uri,
    table_exists,
)

META_ASSET = "meta"

_SHOWN = 10


@dataclass(frozen=True)
class Rows:
    """Documents fetched from a store, in request order; k of them.

    Attributes:
        doc_ids: their ids, k.
        payloads: their records, k.
        columns: the further columns that were asked for, each a list of k values.
    """

    doc_ids: tuple[str, ...]
    payloads: tuple[bytes, ...] = field(repr=False)
    columns: Mapping[str, list[Any]] = field(default_factory=dict)

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
        """
        return decode_batch(self.payloads, self.doc_ids)


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
        self._id_map: IdMap | None = None
        self._id_map_lock = threading.Lock()

    @classmethod
    def create(cls, uri: str | Path, *, meta: StoreMeta, assets: Mapping[str, bytes]) -> Self:
        """Create an empty store.

        The table ``assets`` comes last, in one atomic commit that makes the store complete. After a crash before it,
        create again.

        Args:
            uri: a folder that is new, empty or holds a store that was never completed; or an object-store URI.
            meta: its description.
            assets: named bytes to keep in it, for example connector weights and the plan.

        Raises:
            StoreError: the folder holds a store or something else, an asset's name is reserved, or writing failed.
        """
        uri = resolve_uri(uri)
        if reserved := [name for name in assets if name == META_ASSET or name.startswith(EMPTY_SHARD_PREFIX)]:
            raise StoreError(f"an asset cannot be called {reserved[0]!r}: the store uses that name itself.")
        if cls.exists(uri):
            raise StoreError(f"{uri} already holds a store. Open it, or name another place.")
        cls.require_free(uri)
        _create_empty(uri, MEMORY, memory_schema(meta.optional_columns))
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
        """
        uri = resolve_uri(uri)
        if not table_exists(uri, ASSETS):
            if table_exists(uri, MEMORY):
                raise StoreError(f"the store at {uri} was never completed. Run its build again.")
            raise StoreError(f"there is no store at {uri}.")
        meta = StoreMeta.from_json(_read_asset(uri, META_ASSET), uri)
        return cls(uri, meta, open_table(uri, MEMORY, version))

    @staticmethod
    def exists(uri: str | Path) -> bool:
        """Whether a complete store is there.

        Raises:
            StoreError: something is there that cannot be read.
        """
        return table_exists(resolve_uri(uri), ASSETS)

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
            raise StoreError(f"{folder} is no store but holds {_some(others)}. Name a new or empty folder.")

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
            for batch in self.table.to_batches(columns=["doc_id"]):
                yield from batch.column(0).to_pylist()

    def asset(self, name: str) -> bytes:
        """The bytes kept under a name.

        Raises:
            StoreError: there are none; names those there are.
        """
        return _read_asset(self.uri, name)

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
        found = self._read(dict.fromkeys(doc_ids), columns)
        if missing == "error" and (absent := [i for i in dict.fromkeys(doc_ids) if i not in found]):
            raise MissingDocumentsError(
                f"the store at {self.uri} does not hold {len(absent)} of the documents asked for: {_some(absent)}.",
                absent,
            )
        if failed := [doc_id for doc_id, row in found.items() if row["payload"] is None]:
            reasons = "; ".join(f"{doc_id!r}: {found[doc_id]['error']}" for doc_id in failed[:_SHOWN])
            raise StoreError(f"{len(failed)} of the documents asked for have no memory. {reasons}")
        rows = [found[doc_id] for doc_id in doc_ids if doc_id in found]
        return Rows(
            doc_ids=tuple(row["doc_id"] for row in rows),
            payloads=tuple(row["payload"] for row in rows),
            columns={name: [row[name] for row in rows] for name in columns},
        )

    def _read(self, wanted: Mapping[str, None], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
        check_process()
        offsets = self._ids().candidates(list(wanted))
        if not offsets.size:
            return {}
        names = list(dict.fromkeys(["doc_id", "payload", "error", *columns]))
        with lance_errors(f"cannot read {offsets.size} documents of the store at {self.uri}"):
            rows = self.table.take(pa.array(offsets), columns=names).to_pylist()
        found: dict[str, dict[str, Any]] = {}
        for row in rows:
            # A row of another id is here only because the two ids share a hash.
            if row["doc_id"] in wanted and found.setdefault(row["doc_id"], row) is not row:
                raise CorruptStoreError(f"the store at {self.uri} holds document {row['doc_id']!r} twice.")
        return found

    def _ids(self) -> IdMap:
        with self._id_map_lock:
            if self._id_map is None:
                self._id_map = IdMap.of(self.table)
            return self._id_map

    def __reduce__(self):
        return type(self).open, (self.uri, self.version)

    def __repr__(self) -> str:
        return f"Store({self.uri!r}, version={self.version})"


def _create_empty(uri: str, table: str, schema: pa.Schema) -> None:
    if not table_exists(uri, table):
        create_table(uri, table, schema.empty_table())
        return
    found = open_table(uri, table)
    if found.schema != schema or found.count_rows():
        raise StoreError(
            f"{uri} is no store, but holds a table {table!r} with {found.count_rows()} rows and the columns "
            f"{', '.join(found.schema.names)}. Delete it, or name another place."
        )


def _read_asset(uri: str, name: str) -> bytes:
    with lance_errors(f"cannot read the assets of the store at {uri}"):
        dataset = open_table(uri, ASSETS)
        names = dataset.to_table(columns=["name"]).column(0).to_pylist()
        if name not in names:
            own = [n for n in names if not n.startswith(EMPTY_SHARD_PREFIX)]
            raise StoreError(f"the store at {uri} has no asset {name!r}; it has {', '.join(own)}.")
        return dataset.take([names.index(name)], columns=["value"]).column(0)[0].as_py()


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
