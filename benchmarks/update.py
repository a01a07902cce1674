"""Measure what it costs to update, delete and compact as a store grows: 100 documents in stores of several sizes.

The stores have small payloads. The update plans and commits as a build does, but compresses nothing. For each size the
script prints the processor time and the wall time of each step, its peak memory, the bytes that it wrote, and the ratio
to the first size. The steps are: read the store's ids and hashes, read the corpus and compare it, commit, delete,
compact.

    python benchmarks/update.py --sizes 10000 100000 1000000 --documents 100
"""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measure import PeakMemory, options, report
from random_store import create_store

from pisco_index.configs import CompressionConfig, CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.pipeline.planning.comparison import Comparison
from pisco_index.pipeline.planning.planner import plan_corpus
from pisco_index.pipeline.planning.reading import open_sources, read_shard
from pisco_index.pipeline.planning.stored import PLAN_ASSET
from pisco_index.store import (
    Contents,
    Store,
    begin_update,
    codec_by_name,
    commit,
    compact,
    delete,
    encode,
    plan_in_force,
    text_hash,
    write_fragment,
)

SHARD = 4096
# Shards in a commit, as many as in a build.
COMMIT_SHARDS = 16
DIM = 64
# All rows share one payload, because the payloads are not read.
PAYLOAD = encode("any", np.zeros((2, DIM), np.float32), codec_by_name("bf16"))
COMPRESSION = CompressionConfig()


class Steps:
    """Measures steps: processor and wall seconds, peak memory, and bytes written to a folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.figures: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        size = self._size()
        with PeakMemory() as memory:
            wall, cpu = time.perf_counter(), time.process_time()
            yield
            self.figures[f"{name}_cpu_s"] = time.process_time() - cpu
            self.figures[f"{name}_wall_s"] = time.perf_counter() - wall
        self.figures[f"{name}_peak_mib"] = memory.mib
        self.figures[f"{name}_written_kb"] = (self._size() - size) / 1000

    def _size(self) -> int:
        return sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())


def text_of(number: int, is_changed: bool = False) -> str:
    return f"text {number}, changed" if is_changed else f"text {number}"


def rows_of(doc_ids: list[str], texts: list[str]) -> pa.Table:
    count = len(doc_ids)
    ones = pa.array(np.ones(count, np.int32))
    return pa.table(
        {
            "doc_id": doc_ids,
            "tokens_total": ones,
            "tokens_fed": ones,
            "n_mem": ones,
            "text_hash": pa.array([text_hash(text) for text in texts], pa.binary(16)),
            "payload": pa.array([PAYLOAD] * count, pa.large_binary()),
        }
    )


def make_store(uri: Path, size: int) -> Store:
    store = create_store(uri, dim=DIM, assets={PLAN_ASSET: b"{}"})
    written = []
    for shard, begin in enumerate(range(0, size, SHARD)):
        numbers = range(begin, min(begin + SHARD, size))
        rows = rows_of([f"doc-{n}" for n in numbers], [text_of(n) for n in numbers])
        written.append(write_fragment(uri, shard, rows))
        if len(written) == COMMIT_SHARDS or numbers[-1] == size - 1:
            commit(store, written)
            written = []
    return store.refresh()


def write_corpus(path: Path, size: int, changed: set[int]) -> None:
    with path.open("w") as file:
        for n in range(size):
            file.write(json.dumps({"id": f"doc-{n}", "text": text_of(n, n in changed)}) + "\n")


def measure(folder: Path, size: int, documents: int) -> dict[str, float]:
    """Make a store of a size, change and delete some of its documents, compact it, and return the figures by name."""
    uri, corpus = folder / f"store-{size}", folder / f"{size}.jsonl"
    store = make_store(uri, size)
    changed = set(np.linspace(0, size - 2, documents, dtype=int).tolist())
    write_corpus(corpus, size, changed)
    steps = Steps(uri)
    found = open_corpus([corpus], CorpusConfig())
    with steps.step("read_store"):
        contents = Contents.of(store)
    with steps.step("read_corpus"):
        plan = plan_corpus(
            found,
            shard_documents=SHARD,
            first=-(-size // SHARD),
            comparison=Comparison(contents, COMPRESSION, keeps_title=False, prune=False),
        )
    assert plan.changes is not None
    assert plan.changes.changed == len(changed)
    with steps.step("commit"):
        assert begin_update(store, plan.to_json(), np.empty(0, np.uint64))
        name = plan_in_force(store.refresh().table)
        sources = open_sources(plan.sources)
        for shard in plan.shards:
            wanted = list(read_shard(shard, sources))
            rows = rows_of([d.doc_id for d in wanted], [d.text for d in wanted])
            commit(store, [write_fragment(uri, shard.number, rows)], name)
    with steps.step("delete"):
        delete(uri, [f"doc-{n + 1}" for n in changed])
    with steps.step("compact"):
        compaction = compact(uri, older_than_hours=0)
    final = store.refresh()
    assert final.count == size - documents
    return {**steps.figures, "fragments_compacted": compaction.fragments_before - compaction.fragments}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="sizes of the stores, in documents"
    )
    parser.add_argument("--documents", type=int, default=100, help="number of documents to change, and to delete")
    args = parser.parse_args()

    result: dict[str, Any] = {
        "baseline": f"the same update of a store of {args.sizes[0]:,} documents",
        "documents": args.documents,
    }
    with tempfile.TemporaryDirectory() as scratch:
        # Loads the libraries, and is not measured.
        measure(Path(scratch), args.documents * 10, args.documents)
        found = {size: measure(Path(scratch), size, args.documents) for size in args.sizes}
    for size, figures in found.items():
        result |= {f"{size}_{name}": float(value) for name, value in figures.items()}
        for name in ("read_store_cpu_s", "read_corpus_cpu_s", "commit_cpu_s", "commit_written_kb", "delete_cpu_s"):
            result[f"{size}_ratio_{name}"] = figures[name] / found[args.sizes[0]][name]
    report(result, args.json)


if __name__ == "__main__":
    main()
