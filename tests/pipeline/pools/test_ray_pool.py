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

from pisco_index import BuildIncompleteError, InputError, StoreError, build, build_status
from pisco_index.pipeline import build as build_module

from ..conftest import fail_on

ray = pytest.importorskip("ray")
pytestmark = [
    # Ray's own code warns of sockets, files and deprecated parts of itself.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]


SLOW = pytest.mark.skipif("PISCO_INDEX_TORTURE" not in os.environ, reason="slow: make torture-short")


def payloads(uri):
    table = lancedb.connect(str(uri)).open_table("memory").to_arrow()
    return dict(zip(table["doc_id"].to_pylist(), table["payload"].to_pylist(), strict=True))


def run(*arguments, check=True):
    command = [sys.executable, "-m", "pisco_index.cli", *map(str, arguments)]
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=240)


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


def test_two_local_workers_update_as_this_process_does(checkpoint, make_corpus, small, tmp_path):
    corpus = make_corpus(30)
    for out in ("here", "ray"):
        build([corpus], checkpoint, tmp_path / out, small())
    corpus = make_corpus(40)
    corpus.write_text(corpus.read_text().replace("Title 1", "Headline 1"))
    build([corpus], checkpoint, tmp_path / "here", small())
    report = build([corpus], checkpoint, tmp_path / "ray", small(run={"workers": 2}))
    assert (report.changes.new, report.changes.changed, report.committed) == (10, 11, report.shards)
    assert payloads(tmp_path / "ray") == payloads(tmp_path / "here")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_local_workers_write_the_same_bytes_as_this_process(checkpoint, make_corpus, small, tmp_path, dtype):
    corpus = make_corpus(100)
    build([corpus], checkpoint, tmp_path / "here", small(compression={"dtype": dtype}))
    config = small(compression={"dtype": dtype}, run={"workers": 2, "shard_documents": 8})
    report = build([corpus], checkpoint, tmp_path / "ray", config)
    assert report.committed == report.shards
    assert payloads(tmp_path / "ray") == payloads(tmp_path / "here")
    assert not ray.is_initialized()


def test_a_build_begun_here_is_finished_on_ray(checkpoint, make_corpus, small, tmp_path, monkeypatch):
    corpus = make_corpus(100)
    build([corpus], checkpoint, tmp_path / "whole", small())
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
    assert payloads(moved) == payloads(tmp_path / "whole")


def test_workers_encode_with_the_calibration_of_the_store(checkpoint, make_corpus, small, tmp_path):
    corpus = make_corpus(100)
    build([corpus], checkpoint, tmp_path / "here", small(store={"codec": "int8"}))
    build([corpus], checkpoint, tmp_path / "ray", small(store={"codec": "int8"}, run={"workers": 2}))
    assert payloads(tmp_path / "ray") == payloads(tmp_path / "here")


def test_a_cluster_of_three_nodes(cluster, checkpoint, make_corpus, small, tmp_path):
    corpus = make_corpus(200)
    build([corpus], checkpoint, tmp_path / "here", small())
    finished = run(
        "build", corpus, "-k", checkpoint, "-o", tmp_path / "ray", "--ray", cluster.address, "--workers", 3,
        "--shard-documents", 8, "--dtype", "float32", "--codec", "fp32", "--max-length", 64,
    )  # fmt: skip
    assert "3 workers" in finished.stderr
    assert payloads(tmp_path / "ray") == payloads(tmp_path / "here")


def test_more_workers_than_the_cluster_holds_start_when_it_grows(cluster, checkpoint, make_corpus, tmp_path):
    finished = run(
        "build", make_corpus(9), "-k", checkpoint, "-o", tmp_path / "store", "--ray", cluster.address, "--workers", 9
    )
    room = "the Ray cluster has 3 CPU cores on 3 nodes, and each worker takes one at least"
    assert f"9 workers ({room}; the others start when it grows)" in finished.stderr
    assert build_status(tmp_path / "store").is_complete


def test_more_workers_than_this_machine_holds(checkpoint, make_corpus, tmp_path):
    cores = os.cpu_count()
    finished = run(
        "build", make_corpus(9), "-k", checkpoint, "-o", tmp_path / "store", "--workers", cores + 1, check=False
    )
    assert finished.returncode == 2
    assert f"{cores + 1} workers asked for, but the Ray cluster has {cores} CPU core" in finished.stderr
    assert not (tmp_path / "store").exists()


