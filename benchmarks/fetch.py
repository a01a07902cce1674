"""Fetching documents by id: this store beside the pread floor, LMDB, SQLite, Parquet and plain Lance, warm and cold.

Every contender holds the same payloads, made by the store's own code, and is measured in turns with the floor: reading
the payloads at known places of one flat file, cold with all reads announced first. So each ratio is of two neighbours.
Every answer is compared byte by byte. Cold means that the contender's files were dropped from the page cache before
each query, while what it holds in memory stays.

    python benchmarks/fetch.py [--documents 100000] [--queries 500] [--cold-queries 60] [--json]

LMDB is measured if it is installed: pip install lmdb, or the extra ``bench``.
"""

import argparse
import os
import random
import shutil
import sqlite3
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lancedb.index import BTree
from measure import report

from pisco_index import Reader
from pisco_index.store import (
    Fingerprint,
    Store,
    StoreMeta,
    codec_by_name,
    commit,
    encode,
    memory_rows,
    text_hash,
    write_fragment,
)

N_MEM, DIM = 9, 512
SHARD = 5000
ROW_GROUP = 64
COUNTS = (5, 10, 50)
# A slow contender is asked less often.
FEWEST, LONGEST_S = 30, 8.0
FLOOR = "floor"


class Contender(ABC):
    """Something that finds payloads by id.

    Args:
        folder: where it may keep its files.
        records: all ids and payloads.
    """

    name: str
    folder: Path

    @abstractmethod
    def get(self, doc_ids: Sequence[str]) -> Sequence[bytes]:
        """The payloads, in request order."""

    def reopen(self) -> None:  # noqa: B027
        """Let go of files that the system cannot drop from memory while they are mapped."""

    def drop(self) -> None:
        """Have the system forget the contender's files."""
        self.reopen()
        for path in self.folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def warm(self) -> None:
        for path in self.folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    while file.read(1 << 24):
                        pass

    def close(self) -> None:  # noqa: B027
        """End using the files."""


class Floor(Contender):
    """A flat file and the place of each payload in it: what any store has to do at least."""

    name = FLOOR

    def __init__(self, folder: Path, records: Iterable[tuple[str, bytes]]):
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

    def get_parallel(self, doc_ids: Sequence[str]) -> list[bytes]:
        places = [self.places[doc_id] for doc_id in doc_ids]
        for start, size in places:
            os.posix_fadvise(self.fd, start, size, os.POSIX_FADV_WILLNEED)
        return [os.pread(self.fd, size, start) for start, size in places]

    def records(self) -> Iterator[tuple[str, bytes]]:
        for doc_id in self.places:
            yield doc_id, self.get([doc_id])[0]


class Lmdb(Contender):
    name = "LMDB"

    def __init__(self, folder: Path, records: Iterable[tuple[str, bytes]]):
        self.folder = folder
        self._open(readonly=False)
        with self.environment.begin(write=True) as transaction:
            for doc_id, payload in records:
                transaction.put(doc_id.encode(), payload)
        self.environment.sync(True)

    def _open(self, readonly: bool) -> None:
        import lmdb

        size = 1 << 36
        # Read-ahead would read 128 KiB around each payload: it is for scans.
        self.environment = lmdb.open(str(self.folder), map_size=size, readonly=readonly, readahead=False)

    def get(self, doc_ids: Sequence[str]) -> list[bytes]:
        with self.environment.begin() as transaction:
            return [transaction.get(doc_id.encode()) for doc_id in doc_ids]

    def reopen(self) -> None:
        self.environment.close()
        self._open(readonly=True)

    def close(self) -> None:
        self.environment.close()


