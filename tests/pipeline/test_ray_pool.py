"""Shards on Ray: on this machine, and on a cluster of several nodes here. Payloads equal those of one process."""

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

from pisco_index import InputError, StoreError, build, build_status
from pisco_index.pipeline import build as build_module

ray = pytest.importorskip("ray")
pytestmark = [
    # Ray's own code warns of sockets, files and deprecated parts of itself.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]


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


def test_more_workers_than_the_cluster_holds(cluster, checkpoint, make_corpus, tmp_path):
    finished = run(
        "build", make_corpus(9), "-k", checkpoint, "-o", tmp_path / "store", "--ray", cluster.address, "--workers", 9,
        check=False,
    )  # fmt: skip
    assert finished.returncode == 2
    assert "9 workers asked for, but the Ray cluster's 3 nodes have 3 CPU cores" in finished.stderr


def test_a_cluster_that_is_busy_with_other_work(cluster, checkpoint, make_corpus, tmp_path):
    code = f"""
import ray, sys
from pisco_index.pipeline import ray_pool
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
    assert errors.count("the worker died") <= 3
    assert "the worker died" in errors
    status = build_status(tmp_path / "store")
    assert status.is_complete
    assert status.store.documents == 1500


def _shards_done(uri):
    try:
        return build_status(uri).store.shards_done
    except StoreError:
        # Not created yet.
        return 0


def _kill_a_worker(driver):
    """SIGKILL the process of one ShardWorker actor below the driver, found by the title Ray gives it."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_worker = (process / "cmdline").read_bytes().startswith(b"ray::ShardWorker")
            if is_worker and driver in _ancestors(int(process.name)):
                os.kill(int(process.name), signal.SIGKILL)
                return process.name
    return None


def _ancestors(pid):
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid
