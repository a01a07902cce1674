"""Signals: the first asks for an orderly end, the second is one."""

import signal
import subprocess
import sys
import threading

from pisco_index.interrupt import Interrupt


def test_a_signal_is_noted_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_signal_ends_the_process_whatever_it_does():
    code = """
import signal, threading, time
from pisco_index.interrupt import Interrupt
with Interrupt():
    signal.raise_signal(signal.SIGINT)
    threading.Thread(target=time.sleep, args=(60,)).start()
    signal.raise_signal(signal.SIGINT)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 130


def test_in_another_thread_nothing_is_caught():
    thread = threading.Thread(target=lambda: Interrupt().__enter__())
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
