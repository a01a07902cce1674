"""The command's errors and exit codes, and how it starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pisco_index.errors import BuildHungError, StoreLockedError


def test_help_starts_without_torch():
    code = "import sys; sys.argv = ['pisco-index', '--help']\nfrom pisco_index.cli import main\ntry: main()\n"
    code += "except SystemExit: pass\nprint('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip().endswith("False")


def test_what_the_system_refuses_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("train", "tinypedia", tmp_path / "file" / "folder")
    assert result.exit_code == 2
    assert result.stderr.strip() == f"error: {tmp_path / 'file' / 'folder'}: Not a directory."


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr("pisco_index.training.tinypedia.write", lambda *_, **__: Path("/dev/full").write_text("x"))
    result = run("train", "tinypedia", tmp_path)
    assert (result.exit_code, result.stderr.strip()) == (2, "error: No space left on device.")


@pytest.mark.parametrize(
    ("raised", "code", "shown"),
    [
        (StoreLockedError("[red]s3://a:secret@b[/] is locked."), 75, "error: [red]s3://…@b[/] is locked.\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
)
def test_an_error_is_one_paragraph_and_an_exit_code(run, monkeypatch, tmp_path, raised, code, shown):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr("pisco_index.training.tinypedia.write", fail)
    result = run("train", "tinypedia", tmp_path)
    assert (result.exit_code, result.stderr) == (code, shown)


def test_a_hanging_thread_does_not_keep_the_process(run, monkeypatch, tmp_path):
    def hang(*_, **__):
        raise BuildHungError("shard 3 hangs.", 3)

    left = []
    monkeypatch.setattr("pisco_index.training.tinypedia.write", hang)
    monkeypatch.setattr(os, "_exit", left.append)
    run("train", "tinypedia", tmp_path)
    assert left == [3]
