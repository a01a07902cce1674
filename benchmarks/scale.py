"""Measure what the driver needs for a large corpus: memory to plan it, and time for each shard that it commits.

Each corpus of small JSON lines is planned in a process of its own. Its figure is the peak of resident memory, less that
of a process that plans a thousand documents. Then shards of one row, which are already written, go through the driver
and are committed as in a build. The time per shard is measured for each third of the shards.

    python benchmarks/scale.py --documents 1000000 10000000 --shards 3000
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import PeakMemory, options, report

BASE_DOCUMENTS = 1000
# With fewer shards, a third would have no commit of its own.
FEWEST_SHARDS = 100


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--documents", type=int, nargs="+", default=[1_000_000, 10_000_000], help="sizes of the corpora to plan"
    )
    parser.add_argument("--shards", type=int, default=3000, help="number of shards to commit")
    parser.add_argument("--plan", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.shards < FEWEST_SHARDS:
        parser.error(f"--shards {args.shards} is too small: give at least {FEWEST_SHARDS}")
    with tempfile.TemporaryDirectory() as scratch:
        if args.plan is not None:
            plan(Path(scratch), args.plan)
            return
        result = planning(args.documents) | driving(Path(scratch), args.shards)
    report(result, args.json)


def planning(counts: list[int]) -> dict[str, float]:
    """Return the peak memory, the time and the number of shards for each size of a corpus."""
    base_mib, _, _ = plan_in_process(BASE_DOCUMENTS)
    result: dict[str, float] = {}
    for count in counts:
        mib, result[f"plan_{count}_seconds"], result[f"plan_{count}_shards"] = plan_in_process(count)
        result[f"plan_{count}_mib"] = mib - base_mib
    result["plan_process_mib"] = base_mib
    return result


def plan_in_process(count: int) -> list[float]:
    """Return what ``plan`` prints in a process of its own."""
    command = [sys.executable, __file__, "--plan", str(count)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(word) for word in finished.stdout.split()]


def plan(folder: Path, count: int) -> None:
    """Plan a corpus of a size, and print the process's peak memory in MiB, the seconds, and the number of shards."""
    # Imported here: the process that drives needs none of it.
    from pisco_index.configs import CorpusConfig
    from pisco_index.corpus import open_corpus
    from pisco_index.pipeline.planning.planner import plan_corpus

    path = folder / "corpus.jsonl"
    with path.open("w") as file:
        for number in range(count):
            file.write(f'{{"id": "doc-{number}", "text": "The text of document {number}."}}\n')
    began = time.perf_counter()
    made = plan_corpus(open_corpus([str(path)], CorpusConfig()), shard_documents=4096)
    made.to_json()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(peak, seconds, len(made.shards))


def driving(folder: Path, count: int) -> dict[str, float]:
    """Return the driver's milliseconds per shard, by thirds, and the memory that it takes."""
    # Imported here: in a process that plans, torch would hide the plan's memory.
    from pisco_index.configs import RunConfig
    from pisco_index.interrupt import Interrupt
    from pisco_index.pipeline.driver import Driver
    from pisco_index.pipeline.planning.plan import Shard
    from pisco_index.pipeline.pools.fake import FakePool
    from pisco_index.pipeline.watch.progress import BuildProgress

    class Thirds(BuildProgress):
        """Notes the time of the first commit in each third of the shards, and the number of shards done by then."""

        done = 0

        def committed(self, shards: int) -> None:
            self.done += shards
            ends.setdefault(3 * self.done // count, (time.perf_counter(), self.done))

    store, results = write_shards(folder / "store", count)
    with PeakMemory() as memory:
        ends = {0: (time.perf_counter(), 0)}
        shards = [Shard(number, (), 1, 10) for number in range(count)]
        pool = FakePool(lambda shard, _: results[shard.number])
        Driver(store, pool, RunConfig(), Thirds()).drive(shards, Interrupt())
    times = {}
    for number, name in enumerate(("first", "second", "third")):
        (began, before), (ended, after) = ends[number], ends[number + 1]
        times[name] = (ended - began) / (after - before) * 1000
    return {
        **{f"driver_ms_a_shard_{name}_third": value for name, value in times.items()},
        "driver_third_to_first": times["third"] / times["first"],
        "driver_mib": memory.mib,
    }


def write_shards(uri: Path, count: int) -> tuple[Any, list[Any]]:
    """Write shards of one row, and return the store and what a worker would report of each shard."""
    from random_store import create_store, rows_of

    from pisco_index.pipeline.worker import ShardResult
    from pisco_index.store import write_fragment

    store = create_store(uri, dim=4, codec="fp32")
    memory = np.zeros((1, 1, 4), np.float32)
    rows = (rows_of([f"doc-{number}"], memory, "fp32") for number in range(count))
    return store, [ShardResult(write_fragment(store.uri, number, each)) for number, each in enumerate(rows)]


if __name__ == "__main__":
    main()
