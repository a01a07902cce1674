"""What it costs to update, delete and compact, as a store grows: 100 documents in stores of several sizes.

Stores of small payloads are made with the store's own writer, and updated with the library's own planning and commits;
there is no compressor. Printed for each size: seconds of reading the store's ids and hashes, of reading and comparing
the corpus, and of committing, by the processor's clock and by the wall's; what each wrote; and the ratio to the
smallest store.

    python benchmarks/update.py [--sizes 10000 100000 1000000] [--documents 100] [--json]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measure import PeakMemory, report

from pisco_index.configs import CompressionConfig, CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.pipeline.planning.plan import open_sources, read_shard
from pisco_index.pipeline.planning.update import plan_update
from pisco_index.pipeline.watch.totals import PLAN_ASSET
from pisco_index.store import (
    Contents,
    Fingerprint,
    Store,
    StoreMeta,
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
COMMIT_SHARDS = 16
PAYLOAD = encode("any", np.zeros((2, 64), np.float32), codec_by_name("bf16"))
COMPRESSION = CompressionConfig()


class Stages:
    """Processor and wall seconds, peak memory and bytes written of each stage."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.figures: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
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


def text_of(number: int, turn: int = 0) -> str:
    return f"text {number}" if not turn else f"text {number}, turn {turn}"


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
    meta = StoreMeta(
        fingerprint=Fingerprint({"none": "none"}),
        stage="hidden",
        dim=64,
        codec="bf16",
        checkpoint={},
        package_version="benchmark",
    )
    store = Store.create(uri, meta=meta, assets={PLAN_ASSET: b"{}"})
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
            file.write(json.dumps({"id": f"doc-{n}", "text": text_of(n, int(n in changed))}) + "\n")


def measure(folder: Path, size: int, documents: int) -> dict[str, float]:
    uri, corpus = folder / f"store-{size}", folder / f"{size}.jsonl"
    store = make_store(uri, size)
    changed = set(np.linspace(0, size - 2, documents, dtype=int).tolist())
    write_corpus(corpus, size, changed)
    stages = Stages(uri)
    found = open_corpus([corpus], CorpusConfig())
    with stages.stage("read_store"):
        contents = Contents.of(store)
    with stages.stage("read_corpus"):
        plan = plan_update(
            found,
            contents,
            COMPRESSION,
            keeps_title=False,
            prune=False,
            first=-(-size // SHARD),
            shard_documents=SHARD,
        )
    assert plan.changes is not None
    assert plan.changes.changed == len(changed)
    with stages.stage("commit"):
        assert begin_update(store, plan.to_json(), np.empty(0, np.uint64))
        name = plan_in_force(store.refresh().table)
        sources = open_sources(plan.sources)
        for shard in plan.shards:
            wanted = list(read_shard(shard, sources))
            rows = rows_of([d.doc_id for d in wanted], [d.text for d in wanted])
            commit(store, [write_fragment(uri, shard.number, rows)], name)
    with stages.stage("delete"):
        delete(uri, [f"doc-{n + 1}" for n in changed])
    with stages.stage("compact"):
        compaction = compact(uri, older_than_hours=0)
    final = store.refresh()
    assert final.count == size - documents
    return {**stages.figures, "fragments_compacted": compaction.fragments_before - compaction.fragments}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()

    result: dict[str, Any] = {
        "baseline": f"the same update of a store of {args.sizes[0]:,} documents",
        "documents": args.documents,
    }
    with tempfile.TemporaryDirectory() as scratch:
        # The first use of a library costs what no later one does.
        measure(Path(scratch), args.documents * 10, args.documents)
        found = {size: measure(Path(scratch), size, args.documents) for size in args.sizes}
    for size, figures in found.items():
        result |= {f"{size}_{name}": float(value) for name, value in figures.items()}
        for name in ("read_store_cpu_s", "read_corpus_cpu_s", "commit_cpu_s", "commit_written_kb", "delete_cpu_s"):
            result[f"{size}_ratio_{name}"] = figures[name] / found[args.sizes[0]][name]
    report(result, args.json)


if __name__ == "__main__":
    main()
