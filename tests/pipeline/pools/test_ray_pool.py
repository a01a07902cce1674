"""Shards on Ray: on this machine, and on a cluster of several nodes here. Payloads equal those of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import lancedb
import pytest

from pisco_index import build, build_status
from pisco_index.errors import BuildIncompleteError, InputError, StoreError
from pisco_index.pipeline.job import Job
from pisco_index.pipeline.watch.progress import BuildProgress

from ..conftest import fail_on

ray = pytest.importorskip("ray")

from pisco_index.pipeline.pools import ray_pool  # noqa: E402

pytestmark = [
    # Ray's own code warns of sockets, files and deprecated parts of itself.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]


SLOW = pytest.mark.skipif("PISCO_INDEX_TORTURE" not in os.environ, reason="slow: make torture-short")


def payloads(uri):
    table = lancedb.connect(str(uri)).open_table("memory").to_arrow()
    return dict(zip(table["doc_id"].to_pylist(), table["payload"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def cluster():
    """A head and two further nodes, one CPU each."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    yield nodes
    nodes.shutdown()


@pytest.fixture
def joined(cluster):
    """The cluster, which this process is part of: pools find Ray started, and leave it so."""
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    yield cluster
    ray.shutdown()


def test_a_build_begun_here_is_finished_on_local_workers_and_updated_on_a_cluster(
    request, checkpoint, make_corpus, small, tmp_path, monkeypatch
):
    corpus = make_corpus(100)
    build([corpus], checkpoint, tmp_path / "here", small())
    with monkeypatch.context() as patch:
        fail_on(patch, set(range(3, 12)))
        with pytest.raises(BuildIncompleteError):
            build([corpus], checkpoint, tmp_path / "store", small())
    # From another folder, in which the store was moved.
    moved = (tmp_path / "elsewhere" / "store").absolute()
    moved.parent.mkdir()
    (tmp_path / "store").rename(moved)
    report = build([corpus], checkpoint, moved, small(run={"workers": 2}))
    assert (report.done_before, report.committed) == (4, 9)
    assert payloads(moved) == payloads(tmp_path / "here")
    assert not ray.is_initialized()
    corpus = make_corpus(110)
    corpus.write_text(corpus.read_text().replace("Title 1", "Headline 1"))
    build([corpus], checkpoint, tmp_path / "here", small())
    address = request.getfixturevalue("joined").address
    report = build([corpus], checkpoint, moved, small(run={"ray": address, "workers": 2}))
    assert (report.changes.new, report.changes.changed, report.committed) == (10, 11, report.shards)
    assert payloads(moved) == payloads(tmp_path / "here")


def test_a_cluster_of_three_nodes_with_more_workers_than_it_holds(cluster, checkpoint, make_corpus, small, tmp_path):
    corpus = make_corpus(200)
    settings = {"compression": {"dtype": "bfloat16"}, "store": {"codec": "int8"}}
    build([corpus], checkpoint, tmp_path / "here", small(**settings))
    command = [
        sys.executable, "-m", "pisco_index.cli", "build", corpus, "-k", checkpoint, "-o", tmp_path / "ray",
        "--ray", cluster.address, "--workers", 9, "--shard-documents", 8, "--max-length", 64,
    ]  # fmt: skip
    finished = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, timeout=240)
    room = "the Ray cluster has 3 CPU cores on 3 nodes, and each worker takes one at least"
    assert f"9 workers ({room}; the others start when it grows)" in finished.stderr
    # The codec was fitted to a sample that a worker compressed, and all workers encode with its calibration.
    assert payloads(tmp_path / "ray") == payloads(tmp_path / "here")


@pytest.mark.fault(
    "There is no cluster, or too small a one.",
    "The build ends at once with an error.",
)
def test_more_workers_than_this_machine_holds(joined, checkpoint, make_corpus, small, tmp_path):
    with pytest.raises(InputError, match="99 workers asked for, but the Ray cluster has 3 CPU cores"):
        build([make_corpus(9)], checkpoint, tmp_path / "store", small(run={"workers": 99}))
    assert not (tmp_path / "store").exists()


@pytest.mark.fault(
    "Other work keeps the cluster busy.",
    "The build ends with an error after ten minutes without a worker.",
)
def test_a_cluster_that_is_busy_with_other_work(joined, checkpoint, make_corpus, small, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_pool, "START_S", 3.0)

    @ray.remote(num_cpus=1)
    class Other:
        def hold(self):
            pass

    others = [Other.remote() for _ in range(3)]
    ray.get([other.hold.remote() for other in others])
    with pytest.raises(InputError, match=r"no worker could be started within 3 s; the Ray cluster has nothing free"):
        build([make_corpus(9)], checkpoint, tmp_path / "store", small(run={"ray": joined.address}))
    assert not (tmp_path / "store").exists()


