"""Builds under random faults, by seed: whatever befalls them, each document is stored once, and as it should be.

    python tests/torture.py --seeds 0-19 --json torture.json
    python tests/torture.py --throughput

Even seeds build on a Ray cluster of three nodes, odd ones in one process. A seed's corpus has poison in it (documents
that workers raise at, die of or hang at), written files are torn and commits fail as tests/faults/sitecustomize.py has
it, and from outside workers, drivers and nodes are killed and stopped. A driver that ended is started again by the
same command, until the build is done. Then the store is compared with an undisturbed build's.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

FAULTS = Path(__file__).parent / "faults"
DOCUMENTS, SHARD_DOCUMENTS = 900, 4
SHARDS = DOCUMENTS // SHARD_DOCUMENTS
NODES = 3
LOOK_S = 0.1
# Commands until a build is done, and seconds until one is given up.
MOST_COMMANDS, MOST_S = 60, 1800.0
# Seconds in which whatever a build started must be gone after it.
GONE_S = 30.0

RAISING = ("RAISE", "RAISE-LATE")
DEADLY = {
    "ray": ("SEGV-LATE", "EXIT", "KILL", "HANG", "STOP-LATE", "KILL-LATE", "HANG-LATE", "STOP", "EXIT-LATE"),
    "here": ("SEGV-LATE", "HANG", "EXIT", "KILL-LATE", "HANG-LATE"),
}
# What is done from outside, by its weight; the second column is for when only poison is left to be looked into.
INJECTED = {
    "ray": {
        "worker SIGKILL": (4, 4),
        "all workers SIGKILL": (1, 3),
        "worker SIGTERM": (2, 2),
        "worker SIGSTOP, SIGCONT": (3, 2),
        "worker SIGSTOP": (1, 1),
        "driver SIGKILL": (2, 1),
        "driver SIGTERM": (1, 0),
        "driver SIGINT": (1, 0),
        "driver SIGSTOP, SIGCONT": (1, 1),
        "second driver": (1, 0),
        "node removed": (1, 1),
        "node killed": (1, 1),
    },
    "here": {
        "driver SIGKILL": (4, 1),
        "driver SIGTERM": (1, 1),
        "driver SIGINT": (1, 0),
        "driver SIGSTOP, SIGCONT": (2, 0),
        "second driver": (1, 0),
        "child SIGKILL": (0, 4),
        "child SIGSTOP": (0, 1),
    },
}
RATES = {
    "write": {"short": 0.02, "gone": 0.02, "garbled": 0.02, "dies": 0.006},
    "commit": {"refused": 0.12, "landed": 0.1, "full": 0.01, "dies before": 0.01, "dies after": 0.01},
}
_OWN = "test_torture.py::test_builds_under_random_faults_lose_and_double_nothing"
_BUILD, _DRIVER, _FAULTS = (f"pipeline/test_{name}.py::" for name in ("build", "driver", "faults"))
_HERE, _RAY, _WATCHDOG = (f"pipeline/pools/test_{name}.py::" for name in ("in_process", "ray_pool", "watchdog"))
# The table of docs/reliability.md: a fault, its kinds, what happens, and the test that shows it by itself.
TABLE = (
    (
        "a document that its worker raises at",
        {f"poison {fault}" for fault in RAISING},
        "quarantined",
        f"{_FAULTS}test_documents_that_raise_or_kill_this_process_are_quarantined_in_the_end",
    ),
    (
        "a document that its process dies of: SIGSEGV, SIGKILL, an exit",
        {f"poison {fault}{late}" for fault in ("SEGV", "KILL", "EXIT") for late in ("", "-LATE")},
        "quarantined; in one process after two runs that died",
        f"{_FAULTS}test_documents_that_raise_or_kill_this_process_are_quarantined_in_the_end",
    ),
    (
        "a document that hangs or stops its process",
        {f"poison {fault}{late}" for fault in ("HANG", "STOP") for late in ("", "-LATE")},
        "quarantined, after `hang_seconds`",
        f"{_FAULTS}test_all_kinds_at_once_on_ray",
    ),
    (
        "a Ray worker gets SIGKILL or SIGTERM",
        {"worker SIGKILL", "all workers SIGKILL", "worker SIGTERM"},
        "replaced; its shards are tried again",
        f"{_RAY}test_a_killed_worker_costs_a_try_and_no_document",
    ),
    (
        "a Ray worker is stopped, for some seconds or for good",
        {"worker SIGSTOP, SIGCONT", "worker SIGSTOP"},
        "it goes on, or is ended after `hang_seconds` and replaced",
        f"{_RAY}test_a_ray_worker_that_broke_while_it_had_nothing_to_do_blames_no_call",
    ),
    ("a node leaves, or dies with its processes", {"node removed", "node killed"}, "its shards go elsewhere", _OWN),
    (
        "the process that wrote a file dies right after",
        {"write dies"},
        "the shard is done again; the file is deleted",
        f"{_BUILD}test_a_killed_build_resumes_to_the_same_store",
    ),
    (
        "the driver gets SIGKILL",
        {"driver SIGKILL"},
        "the same command goes on",
        f"{_BUILD}test_a_killed_build_resumes_to_the_same_store",
    ),
    (
        "the driver dies within a commit, before it lands or after",
        {"commit dies before", "commit dies after"},
        "the same command goes on",
        _OWN,
    ),
    (
        "the driver gets SIGTERM or SIGINT",
        {"driver SIGTERM", "driver SIGINT"},
        "it finishes what it computes; the same command goes on",
        f"{_DRIVER}test_an_interrupt_commits_what_is_finished_and_begins_nothing_new",
    ),
    (
        "the driver is stopped for some seconds",
        {"driver SIGSTOP, SIGCONT"},
        "it goes on, and blames no worker",
        f"{_WATCHDOG}test_a_driver_that_was_stopped_blames_nobody",
    ),
    (
        "a second driver",
        {"second driver"},
        "refused, exit code 75",
        f"{_BUILD}TestRefusals::test_a_store_another_build_is_writing",
    ),
    (
        "the child process that tries documents is killed or stopped",
        {"child SIGKILL", "child SIGSTOP"},
        "replaced",
        f"{_HERE}test_a_child_that_was_killed_while_it_had_nothing_to_do_blames_no_call",
    ),
    (
        "a written file is cut, lost, or without its end",
        {"write short", "write gone", "write garbled"},
        "not committed; the shard is written again",
        f"{_DRIVER}test_a_fragment_that_lost_its_file_is_written_again",
    ),
    ("a commit fails", {"commit refused"}, "tried again", _OWN),
    (
        "a commit lands and reports an error",
        {"commit landed"},
        "recognised",
        "store/test_commit.py::test_a_commit_that_landed_but_reported_an_error_is_recognised",
    ),
    (
        "the disk is full at a commit",
        {"commit full"},
        "exit code 2; the same command goes on",
        "store/test_commit.py::test_a_disk_that_fills_before_the_commit_loses_nothing",
    ),
)
# Exit codes of builds that say what happened; others are those of poison that ends its process.
SAID, POISONED = {0, 3, 75, 130}, {7, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGTERM}


class TortureError(Exception):
    """A build did not stand it."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write_corpus(path: Path, poison: dict[int, str], documents: int = DOCUMENTS) -> Path:
    with path.open("w") as file:
        for number in range(documents):
            text = f"Document {number} is about " + "the history of the city and its river " * (number % 7)
            if number in poison:
                text += f" POISON-{poison[number]}"
            file.write(json.dumps({"id": f"doc-{number}", "title": f"Title {number}", "text": text}) + "\n")
    return path


