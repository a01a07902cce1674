"""The pool in this process: its crash log, and its child process, which blames no call for what it did not do."""

import os
import signal
import threading

import pytest
import torch

from pisco_index.errors import BuildHungError, error_summary
from pisco_index.pipeline.pools import in_process
from pisco_index.pipeline.pools.crashes import CrashLog
from pisco_index.pipeline.pools.in_process import InProcessPool, WorkerStartError
from pisco_index.pipeline.pools.watchdog import WorkerDiedError
from pisco_index.pipeline.steps import Pulse
from pisco_index.pipeline.worker import ShardResult, ShardWorker

from .conftest import LONG_S


@pytest.fixture
def lost():
    return []


@pytest.fixture
def open_pool(work, lost):
    def open_one(hang_s=LONG_S):
        return InProcessPool(work.spec, hang_s=hang_s, attempts=2, on_lost=lambda *told: lost.append(told))

    return open_one


@pytest.fixture
def run_nothing(monkeypatch):
    monkeypatch.setattr(ShardWorker, "run", lambda self, shard: ShardResult(None))


def crashes_now(work):
    """Return what the next process would count if this one died now."""
    return dict(CrashLog(work.spec.uri).counts)


@pytest.mark.fault(
    "A worker that isolates documents is killed or stopped before it has one, or while it starts.",
    "It is replaced; no document is blamed.",
)
def test_a_child_that_was_killed_while_it_had_nothing_to_do_blames_no_call(work, open_pool, lost):
    with open_pool() as pool:
        assert pool.count(work.shards[0]) == 8
        os.kill(pool._child._process.pid, signal.SIGKILL)
        pool._child._process.join()
        assert pool.count(work.shards[0]) == 8
    assert lost == [("this process", "WorkerDiedError: the worker died of SIGKILL")]


@pytest.mark.fault(
    "A worker that isolates documents is killed or stopped before it has one, or while it starts.",
    "It is replaced; no document is blamed.",
)
@pytest.mark.parametrize("deaths", [2, 3])
def test_a_child_that_dies_while_it_starts_blames_no_call(work, open_pool, monkeypatch, deaths):
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

    monkeypatch.setattr(in_process, "ChildWorker", Dying)
    with open_pool() as pool:
        if deaths < in_process.STARTS:
            assert pool.count(work.shards[0]) == "count"
        else:
            with pytest.raises(WorkerStartError, match="3 times: the worker died of SIGKILL"):
                pool.count(work.shards[0])


@pytest.mark.usefixtures("run_nothing")
def test_the_crash_log_notes_what_is_in_flight(work, open_pool):
    seen = []
    with open_pool() as pool:
        for shard in work.shards:
            pool.submit(shard)
            seen.append(sorted(crashes_now(work)))
        outcomes = []
        while len(outcomes) < 3:
            outcomes += pool.wait(1)
        assert crashes_now(work) == {}
    assert seen == [[0], [0, 1], [0, 1, 2]]
    assert not list(CrashLog(work.spec.uri)._path.parent.glob("*"))


@pytest.mark.usefixtures("run_nothing")
def test_the_crashes_of_a_finished_shard_are_forgotten(work, open_pool):
    for number in (0, 1, 1):
        CrashLog(work.spec.uri).note({number})
    with open_pool() as pool:
        assert pool.crashes == {0: 1, 1: 2}
        pool.submit(work.shards[0])
        assert pool.wait(10)
        assert pool.crashes == {1: 2}
    assert crashes_now(work) == {1: 2}


def test_the_shard_of_a_sample_is_in_flight(work, open_pool, monkeypatch):
    seen = []

    def sample(self, shard, vectors):
        seen.append(crashes_now(work))
        if shard.number == 1:
            raise RuntimeError("no luck")
        return "sample"

    monkeypatch.setattr(ShardWorker, "sample", sample)
    with open_pool() as pool:
        assert pool.sample(work.shards[0], 3) == "sample"
        with pytest.raises(RuntimeError, match="no luck"):
            pool.sample(work.shards[1], 3)
        assert crashes_now(work) == {}
    assert seen == [{0: 1}, {1: 1}]


def test_a_shard_that_hangs_this_process_is_isolated_by_the_next(work, open_pool, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(ShardWorker, "run", lambda self, shard: release.wait(LONG_S))
    try:
        with open_pool(hang_s=0.2) as pool:
            for shard in work.shards[1:]:
                pool.submit(shard)
            with pytest.raises(BuildHungError, match="shard 1 has taken no step for 0 s") as hung:
                list(iter(lambda: pool.wait(0.1), None))
    finally:
        release.set()
    assert hung.value.shard == 1
    # The other shard in flight is not blamed.
    assert crashes_now(work) == {1: 2}


@pytest.mark.fault(
    "A GPU fails for good while a build in one process computes, as after an illegal access.",
    "The process gives its shards back, and a child process does them; one shard is charged with an attempt.",
)
@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle)`"),
    ],
    ids=["accelerator", "cublas"],
)
def test_a_device_that_failed_is_left_to_a_child_process(work, open_pool, lost, monkeypatch, error):
    class Child:
        def __init__(self, spec, *, hang_s):
            pass

        def call(self, method, *arguments):
            return None if method == "pulse" else ShardResult(method)

        def pulse(self):
            return Pulse("compressing", 1, 0, 0, 0)

        def end(self):
            pass

    used = []

    def fail(self, shard):
        used.append(shard.number)
        raise error

    monkeypatch.setattr(in_process, "ChildWorker", Child)
    monkeypatch.setattr(ShardWorker, "run", fail)
    with open_pool() as pool:
        for shard in work.shards:
            pool.submit(shard)
        outcomes = []
        while len(outcomes) < 3:
            outcomes += pool.wait(10)
            # Nothing may be submitted to the worker whose device failed.
            assert pool.capacity == (0 if len(outcomes) < 3 else 1)
        assert sorted(outcome.shard.number for outcome in outcomes) == [0, 1, 2]
        assert all(outcome.error is error for outcome in outcomes)
        assert sum(outcome.charged for outcome in outcomes) == 1
        pool.submit(work.shards[1])
        (outcome,) = pool.wait(10)
        assert outcome.result == ShardResult("run")
        assert pool.workers()[0].doing == "compressing"
    assert sorted(used) == [0, 1, 2]
    assert lost == [("this process", error_summary(error))]


@pytest.mark.parametrize("reason", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED", "no luck"])
def test_a_device_without_room_has_not_failed(work, open_pool, lost, monkeypatch, reason):
    def fail(self, shard):
        raise RuntimeError(reason)

    monkeypatch.setattr(ShardWorker, "run", fail)
    with open_pool() as pool:
        pool.submit(work.shards[0])
        (outcome,) = pool.wait(10)
        assert outcome.charged
        assert str(outcome.error) == reason
        assert pool.capacity == 3
    assert not lost


def test_a_child_that_has_no_room_on_the_device_blames_no_shard(work, open_pool, monkeypatch):
    def refuse(spec, *, hang_s):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(in_process, "ChildWorker", refuse)
    with open_pool() as pool, pytest.raises(WorkerStartError, match=r"CUDA out of memory\. What was finished"):
        pool.run(work.shards[0])