@pytest.mark.fault(
    "There is no cluster, or too small a one.",
    "The build ends at once with an error.",
)
def test_no_cluster_at_the_address(checkpoint, make_corpus, small, tmp_path):
    with pytest.raises(InputError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        build([make_corpus(9)], checkpoint, tmp_path / "store", small(run={"ray": "127.0.0.1:1"}))


@pytest.mark.fault(
    "A Ray worker cannot start.",
    "The build ends with the reason.",
)
def test_a_worker_that_cannot_start_ends_the_build_with_its_reason(
    joined, checkpoint, make_corpus, small, tmp_path, monkeypatch
):
    # The driver sees the checkpoint, the worker does not: as on a node without the shared folder.
    made = Job.worker_spec
    monkeypatch.setattr(Job, "worker_spec", lambda *given: replace(made(*given), checkpoint="/not/on/this/node"))
    with pytest.raises(InputError, match=r"could not start.*no such checkpoint folder"):
        build([make_corpus(9)], checkpoint, tmp_path / "store", small(run={"ray": "local", "workers": 1}))


class Killer(BuildProgress):
    """Kills a worker when some shards are committed, and takes note of what fails."""

    def __init__(self, after):
        self.after, self.done = after, 0
        self.failures, self.lost = [], []

    def committed(self, shards):
        if self.done < self.after <= self.done + shards:
            kill_a_worker(signal.SIGKILL)
        self.done += shards

    def failed_shard(self, number, error, attempt, final):
        self.failures.append((str(error).partition(":")[0], attempt, final))

    def lost_worker(self, name, reason):
        self.lost.append(name)


@pytest.mark.fault(
    "A Ray worker is killed.",
    "Its shards are retried on a new worker.",
)
def test_a_killed_worker_costs_a_try_and_no_document(joined, checkpoint, make_corpus, small, tmp_path):
    run = {"ray": "local", "workers": 1, "shard_documents": 4, "commit_shards": 2}
    progress = Killer(after=16)
    build([make_corpus(400)], checkpoint, tmp_path / "store", small(run=run), progress=progress)
    # Of the three shards in flight one is charged with a try, and one worker takes the place of the killed one.
    assert 1 <= len(progress.failures) <= 3
    assert {(error, final) for error, _, final in progress.failures} == {("the worker died", False)}
    assert sorted(attempt for _, attempt, _ in progress.failures)[-1] == 1
    assert sum(attempt for _, attempt, _ in progress.failures) == 1
    assert progress.lost == ["worker 1"]
    status = build_status(tmp_path / "store")
    assert status.is_complete
    assert status.store.documents == 400


@pytest.mark.fault(
    "A worker that isolates documents is killed or stopped before it has one, or while it starts.",
    "It is replaced; no document is blamed.",
)
def test_a_ray_worker_that_broke_while_it_had_nothing_to_do_blames_no_call(joined, work):
    lost = []
    with ray_pool.RayPool(work.spec, workers=1, hang_s=6.0, on_lost=lambda *told: lost.append(told)) as pool:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            assert pool.count(work.shards[0]) == 8
            kill_a_worker(number)
        assert pool.count(work.shards[0]) == 8
    assert [name for name, _ in lost] == ["worker 1", "worker 2"]


@pytest.mark.fault(
    "A reader process is killed, for example for lack of memory, or hangs.",
    "It is replaced, and its shard is read again.",
)
def test_a_ray_worker_outlives_its_readers(joined, work, monkeypatch):
    class Striking(ray_pool.RayShardWorker):
        def __init__(self, spec):
            from pisco_index.pipeline.reading.process import ReaderProcess

            super().__init__(spec)
            read, numbers = ReaderProcess.read, [signal.SIGKILL, None, signal.SIGSTOP]

            def strike_and_read(self, *arguments):
                if numbers and (number := numbers.pop(0)):
                    os.kill(self._process.pid, number)
                return read(self, *arguments)

            ReaderProcess.read = strike_and_read

        def _encode(self, doc_ids, *_):
            return [b""] * len(doc_ids)

        def _write(self, shard, read, *_):
            return read.doc_ids

    monkeypatch.setattr(ray_pool, "RayShardWorker", Striking)
    lost, found = [], {}
    spec = replace(work.spec, reader_processes=1, hang_s=2.0)
    with ray_pool.RayPool(spec, workers=1, hang_s=60.0, on_lost=lambda *told: lost.append(told)) as pool:
        for shard in work.shards:
            pool.submit(shard)
        while len(found) < 3:
            found |= {outcome.shard.number: outcome for outcome in pool.wait(1)}
        assert pool.capacity == 3
    assert [found[number].result.written[0] for number in range(3)] == ["doc-0", "doc-8", "doc-16"]
    assert lost == []


def test_fake_gpus_hold_one_worker_each(joined, work, monkeypatch):
    # The compressor itself runs on the CPU: what is tested is where Ray puts workers, and what they are given.
    class OnCpu(ray_pool.RayShardWorker):
        def __init__(self, spec):
            assert spec.device == "cuda"
            super().__init__(replace(spec, device="cpu"))

        def gpus(self):
            return ray.get_gpu_ids()

    node = joined.add_node(num_cpus=2, num_gpus=2)
    monkeypatch.setattr(ray_pool, "RayShardWorker", OnCpu)
    spec = replace(work.spec, device="auto")
    with ray_pool.RayPool(spec, address=joined.address, hang_s=600, on_lost=print) as pool:
        gpus = [ray.get(worker.actor.gpus.remote()) for worker in pool._workers]
    joined.remove_node(node)
    assert pool.description.endswith("2 workers")
    assert sorted(gpus) == [[0], [1]]


# Builds on a cluster and writes down what happened; looks for new nodes every second.
DRIVER = """
import json, sys
from pisco_index import build
from pisco_index.configs import BuildConfig
from pisco_index.pipeline.pools import ray_pool
from pisco_index.pipeline.watch.progress import BuildProgress

class Journal(BuildProgress):
    def __init__(self):
        self.told = {"busy": 0, "tries": [], "lost": [], "alone": []}
    def workers(self, states):
        self.told["busy"] = max(self.told["busy"], sum(state.documents > 0 for state in states))
    def failed_shard(self, number, error, attempt, final):
        self.told["tries"].append(attempt)
    def lost_worker(self, name, reason):
        self.told["lost"].append(reason)
    def alone(self, number):
        self.told["alone"].append(number)

corpus, checkpoint, out, settings = json.loads(sys.argv[1])
ray_pool.NODES_S = 1.0
journal = Journal()
try:
    build([corpus], checkpoint, out, BuildConfig.parse(settings, "test"), progress=journal)
finally:
    print(json.dumps(journal.told))
"""


@pytest.fixture
def start_build(checkpoint, make_corpus, tmp_path):
    """Start a build of slow shards on a cluster, in a process of its own; wait until some are done."""

    def start(address, documents, **run_settings):
        corpus = make_corpus(documents)
        lines = [json.loads(line) for line in corpus.read_text().splitlines()]
        corpus.write_text("".join(json.dumps(line | {"text": line["text"] + " POISON-SLOW"}) + "\n" for line in lines))
        settings = {
            "run": {"ray": address, "shard_documents": 1, "commit_shards": 1, **run_settings},
            "compression": {"max_length": 64},
        }
        given = json.dumps([str(corpus), str(checkpoint), str(tmp_path / "store"), settings])
        running = subprocess.Popen([sys.executable, "-c", DRIVER, given], stdout=subprocess.PIPE, text=True)
        while _shards_done(tmp_path / "store") < 2:
            assert running.poll() is None
            time.sleep(0.1)
        return running

    return start


@pytest.fixture
def own_cluster(monkeypatch):
    """A head without CPUs, whose nodes come and go; its workers take documents that are slow."""
    from ray.cluster_utils import Cluster

    faults = Path(__file__).parents[2] / "faults"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(faults), *sys.path[1:]]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # A node that is gone is noticed in seconds.
    timing = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": timing},
    )
    yield nodes
    nodes.shutdown()


