"""The ways to find payloads by document id that ``fetch.py`` compares."""

import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
from lancedb.index import BTree

from pisco_index import Memory, Reader
from pisco_index.store import Store

# Rows in a row group of Parquet.
ROW_GROUP = 64
# Largest size of LMDB's file, in bytes. LMDB reserves addresses for it, but no memory.
LMDB_BYTES = 1 << 36

Records = Iterable[tuple[str, bytes]]
"""Ids and payloads of all documents."""


def batches(items: Iterable, size: int) -> Iterator[list]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


class Contender(ABC):
    """Finds payloads by id.

    Attributes:
        name: name in the table.
        folder: folder of the contender's files.
    """

    name: str
    folder: Path

    @abstractmethod
    def get(self, doc_ids: Sequence[str]) -> Sequence[bytes]:
        """Return the payloads, in the order of the ids."""

    def reopen(self) -> None:  # noqa: B027
        """Unmap files, because the system cannot drop mapped files from its cache."""

    def drop(self) -> None:
        """Drop the contender's files from the page cache."""
        self.reopen()
        for path in self._files():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def warm(self) -> None:
        """Read the contender's files into the page cache."""
        for path in self._files():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass

    def close(self) -> None:  # noqa: B027
        """Close the files."""

    def _files(self) -> Iterator[Path]:
        return (path for path in self.folder.rglob("*") if path.is_file())


class Floor(Contender):
    """Reads known places of one flat file, which is the least that any store has to do."""

    name = "floor"

    def __init__(self, folder: Path, records: Records):
        self.folder = folder
        self.places: dict[str, tuple[int, int]] = {}
        path = folder / "payloads"
        with path.open("wb") as file:
            for doc_id, payload in records:
                self.places[doc_id] = file.tell(), len(payload)
                file.write(payload)
        self.fd = os.open(path, os.O_RDONLY)

    def get(self, doc_ids: Sequence[str]) -> list[bytes]:
        places = [self.places[doc_id] for doc_id in doc_ids]
        return [os.pread(self.fd, size, start) for start, size in places]

    def get_announced(self, doc_ids: Sequence[str]) -> list[bytes]:
        """Announce all reads before the first one, so that the disk does them in parallel."""
        places = [self.places[doc_id] for doc_id in doc_ids]
        for start, size in places:
            os.posix_fadvise(self.fd, start, size, os.POSIX_FADV_WILLNEED)
        return [os.pread(self.fd, size, start) for start, size in places]

    def records(self) -> Iterator[tuple[str, bytes]]:
        for doc_id in self.places:
            yield doc_id, self.get([doc_id])[0]


class Lmdb(Contender):
    """A memory-mapped B-tree of ids."""

    name = "LMDB"

    def __init__(self, folder: Path, records: Records):
        self.folder = folder
        self._open(readonly=False)
        with self.environment.begin(write=True) as transaction:
            for doc_id, payload in records:
                transaction.put(doc_id.encode(), payload)
        self.environment.sync(True)

    def _open(self, readonly: bool) -> None:
        import lmdb

        # Read-ahead is for scans. It would read 128 KiB around each payload.
        self.environment = lmdb.open(str(self.folder), map_size=LMDB_BYTES, readonly=readonly, readahead=False)

    def get(self, doc_ids: Sequence[str]) -> list[bytes]:
        with self.environment.begin() as transaction:
            return [transaction.get(doc_id.encode()) for doc_id in doc_ids]

    def reopen(self) -> None:
        self.environment.close()
        self._open(readonly=True)

    def close(self) -> None:
        self.environment.close()


class Sqlite(Contender):
    """A table whose primary key is the id."""

    name = "SQLite"

    def __init__(self, folder: Path, records: Records):
        self.folder = folder
        self.connection = sqlite3.connect(folder / "payloads.db")
        self.connection.execute("CREATE TABLE memory (doc_id TEXT PRIMARY KEY, payload BLOB)")
        self.connection.executemany("INSERT INTO memory VALUES (?, ?)", records)
        self.connection.commit()

    def get(self, doc_ids: Sequence[str]) -> list[bytes]:
        marks = ",".join("?" * len(doc_ids))
        rows = self.connection.execute(f"SELECT doc_id, payload FROM memory WHERE doc_id IN ({marks})", doc_ids)
        found = dict(rows.fetchall())
        return [found[doc_id] for doc_id in doc_ids]

    def reopen(self) -> None:
        self.connection.close()
        self.connection = sqlite3.connect(self.folder / "payloads.db")

    def close(self) -> None:
        self.connection.close()


class Parquet(Contender):
    """Reads row groups of 64 rows. The place of each id is known."""

    name = "Parquet"

    def __init__(self, folder: Path, records: Records):
        self.folder = folder
        path = folder / "payloads.parquet"
        schema = pa.schema([("doc_id", pa.string()), ("payload", pa.binary())])
        self.places: dict[str, tuple[int, int]] = {}
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for number, group in enumerate(batches(records, ROW_GROUP)):
                ids, payloads = zip(*group, strict=True)
                writer.write_table(pa.table([ids, payloads], schema=schema), row_group_size=ROW_GROUP)
                self.places |= {doc_id: (number, row) for row, doc_id in enumerate(ids)}
        self.file = pq.ParquetFile(path)

    def get(self, doc_ids: Sequence[str]) -> list[bytes]:
        places = [self.places[doc_id] for doc_id in doc_ids]
        groups = {group: self.file.read_row_group(group, columns=["payload"]).column(0) for group, _ in places}
        return [groups[group][row].as_py() for group, row in places]


class LanceTake(Contender):
    """Takes rows of our table with Lance's own method. The number of each id's row is known."""

    name = "Lance take"

    def __init__(self, store: Store):
        self.folder = Path(store.uri)
        self.table = store.table
        self.rows = {doc_id: row for row, doc_id in enumerate(store.ids())}

    def get(self, doc_ids: Sequence[str]) -> list[bytes]:
        # Lance returns the rows in the order of the request.
        rows = self.table.take([self.rows[doc_id] for doc_id in doc_ids], columns=["doc_id", "payload"])
        assert rows.column("doc_id").to_pylist() == list(doc_ids)
        return rows.column("payload").to_pylist()


class LancedbWhere(Contender):
    """Queries our table as a user of LanceDB would, with an index on the ids."""

    name = "LanceDB where"

    def __init__(self, store: Store):
        self.folder = Path(store.uri)
        self.table = lancedb.connect(store.uri).open_table("memory")
        self.table.create_index("doc_id", config=BTree())

    def get(self, doc_ids: Sequence[str]) -> list[bytes]:
        named = ", ".join(f"'{doc_id}'" for doc_id in doc_ids)
        query = self.table.search().where(f"doc_id IN ({named})").select(["doc_id", "payload"]).limit(len(doc_ids))
        found = {row["doc_id"]: row["payload"] for row in query.to_list()}
        return [found[doc_id] for doc_id in doc_ids]


class OurStore(Contender):
    """Fetches payloads from our store."""

    name = "Store.fetch"

    def __init__(self, store: Store):
        self.folder = Path(store.uri)
        self.store = store

    def get(self, doc_ids: Sequence[str]) -> Sequence[bytes]:
        return self.store.fetch(doc_ids).payloads


class OurReader(Contender):
    """Fetches memory from our store as tensors: payloads, checked and decoded."""

    name = "Reader.fetch"

    def __init__(self, store: Store):
        self.folder = Path(store.uri)
        self.reader = Reader(store.uri)

    def get(self, doc_ids: Sequence[str]) -> Memory:  # type: ignore[override]
        return self.reader.fetch(doc_ids)
