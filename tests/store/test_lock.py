import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pisco_index.errors import StoreLockedError
from pisco_index.store import Store, build_lock

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