@pytest.mark.fault(
    "A node joins.",
    "It gets a worker.",
)
@SLOW
def test_a_node_that_joins_gets_work(own_cluster, start_build, tmp_path):
    own_cluster.add_node(num_cpus=1)
    running = start_build(own_cluster.address, 40)
    own_cluster.add_node(num_cpus=1)
    told, _ = running.communicate(timeout=240)
    assert running.returncode == 0
    assert json.loads(told.splitlines()[-1])["busy"] == 2
    assert build_status(tmp_path / "store").store.documents == 40


@pytest.mark.fault(
    "A node is lost.",
    "Its shards are retried elsewhere and not blamed.",
)
@SLOW
def test_a_node_that_is_lost_costs_no_document_and_nobody_is_blamed(own_cluster, start_build, tmp_path):
    own_cluster.add_node(num_cpus=1)
    leaving = own_cluster.add_node(num_cpus=1)
    running = start_build(own_cluster.address, 40)
    own_cluster.remove_node(leaving, allow_graceful=False)
    told, _ = running.communicate(timeout=240)
    assert running.returncode == 0
    journal = json.loads(told.splitlines()[-1])
    assert journal["lost"]
    assert journal["alone"] == []
    assert build_status(tmp_path / "store").store.documents == 40


@pytest.mark.fault(
    "A Ray worker hangs.",
    "It is ended and replaced.",
)
@SLOW
def test_a_worker_that_stands_still_is_replaced(own_cluster, start_build, tmp_path):
    own_cluster.add_node(num_cpus=1)
    running = start_build(own_cluster.address, 12, hang_seconds=8)
    kill_a_worker(signal.SIGSTOP)
    told, _ = running.communicate(timeout=240)
    assert running.returncode == 0
    (reason,) = json.loads(told.splitlines()[-1])["lost"]
    assert "took no step for 8 s" in reason
    assert build_status(tmp_path / "store").store.documents == 12


def _shards_done(uri):
    try:
        return build_status(uri).store.shards_done
    except StoreError:
        # Not created yet.
        return 0


def kill_a_worker(number):
    """Send a signal to a worker of a cluster that this process started; it has the title that Ray gives it."""
    os.kill(next(pid for pid in descendants(os.getpid()) if title(pid).startswith("ray::RayShardWorker")), number)


def title(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def descendants(pid):
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}
