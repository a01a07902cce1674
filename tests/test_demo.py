"""``make demo`` works from an empty folder, cleans up after itself, and touches nothing else."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "demo.py"
README = ROOT / "README.md"

# Lines of the README's example that differ from run to run: those with a time, and those left out.
VARYING = re.compile(r"\d\d:\d\d:\d\d |.*\d s\. See: |\$ .* build |…|$")


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEMO), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_it_runs_over_what_an_earlier_run_left(tmp_path):
    left = tmp_path / "demo-index" / "checkpoint"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    finished = demo(tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    said = finished.stdout
    assert "$ pisco-index build " in said
    assert "yes  memory of 130 documents" in said
    assert "yes  6 answers from the store equal those computed on the spot" in said
    assert "\nNO " not in said
    assert "The weights are random" in said
    (shown,) = re.findall(r"## What comes back.*?```\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    lines = {line.rstrip() for line in said.splitlines()}
    assert [line for line in shown.splitlines() if not VARYING.match(line) and line not in lines] == []
    assert [path.name for path in tmp_path.iterdir()] == ["demo-index"]
    assert sorted(path.name for path in (tmp_path / "demo-index").iterdir()) == ["checkpoint", "store"]


def test_it_removes_nothing_of_others(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("do not lose me")
    finished = demo(tmp_path, "mine")
    assert finished.returncode == 1
    assert "thesis.tex" in finished.stderr
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "do not lose me"