def write_settings(path: Path, **run: Any) -> Path:
    settings = {
        # A passage at a time: what else is in a batch rounds differently, and a shard without its poison is another.
        "run": {"shard_documents": SHARD_DOCUMENTS, "commit_shards": 4, "attempts": 2, "token_budget": 1, **run},
        "compression": {"dtype": "float32", "max_length": 64},
        "store": {"codec": "fp32"},
    }
    path.write_text(json.dumps(settings))
    return path


def rows(uri: Path) -> list[tuple[str, bytes | None, str | None, int]]:
    import lance

    table = lance.dataset(str(uri / "memory.lance")).to_table(columns=["doc_id", "payload", "error", "n_mem"])
    return list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))


def shards_done(uri: Path) -> int:
    """Data files in the latest version: one a shard."""
    import lance

    with suppress(OSError, ValueError):
        return len(lance.dataset(str(uri / "memory.lance")).get_fragments())
    return 0


def environment(faults: Path | None = None) -> dict[str, str]:
    path = os.pathsep.join([*([str(FAULTS)] if faults else []), *filter(None, sys.path[1:])])
    added = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **added, **({"PISCO_FAULTS": str(faults)} if faults else {})}


def processes() -> Iterator[tuple[int, int, str, str]]:
    """Process id, parent, start time and command line of all processes that live."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            state, parent, *rest = (entry / "stat").read_text().rpartition(")")[2].split()
            if state not in "ZX":
                yield int(entry.name), int(parent), rest[17], (entry / "cmdline").read_bytes().decode(errors="replace")


class Here:
    """A build in one process, whose documents are tried in a child process."""

    name = "here"
    arguments: Sequence[str] = ()

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def workers(self, driver: int) -> dict[int, str]:
        """Ids and start times of the worker processes."""
        return {pid: began for pid, parent, began, line in processes() if parent == driver and "spawn_main" in line}


class OnRay:
    """A build on a cluster of its own: three nodes of one core each, on this machine."""

    name = "ray"

    def __init__(self, environment: dict[str, str]):
        self._environment = environment

    def __enter__(self) -> "OnRay":
        # Nodes and their workers have the environment of this process.
        os.environ.update(self._environment)
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        for _ in range(NODES - 1):
            self._add_node()
        self.arguments = ("--ray", self._cluster.address, "--workers", str(NODES))
        return self

    def __exit__(self, *exc: object) -> None:
        self._cluster.shutdown()

    def workers(self, driver: int) -> dict[int, str]:
        """Ids and start times of the worker processes."""
        nodes = {self._raylet(node) for node in self._cluster.list_all_nodes()}
        return {
            pid: began
            for pid, parent, began, line in processes()
            if parent in nodes and line.startswith("ray::RayShardWorker")
        }

    def replace_node(self, chance: random.Random, *, graceful: bool) -> None:
        """Take a node away, workers and all, and add another."""
        node = chance.choice(sorted(self._cluster.worker_nodes, key=self._raylet))
        mine = [pid for pid, parent, _, _ in processes() if parent == self._raylet(node)]
        self._cluster.remove_node(node, allow_graceful=graceful)
        # A machine that goes away takes the processes with it that are stopped.
        for pid in mine:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._add_node()

    def _add_node(self) -> None:
        # Ray gives a node 30 s to start, which a busy machine may not keep.
        for left in reversed(range(5)):
            try:
                self._cluster.add_node(num_cpus=1)
                return
            except Exception:
                if not left:
                    raise

    @staticmethod
    def _raylet(node: Any) -> int:
        return node.all_processes["raylet"][0].process.pid


class Torture:
    """One seed: a build, its faults, and what became of it.

    Args:
        seed: decides poison, faults, and what is injected when.
        folder: for corpus, store and logs.
        checkpoint: to compress with.
        undisturbed: a store of the same corpus without poison.
        injected: faults from outside.
    """

    def __init__(self, seed: int, folder: Path, checkpoint: Path, undisturbed: Path, injected: int):
        self.seed, self.folder, self.store = seed, folder, folder / "store"
        self.chance = random.Random(seed)
        self.faults = folder / "faults"
        self.faults.mkdir(parents=True)
        (self.faults / "settings.json").write_text(json.dumps({"seed": seed, "pace_s": 0.04, "rates": RATES}))
        self.place = Here() if seed % 2 else OnRay(environment(self.faults))
        self.poison = self._poison()
        self._checkpoint, self._undisturbed = checkpoint, undisturbed
        self._pending = self._plan(injected)
        self._due_since = 0.0
        self._journal: list[tuple[float, str]] = []
        self._injected: Counter[str] = Counter()
        self._codes: list[int] = []
        self._seen: dict[int, str] = {}
        self._began = time.time()

    def run(self) -> dict[str, Any]:
        """Do it, and tell what was injected and lost."""
        problems: list[str] = []
        found: dict[str, int] = {}
        try:
            with self.place:
                self._build()
                self._require_gone()
            found = self._compare()
        except Exception as error:  # noqa: BLE001  told with all that is known
            problems.append(str(error) if isinstance(error, TortureError) else traceback.format_exc())
        counted = self._injected + self._struck() + Counter(f"poison {fault}" for fault in self.poison.values())
        return {
            "seed": self.seed,
            "place": self.place.name,
            "seconds": round(time.time() - self._began, 1),
            "commands": len(self._codes),
            "codes": {str(code): count for code, count in sorted(Counter(self._codes).items())},
            "faults": dict(sorted(counted.items())),
            "documents": DOCUMENTS,
            **found,
            "problems": problems,
        }

    def report(self) -> str:
        """What happened when, and what each driver said last."""
        struck = [
            (when, f"{path.name}: {fault}") for path in self._moments() for when, fault in [_moment(path)] if fault
        ]
        lines = [f"{when - self._began:7.1f} s  {what}" for when, what in sorted([*self._journal, *struck])]
        for log in sorted(self.folder.glob("driver-*.txt")):
            lines += [f"--- {log.name}", *log.read_text().splitlines()[-25:]]
        return "\n".join(lines)

    def _poison(self) -> dict[int, str]:
        deadly = DEADLY[self.place.name]
        turn = self.seed // 2
        faults = [deadly[turn % len(deadly)]]
        if self.place.name == "ray":
            faults.append(deadly[(turn + 4) % len(deadly)])
        faults += [self.chance.choice(RAISING) for _ in range(8)]
        return dict(zip(self.chance.sample(range(DOCUMENTS), len(faults)), faults, strict=True))

    def _plan(self, count: int) -> list[tuple[int, str]]:
        """What is injected from outside, and after how many shards."""
        spoiled = len({number // SHARD_DOCUMENTS for number in self.poison})
        kinds = INJECTED[self.place.name]
        late = max(1, count // 3)
        planned = []
        for number in range(count):
            column = int(number < late)
            (kind,) = self.chance.choices(list(kinds), [weights[column] for weights in kinds.values()])
            first, last = (SHARDS - spoiled, SHARDS - 2) if column else (1, SHARDS - spoiled - 1)
            planned.append((self.chance.randint(first, last), kind))
        return sorted(planned)

    def _build(self) -> None:
        write_corpus(self.folder / "corpus.jsonl", self.poison)
        write_settings(self.folder / "config.yaml", hang_seconds=6)
        while True:
            if len(self._codes) == MOST_COMMANDS or time.time() - self._began > MOST_S:
                raise TortureError(f"the build is not done after {len(self._codes)} commands")
            code = self._command()
            if code in (0, 3) and self._is_complete():
                return

    def _is_complete(self) -> bool:
        from pisco_index import build_status
        from pisco_index.errors import StoreError

        try:
            return build_status(self.store).is_complete
        except StoreError:
            # Not created yet.
            return False

    @contextmanager
    def _driver(self) -> Iterator[tuple[subprocess.Popen[str], Path]]:
        log = self.folder / f"driver-{len(self._codes):02}-{threading.get_native_id()}-{time.time_ns()}.txt"
        words = ["build", self.folder / "corpus.jsonl", "-k", self._checkpoint, "-o", self.store]
        words += ["-c", self.folder / "config.yaml", *self.place.arguments]
        command = [sys.executable, "-m", "pisco_index.cli", *map(str, words)]
        with log.open("w") as file:
            driver = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, text=True, env=environment(self.faults)
            )
        try:
            yield driver, log
        finally:
            if driver.poll() is None:
                driver.kill()
            driver.wait()

    def _command(self) -> int:
        with self._driver() as (driver, log):
            while driver.poll() is None:
                time.sleep(LOOK_S)
                self._inject(driver, log)
                if time.time() - self._began > MOST_S:
                    raise TortureError(f"a build did not end; {shards_done(self.store)} of {SHARDS} shards are done")
        code = driver.returncode
        self._codes.append(code)
        self._note(f"command {len(self._codes)} ended with {code}")
        said = log.read_text()
        if code not in SAID | POISONED and not (code == 74 and "the disk is full" in said):
            raise TortureError(f"command {len(self._codes)} ended with {code}:\n{said}")
        return code

    def _inject(self, driver: subprocess.Popen[str], log: Path) -> None:
        """Do what is due, if there is anybody to do it to."""
        workers = self.place.workers(driver.pid)
        self._seen |= workers
        if not self._pending or shards_done(self.store) < self._pending[0][0] or "compressing" not in log.read_text():
            return
        self._due_since = self._due_since or time.time()
        time.sleep(self.chance.uniform(0, 0.3))
        _, kind = self._pending[0]
        if self._strike(kind, driver, log, sorted(workers)):
            self._injected[kind] += 1
            self._note(kind)
        elif time.time() - self._due_since < 20:
            return
        self._pending.pop(0)
        self._due_since = 0.0

    def _strike(self, kind: str, driver: subprocess.Popen[str], log: Path, workers: list[int]) -> bool:
        """Inject a fault; False where there is nobody to inject it to."""
        if driver.poll() is not None:
            return False
        whom, _, how = kind.partition(" ")
        if kind == "second driver":
            return self._second(driver)
        if whom == "node":
            assert isinstance(self.place, OnRay)
            self.place.replace_node(self.chance, graceful=how == "removed")
            return True
        if whom == "driver":
            victims = [driver.pid]
        elif whom == "all":
            victims, how = workers, how.removeprefix("workers ")
        else:
            victims = [self.chance.choice(workers)] if workers else []
        number, _, then = how.partition(", ")
        with suppress(ProcessLookupError):
            for pid in victims:
                os.kill(pid, signal.Signals[number])
                if then:
                    threading.Timer(self.chance.uniform(0.5, 3), _signal, (pid, signal.Signals[then])).start()
            return bool(victims)
        return False

    def _second(self, driver: subprocess.Popen[str]) -> bool:
        with self._driver() as (second, log):
            code = second.wait(MOST_S)
        if code != 75 and driver.poll() is None:
            raise TortureError(f"a second build ended with {code}:\n{log.read_text()}")
        return code == 75

    def _require_gone(self) -> None:
        """Every worker that was seen is gone."""
        deadline = time.time() + GONE_S
        while left := [line for pid, _, began, line in processes() if self._seen.get(pid) == began]:
            if time.time() > deadline:
                raise TortureError(f"processes stayed behind: {left}")
            time.sleep(0.2)

    def _compare(self) -> dict[str, int]:
        """Compare the store with the undisturbed one, and look for what is dangling.

        Raises:
            TortureError: anything is not as it should be.
        """
        import lance

        from pisco_index import verify

        expected = {doc_id: (payload, n_mem) for doc_id, payload, _, n_mem in rows(self._undisturbed)}
        found = rows(self.store)
        times = Counter(doc_id for doc_id, *_ in found)
        poison = {f"doc-{number}" for number in self.poison}
        failed = {doc_id: error for doc_id, _, error, _ in found if error is not None}
        wrong = [d for d, p, e, n in found if (p, n) != ((None, 0) if d in poison else expected.get(d))]
        counts = {
            "lost": len(expected.keys() - times.keys()),
            "doubled": sum(count - 1 for count in times.values()),
            "foreign": len(times.keys() - expected.keys()),
            "other memory": len([doc_id for doc_id in wrong if doc_id not in failed and doc_id not in poison]),
            "wrongly quarantined": len(failed.keys() - poison),
            "poison not quarantined": len(poison - failed.keys()),
        }
        problems = [f"{count} documents {what}" for what, count in counts.items() if count]
        problems += [f"{doc_id} was quarantined: {failed[doc_id]}" for doc_id in failed.keys() - poison]
        problems += [str(problem) for problem in verify(self.store).problems]
        for table in ("memory", "rejected", "assets"):
            dataset = lance.dataset(str(self.store / f"{table}.lance"))
            named = {
                file.path
                for each in dataset.versions()
                for fragment in lance.dataset(dataset.uri, version=each["version"]).get_fragments()
                for file in fragment.metadata.files
            }
            there = {path.name for path in (self.store / f"{table}.lance" / "data").glob("*")}
            problems += [f"{table}: no version refers to {name}" for name in sorted(there - named)]
        left = {path.name for path in self.store.iterdir() if path.name.startswith(".")}
        problems += [f"{name} is left" for name in sorted(left - {".build.lock", ".checksums", ".pisco-index"})]
        if problems:
            raise TortureError("\n".join(problems))
        return counts

    def _moments(self) -> list[Path]:
        return [path for path in self.faults.iterdir() if path.name != "settings.json"]

    def _struck(self) -> Counter[str]:
        kinds = ((re.split(r"[-.]", path.name)[0], _moment(path)[1]) for path in self._moments())
        return Counter(f"{kind} {fault}" for kind, fault in kinds if fault)

    def _note(self, what: str) -> None:
        self._journal.append((time.time(), what))


def _moment(path: Path) -> tuple[float, str | None]:
    with suppress(ValueError):
        when, fault = json.loads(path.read_text())
        return when, fault
    # Its process died before it could say what befell it: nothing did.
    return 0.0, None


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def prepare(folder: Path) -> tuple[Path, Path]:
    """A checkpoint, and an undisturbed store of the corpus without poison."""
    from pisco_index import new_tiny_checkpoint

    checkpoint = new_tiny_checkpoint(folder / "checkpoint", rate=8).path
    corpus, settings = write_corpus(folder / "plain.jsonl", {}), write_settings(folder / "plain.yaml")
    words = ["build", corpus, "-k", checkpoint, "-o", folder / "undisturbed", "-c", settings]
    subprocess.run([sys.executable, "-m", "pisco_index.cli", *map(str, words)], check=True, env=environment())
    return checkpoint, folder / "undisturbed"


def one(seed: int, folder: Path, injected: int) -> int:
    """Torture by one seed, in this process; the last line printed is the result."""
    torture = Torture(seed, folder / f"seed-{seed}", folder / "checkpoint", folder / "undisturbed", injected)
    result = torture.run()
    if result["problems"]:
        say(f"seed {seed} FAILED\n" + "\n".join(result["problems"]) + "\n" + torture.report())
    say(json.dumps(result))
    return bool(result["problems"])


def several(seeds: Sequence[int], folder: Path, injected: int, jobs: int) -> list[dict[str, Any]]:
    """Torture by seeds, each in a process of its own, so many at a time."""

    def run(seed: int) -> dict[str, Any]:
        words = ["--one", str(seed), "--folder", str(folder), "--injected", str(injected)]
        finished = subprocess.run(
            [sys.executable, __file__, *words], capture_output=True, text=True, check=False, env=environment()
        )
        *before, last = finished.stdout.strip().splitlines() or [""]
        try:
            result = json.loads(last)
        except ValueError:
            result = {"seed": seed, "faults": {}, "problems": [f"ended with {finished.returncode}: {finished.stderr}"]}
        if result["problems"]:
            say("\n".join([*before, *result["problems"], finished.stderr[-3000:]]))
        else:
            shutil.rmtree(folder / f"seed-{seed}")
        (folder / f"seed-{seed}.json").write_text(json.dumps(result))
        ended = "FAILED" if result["problems"] else "ok"
        faults, commands, seconds = sum(result["faults"].values()), result.get("commands"), result.get("seconds")
        say(f"{time.strftime('%H:%M:%S')} seed {seed}: {faults} faults, {commands} commands, {seconds} s, {ended}")
        return result

    with ThreadPoolExecutor(jobs) as threads:
        return list(threads.map(run, seeds))


def table(runs: Sequence[dict[str, Any]]) -> str:
    """The faults of runs, as the documentation has them; lost and doubled are those of the runs that had the fault."""
    lines = ["| fault | what happens | test | injected | lost | doubled |", "|---|---|---|---|---|---|"]
    for fault, kinds, happens, test in TABLE:
        struck = [run for run in runs if kinds & run["faults"].keys()]
        injected = sum(count for run in struck for kind, count in run["faults"].items() if kind in kinds)
        lost, doubled = (sum(run[what] for run in struck) for what in ("lost", "doubled"))
        lines.append(f"| {fault} | {happens} | `tests/{test}` | {injected} | {lost} | {doubled} |")
    return "\n".join(lines)


def throughput(folder: Path, kill_every_s: float, documents: int = 400_000) -> dict[str, Any]:
    """Documents a second on the cluster, undisturbed and with a worker killed every so many seconds."""
    corpus = write_corpus(folder / "large.jsonl", {}, documents)
    settings = write_settings(folder / "large.yaml", shard_documents=64, commit_shards=16, token_budget=None)
    result: dict[str, Any] = {"documents": documents, "kill every s": kill_every_s}
    with OnRay(environment()) as cluster:
        for name in ("undisturbed", "killed"):
            log, store = folder / f"{name}.txt", folder / f"large-{name}"
            words = ["build", corpus, "-k", folder / "checkpoint", "-o", store, "-c", settings, *cluster.arguments]
            with log.open("w") as file:
                driver = subprocess.Popen(
                    [sys.executable, "-m", "pisco_index.cli", *map(str, words)],
                    stdout=file, stderr=subprocess.STDOUT, env=environment(),
                )  # fmt: skip
            # From the first commit on, for neither Ray's nor the model's start is what is asked for.
            while not (first := shards_done(store)) and driver.poll() is None:
                time.sleep(LOOK_S)
            began = struck = time.monotonic()
            kills = 0
            while driver.poll() is None:
                time.sleep(LOOK_S)
                if name == "killed" and time.monotonic() - struck >= kill_every_s:
                    struck = time.monotonic()
                    if workers := sorted(cluster.workers(driver.pid)):
                        _signal(random.Random(kills).choice(workers), signal.SIGKILL)
                        kills += 1
            assert driver.returncode == 0, log.read_text()
            done = (shards_done(store) - first) * 64
            result[f"{name}, documents/s"] = round(done / (time.monotonic() - began), 1)
        result["kills"] = kills
    result["ratio"] = round(result["killed, documents/s"] / result["undisturbed, documents/s"], 3)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-19", help="such as 0-19 or 3,5")
    parser.add_argument("--injected", type=int, default=9, help="faults from outside, a seed")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--folder", type=Path, help="default: a new one, removed at the end")
    parser.add_argument("--throughput", action="store_true", help="measure documents a second in place of torture")
    parser.add_argument("--kill-every", type=float, default=10.0, help="with --throughput: seconds between two kills")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--table", type=Path, help="only print the table of a result that --json wrote")
    given = parser.parse_args()
    if given.table:
        say(table(json.loads(given.table.read_text())["runs"]))
        return 0
    warnings.filterwarnings("ignore")
    if given.one is not None:
        return one(given.one, given.folder, given.injected)
    with ExitStack() as stack:
        # Sockets of Ray have short paths only; those are not here, but logs and stores are.
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        folder.mkdir(parents=True, exist_ok=True)
        began = time.time()
        prepare(folder)
        if given.throughput:
            result = throughput(folder, given.kill_every)
            failed = False
        else:
            ranges = (part.split("-") for part in given.seeds.split(","))
            seeds = [seed for ends in ranges for seed in range(int(ends[0]), int(ends[-1]) + 1)]
            runs = several(seeds, folder, given.injected, given.jobs)
            total = sum((Counter(run["faults"]) for run in runs), Counter())
            failed = any(run["problems"] for run in runs)
            result = {
                "seeds": seeds,
                "failed": [run["seed"] for run in runs if run["problems"]],
                "faults": sum(total.values()),
                "by kind": dict(sorted(total.items())),
                "lost": sum(run.get("lost", 0) for run in runs),
                "doubled": sum(run.get("doubled", 0) for run in runs),
                "commands": sum(run.get("commands", 0) for run in runs),
                "seconds": round(time.time() - began, 1),
                "runs": runs,
            }
        say(json.dumps({key: value for key, value in result.items() if key != "runs"}, indent=2))
        if given.json:
            given.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
