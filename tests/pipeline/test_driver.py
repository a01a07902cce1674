"""The driver against a pool that fails as told: every shard is committed once, or given up and reported."""

from collections import deque
from pathlib import Path

import numpy as np
import pytest

from pisco_index import CorpusError, RunConfig, StoreError
from pisco_index.pipeline.driver import Driver
from pisco_index.pipeline.interrupt import Interrupt
from pisco_index.pipeline.plan import Shard
from pisco_index.pipeline.pool import Outcome
from pisco_index.pipeline.progress import BuildProgress
from pisco_index.pipeline.worker import ShardResult
from pisco_index.store import (
    Fingerprint,
    Store,
    StoreMeta,
    codec_by_name,
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
    """Writes one document a shard; ``script`` maps (shard, attempt) to an error, or to a callable on the result."""

    description = "fake"
    capacity = 3

    def __init__(self, store, script=None):
        self.store = store
        self.script = script or {}
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

    def write(self, shard):
        doc_id = f"doc-{shard.number}"
        payload = encode(doc_id, np.full((1, 4), shard.number, np.float32), codec_by_name("fp32"))
        rows = memory_rows(
            doc_ids=[doc_id],
            tokens_total=[1],
            tokens_fed=[1],
            payloads=[payload],
            text_hashes=[text_hash("")],
            errors=[None],
        )
        return write_fragment(self.store.uri, shard.number, rows)


class Recorder(BuildProgress):
    def __init__(self):
        self.failures = []

    def failed_shard(self, number, error, attempt, final):
        self.failures.append((number, attempt, final))


def shards(count):
    return [Shard(n, (), 1, 10) for n in range(count)]


def drive(store, pool, count=6, progress=None, interrupt=None, **run):
    config = RunConfig(commit_shards=2, **run)
    return Driver(store, pool, config, progress or BuildProgress()).drive(shards(count), interrupt or Interrupt())


def test_every_shard_is_committed_once(store):
    version = store.version
    assert drive(store, FakePool(store)) == ()
    assert sorted(store.refresh().ids()) == [f"doc-{n}" for n in range(6)]
    # Six shards in commits of two.
    assert store.refresh().version == version + 3


def test_a_commit_does_not_wait_for_its_number_of_shards_for_ever(store):
    version = store.version
    config = RunConfig(commit_shards=100, commit_seconds=1e-9)
    Driver(store, FakePool(store), config, BuildProgress()).drive(shards(6), Interrupt())
    assert store.refresh().version == version + 6


def test_a_shard_that_fails_is_tried_again(store):
    progress = Recorder()
    pool = FakePool(store, {(2, 1): RuntimeError("once"), (2, 2): RuntimeError("twice")})
    assert drive(store, pool, progress=progress) == ()
    assert progress.failures == [(2, 1, False), (2, 2, False)]
    assert done_shards(store) == set(range(6))


def test_a_shard_that_always_fails_is_given_up_and_the_rest_is_done(store):
    pool = FakePool(store, {(2, n): RuntimeError(f"try {n}") for n in (1, 2, 3)})
    (failed,) = drive(store, pool)
    assert failed.number == 2
    assert failed.error == "RuntimeError: try 3"
    assert done_shards(store) == {0, 1, 3, 4, 5}
    assert pool.submitted.count(2) == 3


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
    assert drive(store, FakePool(store)) == ()
    assert done_shards(store) == set(range(6))


@pytest.mark.parametrize("number", [0, 5], ids=["first", "last"])
def test_a_fragment_that_lost_its_file_is_written_again(store, number):
    def tear(written):
        name, _ = written.files[0]
        (store_folder(store) / name).unlink()

    progress = Recorder()
    assert drive(store, FakePool(store, {(number, 1): tear}), progress=progress) == ()
    assert progress.failures == [(number, 1, False)]
    assert sorted(store.refresh().ids()) == [f"doc-{n}" for n in range(6)]


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
