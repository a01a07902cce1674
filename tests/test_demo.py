"""``make demo`` works from an empty folder, cleans up after itself, and touches nothing else."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "demo.py"
README = ROOT / "README.md"

# Lines of the README's example that differ from run to run: those with a time, and those left out; and from one kind of
# processor to another: those that the rounding of an answer may change.
VARYING = re.compile(
    r"\d\d:\d\d:\d\d |.*\d s\. See: |\$ .* (build|ask|eval) |…|$|(none|text|stored|recoded) |.*\(true: "
)
ACCURACY = re.compile(r"^exactly right of (\d+): ([\d.]+)% from memory, ([\d.]+)% without it$", re.MULTILINE)


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEMO), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_it_runs_over_what_an_earlier_run_left(tmp_path):
    left = tmp_path / "demo-index" / "store"
    left.mkdir(parents=True)
    (left / "notes.txt").write_text("")
    finished = demo(tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    said = finished.stdout
    assert "$ pisco-index build " in said
    assert re.search(r"^yes  memory of 60 documents, \d+ vectors: error below 0\.01% of", said, re.MULTILINE)
    assert "yes  memory answers more questions than none" in said
    (shown,) = re.findall(r"## What comes back.*?```\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    (told,), (found,) = (ACCURACY.findall(text) for text in (shown, said))
    assert [float(share) for share in found] == pytest.approx([float(share) for share in told], abs=2)
    lines = {line.strip() for line in said.splitlines()}
    strange = [line for line in shown.splitlines() if line.strip() not in lines and not ACCURACY.match(line)]
    assert [line for line in strange if not VARYING.match(line.strip())] == []
    assert [path.name for path in tmp_path.iterdir()] == ["demo-index"]
    assert sorted(path.name for path in (tmp_path / "demo-index").iterdir()) == [
        "answers.jsonl",
        "encyclopedia",
        "store",
    ]


def test_it_removes_nothing_of_others(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("do not lose me")
    finished = demo(tmp_path, "mine")
    assert finished.returncode == 1
    assert "thesis.tex" in finished.stderr
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "do not lose me"
