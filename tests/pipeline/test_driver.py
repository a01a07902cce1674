"""The driver against a pool that fails as told: every shard is committed once, or given up and reported."""

from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pisco_index import CorpusError, RunConfig, StoreError
from pisco_index.errors import BuildHungError, StoreUnreachableError
from pisco_index.pipeline.driver import Driven, Driver, FailedShard
from pisco_index.pipeline.interrupt import Interrupt
from pisco_index.pipeline.planning.plan import Shard
from pisco_index.pipeline.pools.crashes import CrashLog
from pisco_index.pipeline.pools.pool import Outcome
from pisco_index.pipeline.pools.watchdog import WorkerDiedError
from pisco_index.pipeline.watch.progress import BuildProgress, WorkerState
from pisco_index.pipeline.worker import Quarantined, ShardResult
from pisco_index.store import (
    Fingerprint,
    Store,
    StoreMeta,
    codec_by_name,
    commit,
    done_shards,
    encode,
    memory_rows,
    text_hash,
    write_fragment,
)


@pytest.fixture
def store(tmp_path):
    meta = StoreMeta(
        fingerprint=Fingerprint({"a": "b"}), stage="hidden", dim=4, codec="fp32", checkpoint={}, package_version="0"
    )
    return Store.create(tmp_path / "store", meta=meta, assets={})


class FakePool:
    """Writes one document a shard; ``script`` maps (shard, attempt) to an error, or to a callable on the result.

    ``poison`` maps a shard to what its document fails of when it is tried alone, and ``alone_script`` a shard to what
    it still fails of then, or to a callable on what it wrote.
    """

    description = "fake"
    capacity = 3

    def __init__(self, store, script=None, poison=None, alone_script=None):
        self.store = store
        self.script = script or {}
        self.poison = poison or {}
        self.alone_script = alone_script or {}
        self.calls = []
        self.attempts = {}
        self.queue = deque()
        self.submitted = []
        self.stopped = False

    def submit(self, shard):
        self.queue.append(shard)
        self.submitted.append(shard.number)
        assert len(self.queue) <= self.capacity

    def stop(self):
        self.stopped = True

    def workers(self):
        return [WorkerState("fake", "compressing", None, 0, 0)]

    def alone(self, method, shard, *arguments):
        assert not self.queue
        self.calls.append((method, shard.number))
        if method == "count":
            return 1
        if method == "attempt":
            if shard.number in self.poison:
                raise self.poison[shard.number]
            return None
        action = self.alone_script.get(shard.number)
        if isinstance(action, Exception):
            raise action
        (errors,) = arguments
        written = self.write(shard, errors.get(0))
        if action:
            action(written)
        return ShardResult(written, tuple(Quarantined(f"doc-{shard.number}", error) for error in errors.values()))

    def wait(self, timeout_s):
        if not self.queue:
            return []
        shard = self.queue.popleft()
        attempt = self.attempts[shard.number] = self.attempts.get(shard.number, 0) + 1
        action = self.script.get((shard.number, attempt))
        if self.stopped and action is None:
            return [Outcome(shard)]
        if isinstance(action, Exception):
            return [Outcome(shard, error=action)]
        written = self.write(shard)
        if action:
            action(written)
        return [Outcome(shard, ShardResult(written))]

    def write(self, shard, error=None):
        doc_id = f"doc-{shard.number}"
        payload = encode(doc_id, np.full((1, 4), shard.number, np.float32), codec_by_name("fp32"))
        payload = payload if error is None else None
        rows = memory_rows(
            doc_ids=[doc_id],
            tokens_total=[1],
            tokens_fed=[1],
            payloads=[payload],
            text_hashes=[text_hash("")],
            errors=[error],
        )
        return write_fragment(self.store.uri, shard.number, rows)


class Recorder(BuildProgress):
    def __init__(self):
        self.failures = []
        self.told = []

    def failed_shard(self, number, error, attempt, final):
        self.failures.append((number, attempt, final))

    def alone(self, number):
        self.told.append(("alone", number))

    def quarantined(self, number, doc_id, error):
        self.told.append(("quarantined", number, doc_id, error))

    def waiting_for_store(self, error, seconds):
        self.told.append(("waiting", seconds))

    def committed(self, shards):
        self.told.append(("committed", shards))


def shards(count):
    return [Shard(n, (), 1, 10) for n in range(count)]


def drive(store, pool, count=6, progress=None, interrupt=None, **run):
    config = RunConfig(commit_shards=2, **run)
    return Driver(store, pool, config, progress or BuildProgress()).drive(shards(count), interrupt or Interrupt())


def test_every_shard_is_committed_once(store):
    version = store.version
    progress = Recorder()
    assert drive(store, FakePool(store), progress=progress) == Driven()
    assert progress.told == [("committed", 2)] * 3
    assert sorted(store.refresh().ids()) == [f"doc-{n}" for n in range(6)]
    # Six shards in commits of two.
    assert store.refresh().version == version + 3


