"""Panics of Rust are kept off the terminal; everything else is passed on."""

import subprocess
import sys

SCRIPT = """
import os, sys
from pisco_index.noise import without_panics
with without_panics():
    os.write(2, b"before\\n[2026-11-29T20:35:39Z WARN  lance::index] Index contents has unrecognized type\\n")
    os.write(2, b"\\nthread 'lance' (7) panicked at /home/a.rs:1:2:\\n")
    os.write(2, b"range end index 9 out of range\\nnote: run with `RUST_BACKTRACE=1` environment variable\\nafter\\n")
    os.write(2, b"thread 'lance' panicked at /home/a.rs:1:2:\\nassertion failed\\n  left: 1\\n right: 2\\nnot Rust\\n")
    print("from Python", file=sys.stderr)
os.write(2, b"last\\n")
print(repr(sys.stderr is sys.__stderr__))
"""


def run(**environment: str) -> tuple[str, set[str]]:
    environment |= {"PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment)
    return ended.stdout, set(ended.stderr.splitlines())


def test_a_panic_is_dropped_and_all_else_passed_on():
    assert run() == ("True\n", {"before", "after", "not Rust", "from Python", "last"})


def test_a_developer_sees_the_panic():
    _, lines = run(LANCE_LOG="warn")
    assert {"thread 'lance' (7) panicked at /home/a.rs:1:2:", "range end index 9 out of range"} < lines


def test_the_last_words_of_a_process_that_native_code_ends_are_passed_on():
    script = SCRIPT.replace('print("from Python"', 'os.write(2, b"terminate called\\n"), os.abort(), print("never"')
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert ended.returncode < 0
    assert ended.stderr.splitlines() == ["before", "after", "not Rust", "terminate called"]
