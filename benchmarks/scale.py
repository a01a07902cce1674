"""What a driver needs for a large corpus: memory to plan it, and time for each shard it commits.

    python benchmarks/scale.py [--documents 1000000 10000000] [--shards 3000] [--json]

Each corpus of small JSON lines is planned in a process of its own, whose highest resident memory is what is told,
less that of one that plans a thousand documents. Then shards of one row, written before, go through the driver in its
usual commits; the time of the driver and its commits is told for each third of them, and their ratio.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np
from measure import PeakMemory, report

BASE_DOCUMENTS = 1000
FEWEST_SHARDS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--shards", type=int, default=3000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plan", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.shards < FEWEST_SHARDS:
        parser.error(f"--shards must be {FEWEST_SHARDS} at least, or a third has no commit of its own")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.plan is not None:
            plan(Path(folder), arguments.plan)
            return
        result = planning([BASE_DOCUMENTS, *arguments.documents]) | driving(Path(folder), arguments.shards)
    report(result, arguments.json)


def planning(counts: list[int]) -> dict[str, float]:
    """Peak memory and time of planning so many documents, the first as the base of the others."""
    result: dict[str, float] = {}
    base = 0.0
    for count in counts:
        command = [sys.executable, __file__, "--plan", str(count)]
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
        peak, seconds, shards = map(float, finished.stdout.split())
        if count == counts[0]:
            base = peak
        else:
            result[f"plan_{count}_mib"] = peak - base
            result[f"plan_{count}_seconds"] = seconds
            result[f"plan_{count}_shards"] = shards
    result["plan_process_mib"] = base
    return result


def plan(folder: Path, count: int) -> None:
    """Plan a corpus of so many documents, in a process that ends after."""
    from pisco_index.configs import CorpusConfig
    from pisco_index.corpus import open_corpus
    from pisco_index.pipeline.planning.plan import plan_corpus

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
    """Milliseconds of the driver for each shard, by thirds, and the memory it takes."""
    from pisco_index.configs import RunConfig
    from pisco_index.pipeline.driver import Driver
    from pisco_index.pipeline.interrupt import Interrupt
    from pisco_index.pipeline.planning.plan import Shard
    from pisco_index.pipeline.pools.pool import Outcome
    from pisco_index.pipeline.watch.progress import BuildProgress
    from pisco_index.pipeline.worker import ShardResult
    from pisco_index.store import (
        Fingerprint,
        Store,
        StoreMeta,
        codec_by_name,
        encode,
        memory_rows,
        text_hash,
        write_fragment,
    )

    meta = StoreMeta(
        fingerprint=Fingerprint({}), stage="hidden", dim=4, codec="fp32", checkpoint={}, package_version="0"
    )
    store = Store.create(folder / "store", meta=meta, assets={})

    def written(number: int) -> ShardResult:
        doc_id = f"doc-{number}"
        payload = encode(doc_id, np.zeros((1, 4), np.float32), codec_by_name("fp32"))
        rows = memory_rows(
            doc_ids=[doc_id],
            tokens_total=[1],
            tokens_fed=[1],
            payloads=[payload],
            text_hashes=[text_hash("")],
            errors=[None],
        )
        return ShardResult(write_fragment(store.uri, number, rows))

    class Ready:
        """A pool whose shards are done when they are submitted."""

        description = "ready"
        capacity = 3

        def __init__(self) -> None:
            self.queue: deque[Shard] = deque()
            self.submit = self.queue.append

        def wait(self, _timeout_s: float) -> list[Outcome]:
            shard = self.queue.popleft()
            return [Outcome(shard, results[shard.number])]

        def workers(self) -> list:
            return []

    class Thirds(BuildProgress):
        """Notes when the first commit reaches each third of the shards."""

        done = 0

        def committed(self, shards: int) -> None:
            self.done += shards
            ends.setdefault(3 * self.done // count, (time.perf_counter(), self.done))

    results = {number: written(number) for number in range(count)}
    with PeakMemory() as memory:
        ends = {0: (time.perf_counter(), 0)}
        shards = [Shard(number, (), 1, 10) for number in range(count)]
        Driver(store, Ready(), RunConfig(), Thirds()).drive(shards, Interrupt())
    times = {}
    for number, name in enumerate(("first", "second", "third")):
        (began, before), (ended, after) = ends[number], ends[number + 1]
        times[name] = (ended - began) / (after - before) * 1000
    return {
        **{f"driver_ms_a_shard_{name}_third": value for name, value in times.items()},
        "driver_third_to_first": times["third"] / times["first"],
        "driver_mib": memory.mib,
    }


if __name__ == "__main__":
    main()
