"""Measure a store at Wikipedia's size: what each command takes, beside the same command on a small store.

First, `build` fills the store: the corpus is planned, written by two processes and committed as always, but the memory
is random (8 vectors of width 64 a document, int8), since no figure here depends on a compressor. A store that
an earlier run left in ``--folder`` is used again. Then every step runs in a process of its own, first on a store of
``--baseline-rows`` and then on the large one. Its figures are wall seconds, processor seconds of all its processes,
peak memory of the largest one, and megabytes added to the store. Steps that change a store work on a copy of hard
links.

    python benchmarks/scale.py --folder /data/scale                 (24.85 million rows, 15 GB)
    python benchmarks/scale.py --rows 100000 --only info verify
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from measure import options, print_json

COMMAND = Path(sys.executable).with_name("pisco-index")
VECTORS, DIM, TOKENS = 8, 64, 127
# Rows of the English Wikipedia in passages of 100 words.
WIKIPEDIA = 24_853_658
CHANGED = 10_000
QUERIES, DOCUMENTS = 2000, 10
# Files beside the table that processes change in place. A copy must not share them.
IN_PLACE = 1 << 20


@dataclass(frozen=True)
class Place:
    """A store of a size, with its corpus and checkpoint.

    Attributes:
        folder: folder of all three.
        rows: number of documents.
    """

    folder: Path
    rows: int

    @property
    def store(self) -> Path:
        return self.folder / f"store-{self.rows}"

    @property
    def corpus(self) -> Path:
        return self.folder / f"corpus-{self.rows}.tsv"

    @property
    def changes(self) -> Path:
        return self.folder / f"changes-{self.rows}.tsv"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def ids(self, count: int, seed: int = 0) -> list[str]:
        """Return the ids of documents chosen at random."""
        return np.random.default_rng(seed).integers(1, self.rows + 1, count).astype(str).tolist()


# The store.


def write_corpus(place: Place) -> None:
    """Write the corpus, and a corpus of changes: one half of its documents is changed, the other is new."""
    with place.corpus.open("w") as file:
        file.write("id\ttext\ttitle\n")
        for start in range(1, place.rows + 1, 100_000):
            numbers = range(start, min(start + 100_000, place.rows + 1))
            file.writelines(f"{n}\tPassage {n} of a corpus.\tTitle {n}\n" for n in numbers)
    changed = sorted({int(each) for each in place.ids(CHANGED // 2, seed=1)})
    new = range(place.rows + 1, place.rows + 1 + CHANGED - len(changed))
    with place.changes.open("w") as file:
        file.write("id\ttext\ttitle\n")
        file.writelines(f"{n}\tPassage {n}, written anew.\tTitle {n}\n" for n in [*changed, *new])


class RandomWriters:
    """A pool of two processes that write shards of random memory.

    Args:
        spec: everything that a worker requires.
    """

    description = "2 processes that write random memory"
    capacity = 6
    crashes: Mapping[int, int] = {}

    def __init__(self, spec: Any):
        self._processes = ProcessPoolExecutor(2, get_context("spawn"), initializer=_open_worker, initargs=(spec,))
        self._running: dict[Future[Any], Any] = {}

    def submit(self, shard: Any) -> None:
        self._running[self._processes.submit(_write_shard, shard)] = shard

    def wait(self, timeout_s: float) -> list[Any]:
        from pisco_index.pipeline.pools.pool import Outcome
        from pisco_index.pipeline.worker import ShardResult

        ended, _ = wait(self._running, timeout_s, FIRST_COMPLETED)
        return [Outcome(self._running.pop(each), ShardResult(each.result())) for each in ended]

    def workers(self) -> list[Any]:
        return []

    def sample(self, shard: Any, vectors: int) -> Any:  # noqa: ARG002
        from pisco_index.store import MemorySample

        return MemorySample(_memory(vectors), [1] * vectors, [""] * vectors)

    def stop(self) -> None:
        self._processes.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "RandomWriters":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


_worker: dict[str, Any] = {}


def _open_worker(spec: Any) -> None:
    from pisco_index.pipeline.planning.reading import open_sources

    _worker.update(spec=spec, sources=open_sources(spec.sources), memory=_memory(VECTORS << 12))


def _memory(vectors: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((vectors, DIM), dtype=np.float32)


def _write_shard(shard: Any) -> Any:
    from pisco_index.pipeline.planning.reading import read_shard
    from pisco_index.store import Store, codec_by_name, encode_batch, memory_rows, text_hash, write_fragment

    spec = _worker["spec"]
    if "calibration" not in _worker:
        _worker["calibration"] = Store.open(spec.uri).own_calibration()
    documents = list(read_shard(shard, _worker["sources"]))
    ids, values = [each.doc_id for each in documents], _worker["memory"][: len(documents) * VECTORS]
    rows = memory_rows(
        doc_ids=ids,
        tokens_total=[TOKENS] * len(ids),
        tokens_fed=[TOKENS] * len(ids),
        payloads=list(
            encode_batch(ids, values, [VECTORS] * len(ids), codec_by_name(spec.codec), _worker["calibration"])
        ),
        text_hashes=[text_hash(spec.compression.input_text(each.text, each.title)) for each in documents],
        errors=[None] * len(ids),
        titles=[each.title for each in documents],
    )
    return write_fragment(spec.uri, shard.number, rows)


def fill(place: Place) -> dict[str, float]:
    """Fill the store by a build whose workers write random memory. Return its figures."""
    from pisco_index import BuildConfig
    from pisco_index.pipeline import build as building
    from pisco_index.pipeline.watch.progress import BuildProgress

    class Times(BuildProgress):
        """Notes when writing begins and when each commit ends."""

        def started(self, *arguments: object) -> None:  # noqa: ARG002
            began.append(time.perf_counter())
            cpu.append(time.process_time())

        def committed(self, shards: int) -> None:
            commits.append(shards)

    began, cpu, commits = [time.perf_counter()], [time.process_time()], list[int]()
    kept, building.open_pool = building.open_pool, lambda spec, *_: RandomWriters(spec)  # type: ignore[assignment]
    try:
        config = BuildConfig.parse(
            {"store": {"index": False, "stage": "hidden", "codec": "int8", "measure_kl": False}}, "benchmark"
        )
        building.build([place.corpus], place.checkpoint, place.store, config, progress=Times())
    finally:
        building.open_pool = kept
    return {
        "plan_seconds": began[1] - began[0],
        "plan_cpu_s": cpu[1] - cpu[0],
        "write_seconds": time.perf_counter() - began[1],
        "commits": len(commits),
        "driver_ms_a_shard": 1000 * (time.process_time() - cpu[1]) / sum(commits),
        "bytes_a_row": size_of(place.store) / place.rows,
    }


# The steps. Each is a command, or a function that a new process calls.


HEADER = """
| step | seconds | cpu-seconds | on the small store | peak MiB | MB written | |
|---|---|---|---|---|---|---|"""
COMMON = {"seconds", "cpu_s", "peak_mib", "written_mb"}


def first_fetch(place: Place) -> None:
    from pisco_index import Reader

    with Reader(place.store) as reader:
        reader.fetch(place.ids(DOCUMENTS))


def queries(place: Place, threads: int) -> dict[str, float]:
    """Fetch the same lists of documents by a number of threads. Return the number of queries per second."""
    from pisco_index import Reader

    chosen = place.ids(QUERIES * DOCUMENTS, seed=2)
    lists = [chosen[start : start + DOCUMENTS] for start in range(0, len(chosen), DOCUMENTS)]
    with Reader(place.store) as reader:
        for each in lists:
            reader.fetch(each)
        workers = [
            threading.Thread(target=lambda own: [reader.fetch(each) for each in own], args=(lists[n::threads],))
            for n in range(threads)
        ]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return {"per_second": QUERIES / (time.perf_counter() - began)}


def read_rows(place: Place) -> dict[str, float]:
    """Read 1,024 rows by their numbers, and 1,024 titles by id, five times. Return the milliseconds of one time."""
    from pisco_index import Reader
    from pisco_index.store import Store

    store, ids = Store.open(place.store), place.ids(1100, seed=3)
    with Reader(place.store) as reader:
        ids = [doc_id for doc_id in ids if doc_id in reader][:1024]
        rows = np.random.default_rng(0).choice(store.count, 1024)
        times = {}
        for name, read in {
            "rows_ms": lambda: store.read(rows),
            "sizes_ms": lambda: reader.sizes(ids),
            "titles_ms": lambda: reader.titles(ids),
            "sample_ms": lambda: store.sample(1024, seed=0),
        }.items():
            read()
            began = time.perf_counter()
            for _ in range(5):
                read()
            times[name] = (time.perf_counter() - began) * 200
    return times


def copy(place: Place) -> None:
    """Copy the store by hard links, but for small files, which processes may change in place."""
    source, target = place.store, changed(place).store
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    if source.endswith(".lance") or Path(source).stat().st_size > IN_PLACE:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def changed(place: Place) -> Place:
    """Return the place of the copy that steps may change."""
    return Place(place.folder / "changed", place.rows)


@dataclass(frozen=True)
class Command:
    """A step that runs `pisco-index` with the arguments that it makes for a store."""

    arguments: Callable[[Place], list[Any]]


@dataclass(frozen=True)
class Call:
    """A step that a new process of this script runs. It may return figures of its own."""

    function: Callable[[Place], Mapping[str, float] | None]


def export(place: Place) -> list[Any]:
    ids = place.folder / f"ids-{place.rows}.txt"
    ids.write_text("\n".join(sorted(set(place.ids(1000, seed=4)))) + "\n")
    out = place.folder / "exported"
    shutil.rmtree(out, ignore_errors=True)
    return ["export", place.store, "--out", out, "--ids", ids]


def delete(place: Place, seed: int) -> list[Any]:
    ids = place.folder / f"deleted-{place.rows}.txt"
    ids.write_text("\n".join(sorted(set(place.ids(min(1000, place.rows // 4), seed)))) + "\n")
    return ["delete", changed(place).store, "--ids", ids, "--skip-missing"]


def update(place: Place) -> list[Any]:
    # A store of which most documents change wants a confirmation.
    options = ["--recompress"] if place.rows < 2 * CHANGED else []
    return ["build", place.changes, "--checkpoint", place.checkpoint, "--out", changed(place).store, *options]


STEPS: dict[str, Command | Call] = {
    "first fetch after the build": Call(first_fetch),
    "first fetch of the next process": Call(first_fetch),
    "queries, 1 thread": Call(partial(queries, threads=1)),
    "queries, 8 threads": Call(partial(queries, threads=8)),
    "read": Call(read_rows),
    "info": Command(lambda place: ["info", place.store]),
    "status": Command(lambda place: ["status", place.store]),
    "export": Command(export),
    "verify": Command(lambda place: ["verify", place.store]),
    "copy": Call(copy),
    "update": Command(update),
    "first fetch after the update": Call(lambda place: first_fetch(changed(place))),
    "delete": Command(partial(delete, seed=5)),
    "first fetch after the deletion": Call(lambda place: first_fetch(changed(place))),
    "compact": Command(lambda place: ["compact", changed(place).store]),
    "first fetch after compact": Call(lambda place: first_fetch(changed(place))),
    "read after compact": Call(lambda place: read_rows(changed(place))),
    "delete from that": Command(partial(delete, seed=6)),
    "read after that": Call(lambda place: read_rows(changed(place))),
    "info after that": Command(lambda place: ["info", changed(place).store]),
}


def run(name: str, place: Place) -> dict[str, float]:
    """Run a step in a process of its own. Return its figures.

    Raises:
        SystemExit: the step failed.
    """
    step = STEPS[name]
    if isinstance(step, Command):
        line = [COMMAND, *step.arguments(place)]
    else:
        line = [sys.executable, __file__, "--step", name, "--folder", place.folder, "--rows", place.rows]
    before = size_of(place.folder / "changed" / place.store.name)
    began = time.perf_counter()
    words = list(map(str, line))
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(words, stdout=said, stderr=said) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        said.seek(0)
        text = said.read()
    if process.returncode:
        sys.exit(f"the step {name!r} failed with exit code {process.returncode}:\n{text[-2000:]}")
    figures = {
        "seconds": seconds,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss / 1024,
        "written_mb": max(size_of(place.folder / "changed" / place.store.name) - before, 0) / 1e6,
    }
    return figures | (json.loads(text.splitlines()[-1]) if isinstance(step, Call) else {})


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def folder_of(given: Path | None) -> Iterator[Path]:
    if given:
        given.mkdir(parents=True, exist_ok=True)
        yield given
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)


def prepare(place: Place) -> dict[str, float]:
    """Make the corpus, the checkpoint and the store, unless they are there. Return the figures of the build."""
    figures = place.store.with_suffix(".json")
    if figures.exists():
        return json.loads(figures.read_text())
    if not place.checkpoint.exists():
        subprocess.run(
            [COMMAND, "checkpoint", "new", place.checkpoint, "--tiny"], check=True, stdout=subprocess.DEVNULL
        )
    write_corpus(place)
    shutil.rmtree(place.store, ignore_errors=True)
    line = [sys.executable, __file__, "--step", "fill", "--folder", place.folder, "--rows", str(place.rows)]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    found = json.loads(done.stdout.splitlines()[-1]) | {"peak_mib": peak}
    figures.write_text(json.dumps(found))
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=WIKIPEDIA, help="number of documents")
    parser.add_argument("--baseline-rows", type=int, default=4096, help="number of documents in the small store")
    parser.add_argument("--folder", type=Path, help="folder that keeps the stores; a temporary one if left out")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="run only the steps that begin with one of these")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        place = Place(args.folder, args.rows)
        step = Call(fill) if args.step == "fill" else STEPS[args.step]
        assert isinstance(step, Call)
        print(json.dumps(step.function(place) or {}))
        return
    wanted = [name for name in STEPS if not args.only or name.startswith(tuple(args.only))]
    with folder_of(args.folder) as folder:
        small, large = Place(folder, args.baseline_rows), Place(folder, args.rows)
        prepare(small)
        result: dict[str, Any] = {"baseline": f"a store of {small.rows:,} documents", "rows": large.rows}
        result |= {f"build {key}": value for key, value in prepare(large).items()}
        for key, value in result.items():
            print(f"{key:24} {value:,.1f}" if isinstance(value, float) else f"{key:24} {value}")
        print(HEADER)
        for name in wanted:
            base, found = run(name, small), run(name, large)
            result |= {f"{name} {key}": value for key, value in found.items()}
            result |= {f"{name} {key} of small": value for key, value in base.items()}
            rest = ", ".join(f"{found[key]:,.1f} {key}" for key in found.keys() - COMMON)
            print(
                f"| {name} | {found['seconds']:.2f} | {found['cpu_s']:.2f} | {base['cpu_s']:.2f} | "
                f"{found['peak_mib']:,.0f} | {found['written_mb']:.1f} | {rest} |",
                flush=True,
            )
        if args.json:
            print_json(result)


if __name__ == "__main__":
    main()
