"""Compare the check of a store's rows, in this process and in two others, with reading payloads and their CRC-32.

python benchmarks/verify.py --documents 163840
"""

import statistics
import tempfile
import zlib
from pathlib import Path

import lance
import numpy as np
from measure import PeakMemory, options, report, seconds
from random_store import create_store, rows_of

from pisco_index.store import Expectations, check_assets, check_rows, commit, write_fragment

SHARD, N_MEM, DIM = 4096, 8, 512


def make_store(folder: Path, documents: int) -> None:
    """Write documents of 8 vectors of width 512 in bf16, whose payloads have 8 KB each."""
    store = create_store(folder, dim=DIM)
    memory = np.random.default_rng(0).standard_normal((N_MEM, DIM), dtype=np.float32)
    for shard, start in enumerate(range(0, documents, SHARD)):
        ids = [f"document-{n}" for n in range(start, min(start + SHARD, documents))]
        commit(store, [write_fragment(folder, shard, rows_of(ids, [memory] * len(ids)))])


def read_and_sum(folder: Path) -> None:
    """Read the payloads and sum them: the baseline, in batches as large as those of the check."""
    table = lance.dataset(folder / "memory.lance")
    rows = table.count_rows()
    for start in range(0, rows, 1024):
        batch = table.take(range(start, min(start + 1024, rows)), columns=["payload"])
        for payload in batch.column(0).to_pylist():
            zlib.crc32(payload)


def verify_rows(folder: Path, processes: int) -> None:
    findings, _ = check_assets(folder)
    check_rows(findings, Expectations(), set(), processes=processes)
    assert not findings.problem_count


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--documents", type=int, default=163_840, help="number of documents in the store")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds, in which all ways take turns")
    args = parser.parse_args()

    ways = {
        "baseline": read_and_sum,
        "one": lambda store: verify_rows(store, processes=0),
        "two": lambda store: verify_rows(store, processes=2),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        make_store(store, args.documents)
        with PeakMemory() as peak:
            verify_rows(store, processes=2)
        for _ in range(args.rounds):
            for name, way in ways.items():
                times[name].append(seconds(lambda way=way: way(store)))
    best = {name: min(each) for name, each in times.items()}
    # A payload is a header of 24 bytes and the values.
    megabytes = args.documents * (24 + 2 * N_MEM * DIM) / 1e6
    result = {
        "documents": args.documents,
        "payload_mb": megabytes,
        "peak_mib": peak.mib,
        **{f"mb_per_s_{name}": megabytes / value for name, value in best.items()},
        "rows_per_s_two": args.documents / best["two"],
        "ratio_one": statistics.median(b / o for b, o in zip(times["baseline"], times["one"], strict=True)),
        "ratio_two": statistics.median(b / o for b, o in zip(times["baseline"], times["two"], strict=True)),
    }
    report(result, args.json)


if __name__ == "__main__":
    main()