def test_a_large_store_takes_more_shards_to_a_commit(store, monkeypatch):
    monkeypatch.setattr("pisco_index.pipeline.driver.STORED_TO_COMMITTED", 2)
    progress = Recorder()
    assert drive(store, FakePool(store), count=15, progress=progress) == Driven()
    assert progress.told == [("committed", shards) for shards in (2, 2, 2, 3, 4, 2)]


def test_a_commit_does_not_wait_for_its_number_of_shards_for_ever(store):
    version = store.version
    config = RunConfig(commit_shards=100, commit_seconds=1e-9)
    Driver(store, FakePool(store), config, BuildProgress()).drive(shards(6), Interrupt())
    assert store.refresh().version == version + 6


def test_a_shard_that_fails_is_tried_again(store):
    progress = Recorder()
    pool = FakePool(store, {(2, 1): RuntimeError("once"), (2, 2): RuntimeError("twice")})
    assert drive(store, pool, progress=progress, attempts=3) == Driven()
    assert progress.failures == [(2, 1, False), (2, 2, False)]
    assert pool.calls == []
    assert done_shards(store) == set(range(6))


def always_failing(*numbers):
    return {(number, n): RuntimeError(f"try {n}") for number in numbers for n in (1, 2, 3)}


def test_a_document_that_fails_alone_is_quarantined_and_its_shard_committed(store):
    progress = Recorder()
    pool = FakePool(store, always_failing(2), poison={2: ValueError("poison\nand more")})
    driven = drive(store, pool, progress=progress)
    assert driven == Driven((), (Quarantined("doc-2", "ValueError: poison"),))
    # Twice by itself; then the shard without it.
    assert pool.calls == [("count", 2), *[("attempt", 2)] * 2, ("run", 2)]
    assert pool.submitted.count(2) == 2
    assert progress.told[-3:] == [("alone", 2), ("quarantined", 2, "doc-2", "ValueError: poison"), ("committed", 1)]
    assert done_shards(store) == set(range(6))
    table = store.refresh().table.to_table(columns=["doc_id", "n_mem", "error"]).to_pylist()
    assert [row for row in table if row["error"]] == [{"doc_id": "doc-2", "n_mem": 0, "error": "ValueError: poison"}]


def test_a_shard_that_fails_only_beside_others_loses_no_document(store):
    pool = FakePool(store, always_failing(1, 4))
    assert drive(store, pool) == Driven()
    assert [call for call in pool.calls if call[0] == "run"] == [("run", 1), ("run", 4)]
    assert done_shards(store) == set(range(6))
    assert store.refresh().table.count_rows("error is not null") == 0


def test_a_shard_that_fails_alone_too_is_given_up_and_the_rest_is_done(store):
    progress = Recorder()
    pool = FakePool(store, always_failing(2, 3), alone_script={2: RuntimeError("hopeless")})
    driven = drive(store, pool, progress=progress)
    assert driven.failed == (FailedShard(2, "RuntimeError: hopeless"),)
    assert progress.failures[-1] == (2, 3, True)
    assert pool.calls.count(("run", 2)) == 2
    assert done_shards(store) == {0, 1, 3, 4, 5}


def test_a_shard_whose_worker_went_with_its_node_is_not_blamed(store):
    outcomes = {(2, n): WorkerDiedError("the node is gone") for n in range(1, 10)}
    pool = FakePool(store, outcomes)
    wait = pool.wait
    pool.wait = lambda timeout: [replace(outcome, charged=outcome.error is None) for outcome in wait(timeout)]
    assert drive(store, pool) == Driven()
    assert pool.submitted.count(2) == 10
    assert pool.calls == []


def test_a_store_that_is_away_is_waited_for(store, monkeypatch):
    progress, left = Recorder(), [StoreUnreachableError("no answer")] * 2

    def commit_late(*arguments):
        if left:
            raise left.pop()
        return commit(*arguments)

    monkeypatch.setattr("pisco_index.pipeline.driver.commit", commit_late)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert drive(store, FakePool(store), progress=progress) == Driven()
    assert [entry[0] for entry in progress.told].count("waiting") == 2
    assert done_shards(store) == set(range(6))


def test_a_store_that_stays_away_ends_the_build(store, monkeypatch):
    def fail(*_):
        raise StoreUnreachableError("no answer")

    monkeypatch.setattr("pisco_index.pipeline.driver.commit", fail)
    with pytest.raises(StoreUnreachableError):
        drive(store, FakePool(store), store_patience_seconds=0)


def test_an_interrupt_ends_the_waiting_for_a_store(store, monkeypatch):
    interrupt = Interrupt()

    def fail(*_):
        interrupt.requested = True
        raise StoreUnreachableError("no answer")

    monkeypatch.setattr("pisco_index.pipeline.driver.commit", fail)
    with pytest.raises(StoreUnreachableError):
        drive(store, FakePool(store), interrupt=interrupt)


