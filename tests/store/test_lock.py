import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pisco_index.errors import StoreLockedError
from pisco_index.store import Holder, Store, build_lock, lock_holder

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


def test_a_store_is_built_by_one_process(tmp_path, holder):
    with pytest.raises(StoreLockedError) as caught, build_lock(tmp_path / "index"):
        pass
    assert f"process {holder.pid} on {socket.gethostname()} since 20" in str(caught.value)
    holder.communicate("")
    with build_lock(tmp_path / "index"):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with build_lock(tmp_path / "index"):
        pass


def test_the_lock_is_not_held_twice_in_a_process(tmp_path):
    with (
        build_lock(tmp_path),
        pytest.raises(StoreLockedError, match=f"process {os.getpid()}"),
        build_lock(tmp_path),
    ):
        pass


def test_a_build_that_fails_lets_go_of_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), build_lock(tmp_path):
        _ = 1 / 0
    with build_lock(tmp_path):
        pass
    assert not (tmp_path / ".build.holder").exists()


def test_a_locked_folder_can_become_a_store(tmp_path, meta):
    with build_lock(tmp_path / "new" / "index"):
        Store.create(tmp_path / "new" / "index", meta=meta, assets={})


def test_a_holder_without_description_is_still_a_holder(tmp_path, holder):
    Path(tmp_path, "index", ".build.holder").write_text("{")
    with pytest.raises(StoreLockedError, match="another process"), build_lock(tmp_path / "index"):
        pass


def test_object_stores_have_no_lock():
    with build_lock("s3://bucket/index"), build_lock("s3://bucket/index"):
        pass


def test_who_holds_the_lock_is_told(tmp_path, holder):
    found = lock_holder(tmp_path / "index")
    assert (found.pid, found.host) == (holder.pid, socket.gethostname())
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found.since)).total_seconds()) < 600
    # Asking has taken nothing away.
    with pytest.raises(StoreLockedError), build_lock(tmp_path / "index"):
        pass
    holder.communicate("")
    assert lock_holder(tmp_path / "index") is None


def test_a_holder_that_was_killed_holds_nothing_though_its_description_is_there(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "index" / ".build.holder").exists()
    assert lock_holder(tmp_path / "index") is None


def test_a_holder_whose_description_is_damaged_is_a_holder(tmp_path, holder):
    for text in ("{", "[]", '{"pid": null}'):
        Path(tmp_path, "index", ".build.holder").write_text(text)
        assert lock_holder(tmp_path / "index") == Holder()
    assert str(Holder()) == "another process"


def test_this_process_is_a_holder_too(tmp_path):
    with build_lock(tmp_path):
        assert lock_holder(tmp_path).pid == os.getpid()


def test_where_nothing_was_built_nobody_holds_the_lock(tmp_path):
    assert lock_holder(tmp_path / "nothing") is None
    assert lock_holder("s3://bucket/index") is None
    assert not (tmp_path / "nothing").exists()


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


def test_several_may_ask_at_once(tmp_path):
    with build_lock(tmp_path):
        pass
    with (tmp_path / ".build.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert lock_holder(tmp_path) is None
