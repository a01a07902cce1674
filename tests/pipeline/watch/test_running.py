"""How a build is going, asked from elsewhere."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from pisco_index import build, run_status
from pisco_index.errors import BuildIncompleteError, StoreError
from pisco_index.pipeline.watch.progress import BuildProgress, WorkerState
from pisco_index.pipeline.watch.running import STATUS_SECONDS, DriverStatus, StatusFile
from pisco_index.store import build_lock

from ..conftest import fail_on


class Looking(BuildProgress):
    """Asks how a build is going from within it, in place of somebody beside it."""

    def __init__(self, store):
        self.store, self.seen = store, []

    def finished_shard(self, *_):
        self.seen.append(run_status(self.store))


@pytest.fixture
def unfinished(checkpoint, make_corpus, small, tmp_path, monkeypatch):
    """A store that lacks two of five shards, each of the others committed on its own."""
    with monkeypatch.context() as patched:
        fail_on(patched, {1, 3})
        with pytest.raises(BuildIncompleteError):
            build([make_corpus()], checkpoint, tmp_path / "store", small(run={"commit_shards": 1}))
    return tmp_path / "store"


def test_a_build_that_is_not_finished(unfinished):
    found = run_status(unfinished)
    assert (found.shards, found.missing, found.is_complete) == (5, 2, False)
    assert (found.records, found.documents) == (40, 24)
    assert (found.failed_documents, found.rejected_records) == (0, 0)
    assert (found.running, found.holder, found.driver) == (False, None, None)
    # Nobody works on it.
    assert found.remaining_s is None
    assert found.last_commit.endswith("Z")


def test_a_build_that_is_finished(checkpoint, make_corpus, small, tmp_path):
    build([make_corpus()], checkpoint, tmp_path / "store", small())
    found = run_status(tmp_path / "store")
    assert (found.missing, found.is_complete, found.remaining_s, found.running) == (0, True, 0.0, False)
    assert not (tmp_path / "store" / ".build.status").exists()


def test_a_build_that_is_running(checkpoint, make_corpus, small, tmp_path):
    looking = Looking(tmp_path / "store")
    build([make_corpus()], checkpoint, tmp_path / "store", small(run={"commit_shards": 1}), progress=looking)
    first, last = looking.seen[0], looking.seen[-1]
    assert first.running
    assert first.holder.pid == first.driver.pid == os.getpid()
    assert first.driver.where == "this process, cpu, 2,048 tokens per batch"
    assert (first.missing, first.documents) == (5, 0)
    assert last.missing < 5
    assert last.documents == 8 * (5 - last.missing)
    assert json.loads(json.dumps(last.to_dict()))["driver"]["pid"] == os.getpid()


def test_speed_and_time_left_come_from_commits_where_the_build_says_nothing(
    checkpoint, make_corpus, small, tmp_path, monkeypatch
):
    monkeypatch.setattr(StatusFile, "started", lambda *_: None)
    looking = Looking(tmp_path / "store")
    build([make_corpus()], checkpoint, tmp_path / "store", small(run={"commit_shards": 1}), progress=looking)
    last = looking.seen[-1]
    assert last.driver is None
    assert last.missing
    assert last.documents_per_s > 0
    assert last.remaining_s >= 0


def test_a_store_that_another_process_builds(unfinished):
    code = (
        "import sys\nfrom pisco_index.store import build_lock\n"
        "with build_lock(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(unfinished)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        found = run_status(unfinished)
        assert (found.running, found.holder.pid, found.driver) == (True, process.pid, None)

        # What a build that was killed has left does not speak for this one.
        listener = listening(unfinished)
        assert DriverStatus.read(unfinished).pid == os.getpid()
        assert run_status(unfinished).driver is None
        listener.ended()
        os.kill(process.pid, signal.SIGKILL)
    assert run_status(unfinished).running is False


def test_without_a_store_there_is_nothing_to_tell(tmp_path):
    with pytest.raises(StoreError, match="there is no store"):
        run_status(tmp_path / "none")


def listening(folder, clock=time.monotonic):
    listener = StatusFile(clock)
    listener.began(str(folder), None)
    listener.started(4, 1, {1: 1000, 2: 1000, 3: 1000}, "here")
    return listener


def test_what_workers_do_is_there_for_others(unfinished):
    now = 0.0
    with build_lock(unfinished):
        listener = listening(unfinished, lambda: now)
        for second in range(31):
            now = float(second)
            states = [
                WorkerState("w0", "compressing", 1, second, 10 * second, second / 100),
                WorkerState("w1", "starting", None, 0, 0),
            ]
            listener.workers(states)
        found = run_status(unfinished)
        assert found.driver.workers == tuple(states)
        assert (found.driver.documents, found.driver.tokens, found.driver.tokens_per_s) == (30, 300, 10)
        assert found.remaining_s == found.driver.remaining_s == pytest.approx(170, rel=0.01)
        assert not found.driver.stopping
        listener.stopping()
        assert run_status(unfinished).driver.stopping
        listener.ended()
        assert run_status(unfinished).driver is None
    assert [path.name for path in unfinished.iterdir() if "status" in path.name] == []


def test_the_file_is_written_every_few_seconds_only(tmp_path):
    now, written = 0.0, set()
    listener = listening(tmp_path, lambda: now)
    for tenth in range(100):
        now = tenth / 10
        listener.workers([WorkerState("w0", "compressing", 1, tenth, tenth, 0.0)])
        written.add(DriverStatus.read(tmp_path).documents)
    assert len(written) == 1 + int(9.9 // STATUS_SECONDS)


def test_a_build_that_is_silent_is_not_believed(unfinished):
    with build_lock(unfinished):
        listener = listening(unfinished)
        path = unfinished / ".build.status"
        values = json.loads(path.read_text()) | {"remaining_s": 5.0}
        path.write_text(json.dumps(values))
        assert run_status(unfinished).remaining_s == 5.0
        path.write_text(json.dumps(values | {"time": "2026-01-01T00:00:00.000Z"}))
        assert run_status(unfinished).remaining_s != 5.0
        listener.ended()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"workers": 3}', '{"workers": [{"name": "x"}]}', "\xff"])
def test_a_file_that_makes_no_sense_is_ignored(tmp_path, text):
    (tmp_path / ".build.status").write_text(text, "latin-1")
    assert DriverStatus.read(tmp_path) is None


def test_what_a_later_version_adds_is_ignored(tmp_path):
    listener = listening(tmp_path)
    path = tmp_path / ".build.status"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"weather": "fine", "workers": [{**asdict(WORKER), "mood": 3}]}))
    assert DriverStatus.read(tmp_path).workers == (WORKER,)
    listener.ended()


WORKER = WorkerState("w0", "waiting", None, 0, 0)


def test_in_an_object_store_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listener = listening("s3://bucket/index")
    listener.workers([WORKER])
    listener.ended()
    assert not [*Path.cwd().iterdir()]


def test_a_build_that_never_began_takes_nothing_away(tmp_path):
    (tmp_path / ".build.status").write_text("another build's")
    listener = StatusFile()
    listener.began(str(tmp_path), None)
    listener.ended()
    assert (tmp_path / ".build.status").exists()
