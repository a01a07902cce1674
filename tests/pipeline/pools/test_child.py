"""A worker in a child process: it may start slowly, and ends with its parent."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest


def state_of(pid):
    """Return the state of a process as the system has it; None if the process is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return None


@pytest.mark.fault(
    "The build is killed while a document hangs or stops its child process.",
    "The child process ends too.",
)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child that is stopped does not notice")
def test_a_child_that_is_stopped_ends_with_its_parent(work, tmp_path):
    code = f"""
import os, signal, sys
from pisco_index.pipeline.pools.child import ChildWorker
from pisco_index.pipeline.worker import WorkerSpec
from pisco_index.configs import CompressionConfig
spec = WorkerSpec({work.spec.checkpoint!r}, CompressionConfig(dtype="float32"), "hidden", "fp32", (), "", (), "cpu")
if __name__ == "__main__":
    # A child may take longer to start than one that hangs: importing torch alone takes longer than that.
    child = ChildWorker(spec, hang_s=0.1)
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
    while state_of(int(parent.stdout)) not in (None, "Z"):
        time.sleep(0.1)