class Sqlite(Contender):
    name = "SQLite"

    def __init__(self, folder: Path, records: Iterable[tuple[str, bytes]]):
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
    """Row groups of 64 rows; where each id lies is known."""

    name = "Parquet"

    def __init__(self, folder: Path, records: Iterable[tuple[str, bytes]]):
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
    """Lance's own way to read rows, whose numbers are known."""

    name = "Lance take"

    def __init__(self, store: Store):
        self.folder = Path(store.uri)
        self.table = store.table
        self.rows = {doc_id: row for row, doc_id in enumerate(store.ids())}

    def get(self, doc_ids: Sequence[str]) -> list[bytes]:
        # Lance keeps the order asked for.
        rows = self.table.take([self.rows[doc_id] for doc_id in doc_ids], columns=["doc_id", "payload"])
        assert rows.column("doc_id").to_pylist() == list(doc_ids)
        return rows.column("payload").to_pylist()


class LancedbWhere(Contender):
    """What a LanceDB user would write, with an index on the ids."""

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
    """Payloads of this store."""

    name = "Store.fetch"

    def __init__(self, store: Store):
        self.folder = Path(store.uri)
        self.store = store

    def get(self, doc_ids: Sequence[str]) -> Sequence[bytes]:
        return self.store.fetch(doc_ids).payloads


class OurReader(Contender):
    """Checked and decoded memory of this store, as tensors."""

    name = "Reader.fetch"

    def __init__(self, store: Store):
        self.folder = Path(store.uri)
        self.reader = Reader(store.uri)

    def get(self, doc_ids: Sequence[str]):
        return self.reader.fetch(doc_ids)


def make_store(folder: Path, documents: int) -> Store:
    """Documents of random vectors that are exact in bfloat16, in shards as a build writes them."""
    meta = StoreMeta(
        fingerprint=Fingerprint({"connector": "none"}),
        stage="hidden",
        dim=DIM,
        codec="bf16",
        checkpoint={"name": "random"},
        package_version="0",
    )
    store = Store.create(folder, meta=meta, assets={})
    generator, codec = np.random.default_rng(0), codec_by_name("bf16")
    shards = []
    for number, doc_ids in enumerate(batches((f"doc-{i:08}" for i in range(documents)), SHARD)):
        values = generator.standard_normal((len(doc_ids), N_MEM, DIM), dtype=np.float32)
        rows = memory_rows(
            doc_ids=doc_ids,
            tokens_total=[144] * len(doc_ids),
            tokens_fed=[144] * len(doc_ids),
            payloads=[encode(doc_id, memory, codec) for doc_id, memory in zip(doc_ids, values, strict=True)],
            text_hashes=[text_hash(doc_id) for doc_id in doc_ids],
            errors=[None] * len(doc_ids),
        )
        shards.append(write_fragment(store.uri, number, rows))
    commit(store, shards)
    return store.refresh()


def payloads_of(store: Store) -> Iterator[tuple[str, bytes]]:
    """All ids and payloads, as Lance reads them."""
    for batch in store.table.to_batches(columns=["doc_id", "payload"]):
        yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)


def batches(items: Iterable, size: int) -> Iterator[list]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def check(answer, expected: Sequence[bytes]) -> None:
    """Compare every byte of an answer: payloads, or the memory decoded from them."""
    if isinstance(answer, list | tuple):
        assert list(answer) == list(expected)
        return
    halves = np.frombuffer(b"".join(payload[24:] for payload in expected), "<u2").astype(np.uint32)
    assert answer.values.numpy().tobytes() == (halves << 16).tobytes()


def seconds(get: Callable, doc_ids: Sequence[str], floor: Floor) -> float:
    began = time.perf_counter()
    answer = get(doc_ids)
    took = time.perf_counter() - began
    check(answer, floor.get(doc_ids))
    return took


