"""Verifying a store against reading its payloads and computing their CRC-32 alone, in one process.

python benchmarks/verify.py [--documents 40960] [--json]
"""

import argparse
import statistics
import tempfile
import time
import zlib
from pathlib import Path

import lance
import numpy as np
from measure import PeakMemory, report

from pisco_index.store import (
    Expectations,
    Fingerprint,
    Store,
    StoreMeta,
    check_assets,
    check_rows,
    codec_by_name,
    commit,
    encode,
    memory_rows,
    text_hash,
    write_fragment,
)

SHARD, N_MEM, DIM = 4096, 8, 512


def make_store(folder: Path, documents: int) -> None:
    """Documents of 8 vectors of width 512 in bf16: payloads of 8 KB."""
    meta = StoreMeta(
        fingerprint=Fingerprint({}), stage="hidden", dim=DIM, codec="bf16", checkpoint={}, package_version="0.1.0"
    )
    store = Store.create(folder, meta=meta, assets={})
    memory, codec = np.random.default_rng(0).standard_normal((N_MEM, DIM), dtype=np.float32), codec_by_name("bf16")
    for shard, start in enumerate(range(0, documents, SHARD)):
        ids = [f"document-{n}" for n in range(start, min(start + SHARD, documents))]
        rows = memory_rows(
            doc_ids=ids,
            tokens_total=[128] * len(ids),
            tokens_fed=[128] * len(ids),
            payloads=[encode(doc_id, memory, codec) for doc_id in ids],
            text_hashes=[text_hash(doc_id) for doc_id in ids],
            errors=[None] * len(ids),
        )
        commit(store, [write_fragment(folder, shard, rows)])


def read_and_sum(folder: Path) -> None:
    """The baseline: payloads, in batches as large as verify's."""
    table = lance.dataset(folder / "memory.lance")
    rows = table.count_rows()
    for start in range(0, rows, 1024):
        batch = table.take(range(start, min(start + 1024, rows)), columns=["payload"])
        for payload in batch.column(0).to_pylist():
            zlib.crc32(payload)


def verify_rows(folder: Path, threads: int) -> None:
    findings, _ = check_assets(folder)
    check_rows(findings, Expectations(), set(), threads=threads)
    assert not findings.problem_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=40_960)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    ways = {"baseline": read_and_sum, "one": lambda f: verify_rows(f, 1), "two": lambda f: verify_rows(f, 2)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        make_store(store, arguments.documents)
        with PeakMemory() as peak:
            verify_rows(store, 2)
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                way(store)
                seconds[name].append(time.perf_counter() - began)
    best = {name: min(times) for name, times in seconds.items()}
    megabytes = arguments.documents * (24 + 2 * N_MEM * DIM) / 1e6
    result = {
        "documents": arguments.documents,
        "payload_mb": megabytes,
        "peak_mib": peak.mib,
        **{f"mb_per_s_{name}": megabytes / value for name, value in best.items()},
        "rows_per_s_two": arguments.documents / best["two"],
        "ratio_one": statistics.median(b / o for b, o in zip(seconds["baseline"], seconds["one"], strict=True)),
        "ratio_two": statistics.median(b / o for b, o in zip(seconds["baseline"], seconds["two"], strict=True)),
    }
    report(result, arguments.json)


if __name__ == "__main__":
    main()
