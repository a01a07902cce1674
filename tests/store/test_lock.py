import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pisco_index.errors import StoreLockedError
from pisco_index.store import Holder, Store, build_lock, lock, lock_holder

HOLDER = """
import sys
from pisco_index.store import build_lock
with build_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "index")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def impatient(monkeypatch):
    """Do not wait for a lock that is taken."""
    monkeypatch.setattr(lock, "GRACE_S", 0)


@pytest.mark.fault(
    "A second build of the same store starts.",
    "It is refused, naming process and host, exit code 75.",
)
def test_a_store_is_built_by_one_process(tmp_path, holder, impatient):
    with pytest.raises(StoreLockedError) as caught, build_lock(tmp_path / "index"):
        pass
    assert f"process {holder.pid} on {socket.gethostname()} since 20" in str(caught.value)
    found = lock_holder(tmp_path / "index")
    assert (found.pid, found.host) == (holder.pid, socket.gethostname())
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found.since)).total_seconds()) < 600
    # Looking has not taken the lock away.
    with pytest.raises(StoreLockedError), build_lock(tmp_path / "index"):
        pass
    holder.communicate("")
    assert lock_holder(tmp_path / "index") is None
    with build_lock(tmp_path / "index"):
        pass


@pytest.mark.fault(
    "The holder of the lock is killed.",
    "The lock is free.",
)
def test_a_killed_holder_leaves_no_lock(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "index" / ".build.holder").exists()
    assert lock_holder(tmp_path / "index") is None
    with build_lock(tmp_path / "index"):
        pass


def test_a_holder_whose_description_is_damaged_is_a_holder(tmp_path, holder, impatient):
    for text in ("{", "[]", '{"pid": null}'):
        Path(tmp_path, "index", ".build.holder").write_text(text)
        assert lock_holder(tmp_path / "index") == Holder()
        with pytest.raises(StoreLockedError, match="another process"), build_lock(tmp_path / "index"):
            pass
    assert str(Holder()) == "another process"


def test_a_process_does_not_take_the_lock_twice(tmp_path, impatient):
    with build_lock(tmp_path):
        with pytest.raises(StoreLockedError, match=f"process {os.getpid()}"), build_lock(tmp_path):
            pass
        assert lock_holder(tmp_path).pid == os.getpid()


def test_a_build_that_fails_releases_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), build_lock(tmp_path):
        _ = 1 / 0
    with build_lock(tmp_path):
        pass
    assert not (tmp_path / ".build.holder").exists()


def test_a_locked_folder_can_become_a_store(tmp_path, meta):
    with build_lock(tmp_path / "new" / "index"):
        Store.create(tmp_path / "new" / "index", meta=meta, assets={})


def test_a_process_that_waits_makes_a_removed_folder_again(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "GRACE_S", 30.0)
    held, fails = threading.Event(), threading.Event()

    def hold():
        with suppress(ZeroDivisionError), build_lock(tmp_path / "new"):
            held.set()
            fails.wait()
            _ = 1 / 0

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    timer = threading.Timer(0.3, fails.set)
    timer.start()
    with build_lock(tmp_path / "new"):
        holder.join()
        assert (tmp_path / "new" / ".build.lock").exists()


def test_nobody_holds_the_lock_of_an_object_store_or_of_no_store(tmp_path):
    with build_lock("s3://bucket/index"), build_lock("s3://bucket/index"):
        assert lock_holder("s3://bucket/index") is None
    assert lock_holder(tmp_path / "nothing") is None
    assert not (tmp_path / "nothing").exists()


@pytest.mark.fault(
    "`status` checks the lock while a build starts.",
    "The build starts.",
)
def test_asking_in_passing_keeps_no_build_out(tmp_path):
    with build_lock(tmp_path):
        pass
    descriptor = os.open(tmp_path / ".build.lock", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    timer = threading.Timer(0.1, os.close, [descriptor])
    timer.start()
    with build_lock(tmp_path):
        pass
    timer.join()


def test_several_processes_may_look_at_once(tmp_path):
    with build_lock(tmp_path):
        pass
    with (tmp_path / ".build.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert lock_holder(tmp_path) is None