class Times:
    """Times of a contender and of the floor, in turns."""

    def __init__(self, contender: Contender, floor: Floor, k: int, queries: int, cold: bool):
        draw = partial(random.Random(k).sample, list(floor.places), k)
        floor_get = floor.get_parallel if cold else floor.get
        own, floors = [], []
        deadline = time.monotonic() + LONGEST_S
        for number in range(queries):
            if number > FEWEST and time.monotonic() > deadline:
                break
            for side, get, times in ((floor, floor_get, floors), (contender, contender.get, own)):
                if cold:
                    side.drop()
                times.append(seconds(get, draw(), floor))
        self.p50_us = statistics.median(own) * 1e6
        self.p99_us = float(np.percentile(own, 99)) * 1e6
        self.floor_us = statistics.median(floors) * 1e6
        self.ratio = self.p50_us / self.floor_us


def measure(contender: Contender, floor: Floor, queries: int, cold_queries: int) -> dict[str, float]:
    result = {}
    contender.warm()
    floor.warm()
    for cold, count in ((False, queries), (True, cold_queries)):
        for k in COUNTS:
            times = Times(contender, floor, k, count, cold)
            state = "cold" if cold else "warm"
            print(
                f"{contender.name:14} {state} k={k:<3} p50 {times.p50_us:8.0f} µs  p99 {times.p99_us:8.0f} µs  "
                f"floor {times.floor_us:6.0f} µs  ratio {times.ratio:6.2f}",
                flush=True,
            )
            for key in ("p50_us", "p99_us", "floor_us", "ratio"):
                result[f"{contender.name}/{state}/{k}/{key}"] = round(getattr(times, key), 2)
    contender.close()
    return result


def sustained(get: Callable, doc_ids: Sequence[str], k: int) -> float:
    """Queries a second from one thread, one after the other: the median of rounds of 10."""
    draw = partial(random.Random(0).sample, doc_ids, k)
    rates = []
    for _ in range(500):
        queries = [draw() for _ in range(10)]
        began = time.perf_counter()
        for query in queries:
            get(query)
        rates.append(len(queries) / (time.perf_counter() - began))
    return round(statistics.median(rates))


def measure_opening(uri: str) -> dict[str, float]:
    """What the first fetch of a process costs with and without a kept id map."""
    result = {}
    for name in ("first_fetch_without_map_ms", "first_fetch_with_map_ms"):
        store = Store.open(uri)
        began = time.perf_counter()
        store.fetch(["doc-00000000"])
        result[name] = round((time.perf_counter() - began) * 1000, 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500, help="warm ones of each contender and k")
    parser.add_argument("--cold-queries", type=int, default=60)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; by default the system's temporary folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()

    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        root = Path(scratch)
        store = make_store(root / "store", args.documents)
        opening = measure_opening(store.uri)
        # Before other clients are at work: threads that they leave behind would be measured too.
        rates = [sustained(each(store).get, list(store.ids()), 10) for each in (OurReader, OurStore)]

        def folder(name: str) -> Path:
            made = root / name
            made.mkdir()
            return made

        floor = Floor(folder("floor"), payloads_of(store))
        os.sync()
        run = partial(measure, floor=floor, queries=args.queries, cold_queries=args.cold_queries)
        for own in (OurStore, OurReader, LanceTake, LancedbWhere):
            figures |= run(own(store))
        floor.warm()
        skipped = []
        for other in (Lmdb, Sqlite, Parquet):
            if other is Lmdb and find_spec("lmdb") is None:
                skipped.append(other.name)
                print(f"{other.name} is not installed and not measured: pip install lmdb")
                continue
            contender = other(folder(other.name), floor.records())
            os.sync()
            figures |= run(contender)
            shutil.rmtree(contender.folder)
    result = {
        "warm_ratio": figures["Store.fetch/warm/10/ratio"],
        "cold_ratio": figures["Store.fetch/cold/10/ratio"],
        "queries_per_s": rates[0],
        "queries_per_s_payloads": rates[1],
        "documents": args.documents,
        "payload_bytes": 24 + 2 * N_MEM * DIM,
        "skipped": skipped,
        **opening,
        "figures": figures,
    }
    shown = {key: value for key, value in result.items() if key != "figures"}
    report(result if args.json else shown, args.json)


if __name__ == "__main__":
    main()