def test_shards_that_a_crashed_process_had_in_hand_are_tried_alone_in_the_end(store):
    for _ in range(2):
        # Two processes that died with shard 3 in hand.
        CrashLog(store.uri).holds({3})
    pool = FakePool(store)
    crashes = CrashLog(store.uri)
    assert crashes.counts == {3: 2}
    driver = Driver(store, pool, RunConfig(), BuildProgress(), crashes=crashes)
    assert driver.drive(shards(6), Interrupt()) == Driven()
    assert pool.submitted == [0, 1, 2, 4, 5]
    assert pool.calls == [("count", 3), ("attempt", 3), ("run", 3)]
    assert not list(Path(store.uri).glob(".build.crashes*"))


def test_the_crash_log_holds_what_is_in_hand(store):
    pool = FakePool(store)
    crashes, seen = CrashLog(store.uri), []
    wait = pool.wait

    def look(timeout):
        seen.append(sorted(CrashLog(store.uri).counts))
        return wait(timeout)

    pool.wait = look
    Driver(store, pool, RunConfig(), BuildProgress(), crashes=crashes).drive(shards(6), Interrupt())
    assert seen[0] == [0, 1, 2]
    assert seen[1] == [1, 2, 3]
    assert seen[5] == [5]


def test_a_shard_that_hangs_this_process_is_tried_alone_next_time(store):
    pool = FakePool(store)
    wait = pool.wait

    def hang(timeout):
        if {outcome.number for outcome in pool.queue} >= {2}:
            raise BuildHungError("hangs", 2)
        return wait(timeout)

    pool.wait = hang
    with pytest.raises(BuildHungError):
        Driver(store, pool, RunConfig(), BuildProgress(), crashes=CrashLog(store.uri)).drive(shards(6), Interrupt())
    assert CrashLog(store.uri).counts == {2: 2}


def test_bad_input_ends_the_build_and_keeps_what_was_finished(store):
    pool = FakePool(store, {(3, 1): CorpusError("line 7 is broken")})
    with pytest.raises(CorpusError, match="line 7"):
        drive(store, pool)
    assert pool.stopped
    assert pool.submitted.count(3) == 1
    assert {0, 1, 2} <= done_shards(store)
    assert 3 not in done_shards(store)


def test_a_store_that_cannot_be_written_ends_the_build(store, monkeypatch):
    def fail(*_):
        raise StoreError("the disk is full")

    monkeypatch.setattr("pisco_index.pipeline.driver.commit", fail)
    with pytest.raises(StoreError, match="disk is full"):
        drive(store, FakePool(store))
    monkeypatch.undo()
    assert drive(store, FakePool(store)) == Driven()
    assert done_shards(store) == set(range(6))


@pytest.mark.parametrize("number", [0, 5], ids=["first", "last"])
def test_a_fragment_that_lost_its_file_is_written_again(store, number):
    def tear(written):
        name, _ = written.files[0]
        (store_folder(store) / name).unlink()

    progress = Recorder()
    assert drive(store, FakePool(store, {(number, 1): tear}), progress=progress) == Driven()
    assert progress.failures == [(number, 1, False)]
    assert sorted(store.refresh().ids()) == [f"doc-{n}" for n in range(6)]


def tearing(store, times):
    """Deletes what was written, so many times."""
    torn = []

    def tear(written):
        if len(torn) < times:
            torn.append(written.files[0][0])
            (store_folder(store) / torn[-1]).unlink()

    return tear


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_fragment_that_loses_its_file_when_it_was_done_alone_is_written_again(store, attempts):
    pool = FakePool(store, always_failing(2), alone_script={2: tearing(store, attempts)})
    assert drive(store, pool, attempts=attempts) == Driven()
    assert pool.calls.count(("run", 2)) == attempts + 1
    assert sorted(store.refresh().ids()) == [f"doc-{n}" for n in range(6)]


def test_a_shard_whose_files_are_always_lost_is_given_up(store):
    tear = tearing(store, 100)
    scripts = {"script": {(2, n): tear for n in range(1, 9)}, "alone_script": {2: tear}}
    (failed,) = drive(store, FakePool(store, **scripts), progress=(progress := Recorder())).failed
    assert failed.number == 2
    assert "is missing" in failed.error
    assert progress.failures == [(2, 1, False), (2, 2, False), (2, 3, True)]
    assert done_shards(store) == {0, 1, 3, 4, 5}


def test_an_interrupt_commits_what_is_finished_and_begins_nothing_new(store):
    interrupt = Interrupt()

    def request(_written):
        interrupt.requested = True

    pool = FakePool(store, {(1, 1): request})
    drive(store, pool, count=50, interrupt=interrupt)
    assert pool.stopped
    assert len(pool.submitted) < 10
    assert {0, 1} <= done_shards(store)


def test_a_shard_that_another_driver_committed_is_not_doubled(store):
    drive(store, FakePool(store), count=3)
    drive(store, FakePool(store), count=6)
    assert sorted(store.refresh().ids()) == [f"doc-{n}" for n in range(6)]


def store_folder(store):
    return Path(store.uri) / "memory.lance" / "data"
