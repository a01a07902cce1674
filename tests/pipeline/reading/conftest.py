import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pisco_index.pipeline.reading import serving
from pisco_index.pipeline.reading.process import ReaderProcess

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def reader_pids():
    """Return the ids of all reader processes of this machine that are alive."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_reader = serving.__name__.encode() in (folder / "cmdline").read_bytes()
            if is_reader and (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(folder.name))
    return found


def await_end_of(pids):
    """Check that none of some processes lives on."""
    deadline = time.monotonic() + 30
    while alive := set(pids) & set(reader_pids()):
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


@pytest.fixture
def strike(monkeypatch):
    """Send a signal to reader processes in the middle of their first shards; return the ids of those it was sent to."""

    def strike(number, times=1):
        struck = []
        read = ReaderProcess.read

        def read_and_strike(self, shard, left_out):
            wait = self._on_wait

            def strike_and_wait():
                if len(struck) < times and self._process.pid not in struck:
                    struck.append(self._process.pid)
                    os.kill(self._process.pid, number)
                wait()

            self._on_wait = strike_and_wait
            return read(self, shard, left_out)

        monkeypatch.setattr(ReaderProcess, "read", read_and_strike)
        return struck

    return strike
