"""The command's errors and exit codes, and how it starts."""

import errno
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pisco_index import __version__
from pisco_index.errors import (
    BuildHungError,
    BuildInterruptedError,
    InputError,
    MachineError,
    StoreLockedError,
    StoreUnreachableError,
)

MAIN = "from pisco_index.cli import main; main()"


def test_help_starts_without_torch():
    code = "import sys; sys.argv = ['pisco-index', '--help']\nfrom pisco_index.cli import main\ntry: main()\n"
    code += "except SystemExit: pass\nprint('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip().endswith("False")


def command(*arguments, before="", **options):
    """The command in a process of its own, as far as it is not waited for."""
    return subprocess.Popen([sys.executable, "-c", before + MAIN, *arguments], **options)


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", rb"\u017ar\xf3d\u0142o"), ("cp1252", b"\\u017ar\xf3d\\u0142o")]
)
def test_an_output_that_lacks_characters_gets_escapes(tmp_path, encoding, shown):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    arguments = "train", "tinypedia", str(tmp_path / "źródło"), "--articles", "9"
    process = command(*arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    written, errors = process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert shown in written


def test_a_closed_output_is_no_failure_and_gets_no_file(tmp_path):
    closing = "import os; os.close(1); os.close(2)\n"
    assert command("train", "tinypedia", str(tmp_path), "--articles", "9", before=closing).wait() == 0
    assert len((tmp_path / "corpus.jsonl").read_text("utf-8").splitlines()) == 9


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"]])
def test_a_reader_that_stops_reading_hears_nothing(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    process = command(*arguments, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert process.communicate() == (None, b"")


def test_the_version(run):
    shown = run("--version").stdout
    folder = shown.removeprefix(f"pisco-index {__version__}, in ").strip()
    assert (Path(folder) / "examples/tinypedia-checkpoint/config.json").is_file()
    assert metadata.version("pisco-index") == __version__


def test_help_pages_name_no_type_beside_a_flag(run):
    for page in ((), ("build",), ("checkpoint",), ("checkpoint", "new")):
        shown = run(*page, "--help").stdout
        assert "--help" in shown
        assert "bool" not in shown


def test_the_first_panel_of_a_build_is_short(run):
    first = run("build", "--help").stdout.partition("─ Options ─")[2].partition("╰")[0]
    assert [line.split()[1] for line in first.replace(" * ", "   ").splitlines()[1:] if " --" in line] == [
        "--checkpoint", "--out", "--config,--preset", "--dry-run", "--json", "--help",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("build {}/nothing -k {} -o {}/store", "nothing: cannot be read (No such file or directory)."),
        ("build {} -k {}/nothing -o {}/store", "nothing: no such checkpoint folder."),
        ("ask {}/nothing why? -k {}", "there is no store at "),
        ("answer {} -k {} -o {}/answers -q {}/no*thing", "no file or folder matches this pattern."),
        ("eval {}/nothing -q {}", "there is no store at "),
        ("train finetune {}/nothing -k {} -o {}/out", "nothing: cannot be read"),
    ],
)
def test_a_place_that_is_not_there_is_found_before_models_are_loaded(run, tmp_path, monkeypatch, arguments, message):
    # None in the place of a module makes its import fail.
    for name in ("torch", "lance", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run(*arguments.replace("{}", str(tmp_path)).split())
    assert result.exit_code == 2
    assert message in result.stderr


def test_what_the_system_refuses_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("train", "tinypedia", tmp_path / "file" / "folder")
    assert result.exit_code == 2
    assert result.stderr.strip() == f"error: {tmp_path / 'file' / 'folder'}: Not a directory."


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr("pisco_index.training.tinypedia.write", lambda *_, **__: Path("/dev/full").write_text("x"))
    result = run("train", "tinypedia", tmp_path)
    assert (result.exit_code, result.stderr.strip()) == (74, "error: No space left on device.")


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


def _caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (BuildInterruptedError("stopped with 6 of 11 shards"), 130, "stopped with 6 of 11 shards"),
        (MachineError("the disk is full"), 74, "error: the disk is full"),
        (StoreUnreachableError("no answer"), 74, "error: no answer"),
        (_caused(InputError("out: cannot be written"), OSError(errno.EDQUOT, "")), 74, "error: out: cannot be written"),
        (_caused(InputError("out: cannot be read"), OSError(errno.ENOENT, "")), 2, "error: out: cannot be read"),
        (OSError(errno.EROFS, "Read-only file system", "/mnt"), 74, "error: /mnt: Read-only file system."),
    ],
)
def test_an_exit_code_says_whether_the_input_or_the_machine_is_at_fault(run, tmp_path, monkeypatch, error, code, shown):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("pisco_index.training.tinypedia.write", fail)
    result = run("train", "tinypedia", tmp_path)
    assert (result.exit_code, result.stderr.strip()) == (code, shown)
