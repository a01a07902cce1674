"""The driver against a pool that fails by script: every shard is committed once, or given up and reported."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pisco_index.configs import RunConfig
from pisco_index.errors import BuildHungError, CorpusError, StoreError, StoreUnreachableError
from pisco_index.interrupt import Interrupt
from pisco_index.pipeline.driver import Driven, Driver, FailedShard
from pisco_index.pipeline.planning.plan import Shard
from pisco_index.pipeline.pools.fake import FakePool
from pisco_index.pipeline.pools.watchdog import WorkerDiedError
from pisco_index.pipeline.watch.progress import BuildProgress
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


def result_of(store, shard, errors):
    """Write a shard of one document, which has an error in place of memory if ``errors`` has one for its place."""
    doc_id, error = f"doc-{shard.number}", errors.get(0)
    payload = encode(doc_id, np.full((1, 4), shard.number, np.float32), codec_by_name("fp32"))
    rows = memory_rows(
        doc_ids=[doc_id],
        tokens_total=[1],
        tokens_fed=[1],
        payloads=[payload if error is None else None],
        text_hashes=[text_hash("")],
        errors=[error],
    )
    written = write_fragment(store.uri, shard.number, rows)
    return ShardResult(written, tuple(Quarantined(doc_id, each) for each in errors.values()))


@pytest.fixture
def make_pool(store):
    """Make a fake pool that writes to the store."""
    return partial(FakePool, partial(result_of, store))


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


def test_every_shard_is_committed_once(store, make_pool):
    version = store.version
    progress = Recorder()
    assert drive(store, make_pool(), progress=progress) == Driven()
    assert progress.told == [("committed", 2)] * 3
    assert sorted(store.refresh().ids()) == [f"doc-{n}" for n in range(6)]
    # Six shards in commits of two.
    assert store.refresh().version == version + 3


def test_a_large_store_takes_more_shards_to_a_commit(store, monkeypatch, make_pool):
    monkeypatch.setattr("pisco_index.pipeline.driver.STORED_TO_COMMITTED", 2)
    progress = Recorder()
    assert drive(store, make_pool(), count=15, progress=progress) == Driven()
    assert progress.told == [("committed", shards) for shards in (2, 2, 2, 3, 4, 2)]


def test_a_commit_does_not_wait_for_its_number_of_shards_for_ever(store, make_pool):
    version = store.version
    config = RunConfig(commit_shards=100, commit_seconds=1e-9)
    Driver(store, make_pool(), config, BuildProgress()).drive(shards(6), Interrupt())
    assert store.refresh().version == version + 6


@pytest.mark.fault(
    "A shard raises.",
    "It is retried.",
)
def test_a_shard_that_fails_is_tried_again(store, make_pool):
    progress = Recorder()
    pool = make_pool(script={(2, 1): RuntimeError("once"), (2, 2): RuntimeError("twice")})
    assert drive(store, pool, progress=progress, attempts=3) == Driven()
    assert progress.failures == [(2, 1, False), (2, 2, False)]
    assert pool.calls == []
    assert done_shards(store) == set(range(6))


def always_failing(*numbers):
    return {(number, n): RuntimeError(f"try {n}") for number in numbers for n in (1, 2, 3)}


def test_a_document_that_fails_alone_is_quarantined_and_its_shard_committed(store, make_pool):
    progress = Recorder()
    pool = make_pool(script=always_failing(2), poison={(2, 0): ValueError("poison\nand more")})
    driven = drive(store, pool, progress=progress)
    assert driven == Driven((), (Quarantined("doc-2", "ValueError: poison"),))
    # Twice by itself; then the shard without it.
    assert pool.calls == [("count", 2), *[("attempt", 2, 0, 1)] * 2, ("run", 2)]
    assert pool.submitted.count(2) == 2
    assert progress.told[-3:] == [("alone", 2), ("quarantined", 2, "doc-2", "ValueError: poison"), ("committed", 1)]
    assert done_shards(store) == set(range(6))
    table = store.refresh().table.to_table(columns=["doc_id", "n_mem", "error"]).to_pylist()
    assert [row for row in table if row["error"]] == [{"doc_id": "doc-2", "n_mem": 0, "error": "ValueError: poison"}]


@pytest.mark.fault(
    "A shard fails, but none of its documents does.",
    "It is done in isolation. If that fails too, it is given up and reported, exit code 3; a later run retries it.",
)
def test_a_shard_that_fails_only_beside_others_loses_no_document(store, make_pool):
    pool = make_pool(script=always_failing(1, 4))
    assert drive(store, pool) == Driven()
    assert [call for call in pool.calls if call[0] == "run"] == [("run", 1), ("run", 4)]
    assert done_shards(store) == set(range(6))
    assert store.refresh().table.count_rows("error is not null") == 0


@pytest.mark.fault(
    "A shard fails, but none of its documents does.",
    "It is done in isolation. If that fails too, it is given up and reported, exit code 3; a later run retries it.",
)
def test_a_shard_that_fails_alone_too_is_given_up_and_the_rest_is_done(store, make_pool):
    progress = Recorder()
    pool = make_pool(script=always_failing(2, 3), isolated={2: RuntimeError("hopeless")})
    driven = drive(store, pool, progress=progress)
    assert driven.failed == (FailedShard(2, "RuntimeError: hopeless"),)
    assert progress.failures[-1] == (2, 3, True)
    assert pool.calls.count(("run", 2)) == 2
    assert done_shards(store) == {0, 1, 3, 4, 5}


def test_a_shard_whose_worker_went_with_its_node_is_not_blamed(store, make_pool):
    outcomes = {(2, n): WorkerDiedError("the node is gone") for n in range(1, 10)}
    pool = make_pool(script=outcomes)
    wait = pool.wait
    pool.wait = lambda timeout: [replace(outcome, charged=outcome.error is None) for outcome in wait(timeout)]
    assert drive(store, pool) == Driven()
    assert pool.submitted.count(2) == 10
    assert pool.calls == []


@pytest.mark.fault(
    "The store does not answer.",
    "It is retried for `store_patience_seconds`, then the build ends.",
)
def test_a_store_that_is_away_is_waited_for(store, monkeypatch, make_pool):
    progress, left = Recorder(), [StoreUnreachableError("no answer")] * 2

    def commit_late(*arguments):
        if left:
            raise left.pop()
        return commit(*arguments)

    monkeypatch.setattr("pisco_index.pipeline.driver.commit", commit_late)
    monkeypatch.setattr("pisco_index.pipeline.patience.LONGEST_WAIT_S", 0.01)
    assert drive(store, make_pool(), progress=progress) == Driven()
    assert [entry[0] for entry in progress.told].count("waiting") == 2
    assert done_shards(store) == set(range(6))


@pytest.mark.fault(
    "The store does not answer.",
    "It is retried for `store_patience_seconds`, then the build ends.",
)
def test_a_store_that_stays_away_ends_the_build(store, monkeypatch, make_pool):
    def fail(*_):
        raise StoreUnreachableError("no answer")

    monkeypatch.setattr("pisco_index.pipeline.driver.commit", fail)
    with pytest.raises(StoreUnreachableError):
        drive(store, make_pool(), store_patience_seconds=0)


def test_an_interrupt_ends_the_waiting_for_a_store(store, monkeypatch, make_pool):
    interrupt = Interrupt()

    def fail(*_):
        interrupt.requested = True
        raise StoreUnreachableError("no answer")

    monkeypatch.setattr("pisco_index.pipeline.driver.commit", fail)
    with pytest.raises(StoreUnreachableError):
        drive(store, make_pool(), interrupt=interrupt)


def test_shards_that_were_in_flight_in_crashed_processes_are_isolated_in_the_end(store, make_pool):
    pool = make_pool(crashes={3: 2})
    assert drive(store, pool) == Driven()
    assert pool.submitted == [0, 1, 2, 4, 5]
    assert pool.calls == [("count", 3), ("attempt", 3, 0, 1), ("run", 3)]
    assert done_shards(store) == set(range(6))


def test_a_process_that_hangs_keeps_what_was_finished(store, make_pool):
    pool = make_pool()
    wait = pool.wait

    def hang(timeout):
        if pool.submitted[-1] == 4:
            raise BuildHungError("hangs", 2)
        return wait(timeout)

    pool.wait = hang
    with pytest.raises(BuildHungError):
        drive(store, pool)
    assert done_shards(store) == {0, 1}


def test_bad_input_ends_the_build_and_keeps_what_was_finished(store, make_pool):
    pool = make_pool(script={(3, 1): CorpusError("line 7 is broken")})
    with pytest.raises(CorpusError, match="line 7"):
        drive(store, pool)
    assert pool.stopped
    assert pool.submitted.count(3) == 1
    assert {0, 1, 2} <= done_shards(store)
    assert 3 not in done_shards(store)


def test_a_store_that_cannot_be_written_ends_the_build(store, monkeypatch, make_pool):
    def fail(*_):
        raise StoreError("the disk is full")

    monkeypatch.setattr("pisco_index.pipeline.driver.commit", fail)
    with pytest.raises(StoreError, match="disk is full"):
        drive(store, make_pool())
    monkeypatch.undo()
    assert drive(store, make_pool()) == Driven()
    assert done_shards(store) == set(range(6))


@pytest.mark.fault(
    "A written file is missing, short, or has other rows.",
    "It is not committed. The shard is written again, and given up if that is damaged each time.",
)
@pytest.mark.parametrize("number", [0, 5], ids=["first", "last"])
def test_a_fragment_that_lost_its_file_is_written_again(store, number, make_pool):
    def tear(result):
        name, _ = result.written.files[0]
        (store_folder(store) / name).unlink()

    progress = Recorder()
    assert drive(store, make_pool(script={(number, 1): tear}), progress=progress) == Driven()
    assert progress.failures == [(number, 1, False)]
    assert sorted(store.refresh().ids()) == [f"doc-{n}" for n in range(6)]


def tearing(store, times):
    """Return an action that deletes what was written, the first N times."""
    torn = []

    def tear(result):
        if len(torn) < times:
            torn.append(result.written.files[0][0])
            (store_folder(store) / torn[-1]).unlink()

    return tear


@pytest.mark.fault(
    "A written file is missing, short, or has other rows.",
    "It is not committed. The shard is written again, and given up if that is damaged each time.",
)
@pytest.mark.parametrize("attempts", [1, 2])
def test_a_fragment_that_loses_its_file_when_it_was_done_alone_is_written_again(store, attempts, make_pool):
    pool = make_pool(script=always_failing(2), isolated={2: tearing(store, attempts)})
    assert drive(store, pool, attempts=attempts) == Driven()
    assert pool.calls.count(("run", 2)) == attempts + 1
    assert sorted(store.refresh().ids()) == [f"doc-{n}" for n in range(6)]


@pytest.mark.fault(
    "A written file is missing, short, or has other rows.",
    "It is not committed. The shard is written again, and given up if that is damaged each time.",
)
def test_a_shard_whose_files_are_always_lost_is_given_up(store, make_pool):
    tear = tearing(store, 100)
    scripts = {"script": {(2, n): tear for n in range(1, 9)}, "isolated": {2: tear}}
    (failed,) = drive(store, make_pool(**scripts), progress=(progress := Recorder())).failed
    assert failed.number == 2
    assert "is missing" in failed.error
    assert progress.failures == [(2, 1, False), (2, 2, False), (2, 3, True)]
    assert done_shards(store) == {0, 1, 3, 4, 5}


@pytest.mark.fault(
    "SIGINT or SIGTERM reaches the build.",
    "Finished shards are committed, computing shards are finished, exit code 130.",
)
def test_an_interrupt_commits_what_is_finished_and_begins_nothing_new(store, make_pool):
    interrupt = Interrupt()

    def request(_result):
        interrupt.requested = True

    pool = make_pool(script={(1, 1): request})
    drive(store, pool, count=50, interrupt=interrupt)
    assert pool.stopped
    assert len(pool.submitted) < 10
    assert {0, 1} <= done_shards(store)


@pytest.mark.fault(
    "Several drivers commit the same shards, also to an object store.",
    "Each shard is stored once.",
)
def test_a_shard_that_another_driver_committed_is_not_doubled(store, make_pool):
    drive(store, make_pool(), count=3)
    drive(store, make_pool(), count=6)
    assert sorted(store.refresh().ids()) == [f"doc-{n}" for n in range(6)]


def store_folder(store):
    return Path(store.uri) / "memory.lance" / "data"
