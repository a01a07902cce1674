"""Compare ways to fetch documents by id: our store, the pread floor, LMDB, SQLite, Parquet and plain Lance.

All contenders hold the same payloads, written by the store's own code. Each contender takes turns with the floor, which
reads the payloads at known places of one flat file; cold, it announces all reads first. So the two sides of a ratio are
measured next to each other. Every answer is compared byte by byte. Cold means that the contender's files were dropped
from the page cache before each query. What the contender keeps in its own memory stays.

    python benchmarks/fetch.py --documents 100000 --queries 500 --cold-queries 60

It also prints how many queries a reader answers per second (one thread, several threads, lists together), and the times
of a decoder's embeddings, each next to its baseline.

LMDB is measured if it is installed: pip install lmdb, or pip install -e '.[bench]'.
"""

import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from contenders import (
    Contender,
    Floor,
    LancedbWhere,
    LanceTake,
    Lmdb,
    OurReader,
    OurStore,
    Parquet,
    Records,
    Sqlite,
    batches,
)
from measure import options, print_json, report, seconds
from random_store import create_store, rows_of
from reader_rates import embedding_times, rates

from pisco_index import Reader
from pisco_index.store import Store, commit, write_fragment

N_MEM, DIM = 9, 512
# Bytes of a payload's header.
HEADER = 24
SHARD = 5000
COUNTS = (5, 10, 50)
# A contender that has been asked for LONGEST_S seconds gets no more queries, but at least FEWEST.
FEWEST, LONGEST_S = 30, 8.0


def make_store(uri: Path, documents: int) -> Store:
    """Write documents of random vectors, in shards as a build writes them."""
    store = create_store(uri, dim=DIM)
    generator = np.random.default_rng(0)
    shards = []
    for number, doc_ids in enumerate(batches((f"doc-{i:08}" for i in range(documents)), SHARD)):
        memory = generator.standard_normal((len(doc_ids), N_MEM, DIM), dtype=np.float32)
        shards.append(write_fragment(store.uri, number, rows_of(doc_ids, memory)))
    commit(store, shards)
    return store.refresh()


def payloads_of(store: Store) -> Iterator[tuple[str, bytes]]:
    """Yield all ids and payloads, as Lance reads them."""
    for batch in store.table.to_batches(columns=["doc_id", "payload"]):
        yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)


def check(answer, expected: Sequence[bytes]) -> None:
    """Compare every byte of an answer, which is payloads or the memory decoded from them."""
    if isinstance(answer, list | tuple):
        assert list(answer) == list(expected)
        return
    halves = np.frombuffer(b"".join(payload[HEADER:] for payload in expected), "<u2").astype(np.uint32)
    assert answer.values.numpy().tobytes() == (halves << 16).tobytes()


def query_s(get: Callable, doc_ids: Sequence[str], floor: Floor) -> float:
    """Return the seconds that a query takes, and check its answer."""
    began = time.perf_counter()
    answer = get(doc_ids)
    took = time.perf_counter() - began
    check(answer, floor.get(doc_ids))
    return took


class Times:
    """Times of queries for k documents, by a contender and by the floor in turns."""

    def __init__(self, contender: Contender, floor: Floor, k: int, queries: int, cold: bool):
        draw = partial(random.Random(k).sample, list(floor.places), k)
        floor_get = floor.get_announced if cold else floor.get
        own, floors = [], []
        deadline = time.monotonic() + LONGEST_S
        for number in range(queries):
            if number > FEWEST and time.monotonic() > deadline:
                break
            for side, get, times in ((floor, floor_get, floors), (contender, contender.get, own)):
                if cold:
                    side.drop()
                times.append(query_s(get, draw(), floor))
        self.p50_us = statistics.median(own) * 1e6
        self.p99_us = float(np.percentile(own, 99)) * 1e6
        self.floor_us = statistics.median(floors) * 1e6
        self.ratio = self.p50_us / self.floor_us


def measure(contender: Contender, floor: Floor, queries: int, cold_queries: int) -> dict[str, float]:
    """Print a contender's figures, and return them by name; then close it."""
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


def measure_other_stores(root: Path, records: Callable[[], Records], run: Callable) -> tuple[dict[str, float], list]:
    """Return the figures of stores that are not Lance's, and the names of those that are not installed."""
    figures: dict[str, float] = {}
    skipped = []
    for kind in (Lmdb, Sqlite, Parquet):
        if kind is Lmdb and find_spec("lmdb") is None:
            skipped.append(kind.name)
            print(f"{kind.name} is skipped, because it is not installed: pip install lmdb")
            continue
        contender = kind(make_folder(root, kind.name), records())
        os.sync()
        figures |= run(contender)
        shutil.rmtree(contender.folder)
    return figures, skipped


def make_folder(root: Path, name: str) -> Path:
    made = root / name
    made.mkdir()
    return made


def queries_per_s(get: Callable, doc_ids: Sequence[str], k: int) -> float:
    """Return the queries a second of one thread that asks one query after another: the median of rounds of 10."""
    draw = partial(random.Random(0).sample, doc_ids, k)
    rates = []
    for _ in range(500):
        queries = [draw() for _ in range(10)]
        rates.append(len(queries) / seconds(lambda asked=queries: [get(query) for query in asked]))
    return round(statistics.median(rates))


def measure_first_fetch(uri: str) -> dict[str, float]:
    """Return the milliseconds of the first fetch from a store: without a cached id map, and then with it."""
    result = {}
    for name in ("first_fetch_without_map_ms", "first_fetch_with_map_ms"):
        store = Store.open(uri)
        result[name] = round(seconds(lambda store=store: store.fetch(["doc-00000000"])) * 1000, 2)
    return result


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--documents", type=int, default=100_000, help="number of documents in each store")
    parser.add_argument("--queries", type=int, default=500, help="number of warm queries, for each contender and k")
    parser.add_argument("--cold-queries", type=int, default=60, help="number of cold queries, for each contender and k")
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure; default: the temporary folder")
    args = parser.parse_args()

    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        root = Path(scratch)
        store = make_store(root / "store", args.documents)
        first = measure_first_fetch(store.uri)
        # These come before the other contenders, whose threads outlive their queries and would be measured too.
        doc_ids = list(store.ids())
        payload_rate = queries_per_s(OurStore(store).get, doc_ids, 10)
        with Reader(store.uri) as reader:
            reader_rates = rates(reader, doc_ids)
        embeddings = embedding_times(make_folder(root, "embeddings"))
        floor = Floor(make_folder(root, "floor"), payloads_of(store))
        os.sync()
        run = partial(measure, floor=floor, queries=args.queries, cold_queries=args.cold_queries)
        for kind in (OurStore, OurReader, LanceTake, LancedbWhere):
            figures |= run(kind(store))
        floor.warm()
        others, skipped = measure_other_stores(root, floor.records, run)
        figures |= others
    result = {
        "warm_ratio": figures["Store.fetch/warm/10/ratio"],
        "cold_ratio": figures["Store.fetch/cold/10/ratio"],
        "decoded_warm_ratio": figures["Reader.fetch/warm/10/ratio"],
        "decoded_cold_ratio": figures["Reader.fetch/cold/10/ratio"],
        "queries_per_s_payloads": payload_rate,
        **reader_rates,
        **embeddings,
        "documents": args.documents,
        "payload_bytes": HEADER + 2 * N_MEM * DIM,
        "skipped": skipped,
        **first,
    }
    report(result, False)
    if args.json:
        print_json(result | {"figures": figures})


if __name__ == "__main__":
    main()