def test_a_cluster_that_is_busy_with_other_work(cluster, checkpoint, make_corpus, tmp_path):
    code = f"""
import ray, sys
from pisco_index.pipeline.pools import ray_pool
ray_pool.START_S = 3.0
ray.init(address={cluster.address!r}, log_to_driver=False)
@ray.remote(num_cpus=1)
class Other:
    def hold(self): pass
others = [Other.remote() for _ in range(3)]
ray.get([other.hold.remote() for other in others])
from pisco_index.cli import app
app(["build", {str(make_corpus(9))!r}, "-k", {str(checkpoint)!r}, "-o", {str(tmp_path / "store")!r}, "--ray", "auto"])
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 2, finished.stderr
    assert "No worker could be started within 3 s" in finished.stderr
    assert not (tmp_path / "store").exists()


def test_no_cluster_at_the_address(checkpoint, make_corpus, tmp_path):
    finished = run(
        "build", make_corpus(9), "-k", checkpoint, "-o", tmp_path / "store", "--ray", "127.0.0.1:1", check=False
    )
    assert finished.returncode == 2
    assert "No Ray cluster at '127.0.0.1:1'" in finished.stderr


def test_a_worker_that_cannot_start_ends_the_build_with_its_reason(
    checkpoint, make_corpus, small, tmp_path, monkeypatch
):
    # The driver sees the checkpoint, the worker does not: as on a node without the shared folder.
    made = build_module.Job.worker_spec

    def elsewhere(self, plan):
        return replace(made(self, plan), checkpoint="/not/on/this/node")

    monkeypatch.setattr(build_module.Job, "worker_spec", elsewhere)
    with pytest.raises(InputError, match=r"could not start.*no such checkpoint folder"):
        build([make_corpus(9)], checkpoint, tmp_path / "store", small(run={"ray": "local"}))


def test_a_killed_worker_costs_a_try_and_no_document(checkpoint, make_corpus, tmp_path):
    corpus = make_corpus(1500)
    arguments = ["build", corpus, "-k", checkpoint, "-o", tmp_path / "store", "--shard-documents", 4]
    command = [sys.executable, "-m", "pisco_index.cli", *map(str, arguments), "--ray", "local", "--workers", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        killed = None
        while killed is None:
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.1)
            if _shards_done(tmp_path / "store") >= 16:
                killed = _kill_a_worker(running.pid)
        _, errors = running.communicate(timeout=200)
    assert running.returncode == 0, errors
    # Of the three shards it had in hand one is charged with a try, and one worker takes its place.
    assert 1 <= errors.count("tried again: WorkerDiedError: the worker died") <= 3
    assert "1 worker lost" in errors
    status = build_status(tmp_path / "store")
    assert status.is_complete
    assert status.store.documents == 1500


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
    """Start a build of slow shards on a cluster, in a process of its own; waits until some are done."""

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


@SLOW
def test_a_node_that_joins_gets_work(own_cluster, start_build, tmp_path):
    own_cluster.add_node(num_cpus=1)
    running = start_build(own_cluster.address, 40)
    own_cluster.add_node(num_cpus=1)
    told, _ = running.communicate(timeout=240)
    assert running.returncode == 0
    assert json.loads(told.splitlines()[-1])["busy"] == 2
    assert build_status(tmp_path / "store").store.documents == 40


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


@SLOW
def test_a_worker_that_stands_still_is_replaced(own_cluster, start_build, tmp_path):
    own_cluster.add_node(num_cpus=1)
    running = start_build(own_cluster.address, 12, hang_seconds=8)
    _signal_a_worker(signal.SIGSTOP)
    told, _ = running.communicate(timeout=240)
    assert running.returncode == 0
    (reason,) = json.loads(told.splitlines()[-1])["lost"]
    assert "took no step for 8 s" in reason
    assert build_status(tmp_path / "store").store.documents == 12


def test_fake_gpus_hold_one_worker_each(own_cluster, checkpoint, make_corpus, tmp_path):
    # The compressor itself runs on the CPU: what is tested is where Ray puts workers, and what they are given.
    own_cluster.add_node(num_cpus=2, num_gpus=2)
    code = """
import json, sys
import ray
from dataclasses import replace
from pisco_index.pipeline.pools import ray_pool

class OnCpu(ray_pool.RayShardWorker):
    def __init__(self, spec):
        assert spec.device == "cuda"
        super().__init__(replace(spec, device="cpu"))
    def gpus(self):
        return ray.get_gpu_ids()

ray_pool.RayShardWorker = OnCpu
from pisco_index.configs import BuildConfig, load_config
from pisco_index.pipeline.build import prepare, _next_turn
from pisco_index.corpus import open_corpus
from pisco_index.pipeline.watch.progress import BuildProgress
address, corpus, checkpoint, out = sys.argv[1:]
job = prepare([corpus], checkpoint, out, BuildConfig.parse({"run": {"ray": address}}, "test"))
plan = _next_turn(job, open_corpus(job.paths, job.config.corpus), BuildProgress()).plan
with ray_pool.RayPool(job.worker_spec(plan), address=address, hang_s=600, on_lost=print) as pool:
    print(json.dumps([pool.description, [ray.get(worker.actor.gpus.remote()) for worker in pool._workers]]))
"""
    command = [sys.executable, "-c", code, own_cluster.address, make_corpus(9), checkpoint, tmp_path / "store"]
    finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200, check=False)
    assert finished.returncode == 0, finished.stderr
    description, gpus = json.loads(finished.stdout.splitlines()[-1])
    assert description.endswith("2 workers")
    assert sorted(gpus) == [[0], [1]]


def _shards_done(uri):
    try:
        return build_status(uri).store.shards_done
    except StoreError:
        # Not created yet.
        return 0


def _kill_a_worker(driver):
    """SIGKILL the process of one worker below the driver."""
    return next((_send(pid, signal.SIGKILL) for pid in _workers() if driver in _ancestors(pid)), None)


def _signal_a_worker(number):
    return _send(next(_workers()), number)


def _send(pid, number):
    os.kill(pid, number)
    return pid


def _workers():
    """Processes of workers, found by the title that Ray gives them."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cmdline").read_bytes().startswith(b"ray::RayShardWorker"):
                yield int(process.name)


def _ancestors(pid):
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid
