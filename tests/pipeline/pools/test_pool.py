"""Workers that do nothing else: what breaks them blames the call that it happened in, and no other."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pisco_index.corpus import open_corpus
from pisco_index.pipeline.build import prepare
from pisco_index.pipeline.planning.plan import plan_corpus
from pisco_index.pipeline.pools import pool as pool_module
from pisco_index.pipeline.pools.child import ChildWorker
from pisco_index.pipeline.pools.pool import InProcessPool, WorkerStartError
from pisco_index.pipeline.pools.watchdog import WorkerDiedError

LONG_S = 600.0


@pytest.fixture
def job(checkpoint, make_corpus, small, tmp_path):
    """What a worker needs, and a shard."""
    job = prepare([make_corpus(8)], checkpoint, tmp_path / "store", small())
    plan = plan_corpus(open_corpus(job.paths, job.config.corpus), shard_documents=8)
    return job.worker_spec(plan), plan.shards[0]


def state_of(pid):
    """As the system has it; None for a process that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return None


def await_that(condition):
    while not condition():
        time.sleep(0.1)


def test_a_child_that_was_killed_while_it_had_nothing_to_do_blames_no_call(job):
    spec, shard = job
    lost = []
    with InProcessPool(spec, hang_s=LONG_S, on_lost=lambda *told: lost.append(told)) as pool:
        assert pool.alone("count", shard) == 8
        os.kill(pool._child._process.pid, signal.SIGKILL)
        pool._child._process.join()
        assert pool.alone("count", shard) == 8
    assert lost == [("this process", "WorkerDiedError: the worker died of SIGKILL")]


@pytest.mark.parametrize("deaths", [2, 3])
def test_a_child_that_dies_while_it_starts_blames_no_call(job, monkeypatch, deaths):
    spec, shard = job
    started = []

    class Dying:
        def __init__(self, spec, *, hang_s):
            started.append(spec)
            if len(started) <= deaths:
                raise WorkerDiedError("the worker died of SIGKILL")

        def call(self, method, *arguments):
            return method

        def end(self):
            pass

    monkeypatch.setattr(pool_module, "ChildWorker", Dying)
    with InProcessPool(spec, hang_s=LONG_S, on_lost=lambda *told: None) as pool:
        if deaths < pool_module.STARTS:
            assert pool.alone("attempt", shard, 0, 1) == "attempt"
        else:
            with pytest.raises(WorkerStartError, match="3 times: the worker died of SIGKILL"):
                assert pool.alone("count", shard) == 8


def test_a_child_may_take_longer_to_start_than_one_that_hangs(job):
    # Importing torch alone takes longer than that.
    ChildWorker(job[0], hang_s=0.1).end()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child that is stopped does not notice")
def test_a_child_that_is_stopped_ends_with_its_parent(job, tmp_path):
    code = f"""
import os, signal, sys
from pisco_index.pipeline.pools.child import ChildWorker
from pisco_index.pipeline.worker import WorkerSpec
from pisco_index.configs import CompressionConfig
spec = WorkerSpec({job[0].checkpoint!r}, CompressionConfig(dtype="float32"), "hidden", "fp32", (), "", (), "cpu")
if __name__ == "__main__":
    child = ChildWorker(spec, hang_s=600.0)
    os.kill(child._process.pid, signal.SIGSTOP)
    print(child._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "parent.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.run(
        [sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True, check=False, env=environment
    )
    assert parent.returncode == -signal.SIGKILL
    await_that(lambda: state_of(int(parent.stdout)) in (None, "Z"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_ray_worker_that_broke_while_it_had_nothing_to_do_blames_no_call(job, number):
    pytest.importorskip("ray")
    from pisco_index.pipeline.pools.ray_pool import RayPool

    spec, shard = job
    lost = []
    with RayPool(spec, workers=1, hang_s=6.0, on_lost=lambda *told: lost.append(told)) as pool:
        assert pool.alone("count", shard) == 8
        worker = next(pid for pid in descendants(os.getpid()) if title(pid).startswith("ray::RayShardWorker"))
        os.kill(worker, number)
        assert pool.alone("count", shard) == 8
    ((name, _),) = lost
    assert name == "worker 1"


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
