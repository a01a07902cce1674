"""``make demo`` works from an empty folder, cleans up after itself, and touches nothing else."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "demo.py"
README = ROOT / "README.md"

# The row of stored memory in the evaluation's table: exact match is the second percentage.
STORED = re.compile(r"^ *stored +hidden +int8 +[\d,]+ +[\d.]+ +([\d.]+) ", re.MULTILINE)


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
    assert re.search(
        r"^yes  the best document of the search is the right one for 99\.\d% of questions$", said, re.MULTILINE
    )
    assert re.search(r"^yes  9\d\.\d% are answered right from it$", said, re.MULTILINE)
    readme = README.read_text("utf-8")
    for line in ("pisco-index ask demo-index/store 'What is Ebir Parger best known for?'", "Zolmol Journey"):
        assert line in said
        assert line in readme
    # Rounding differs between processors, and with it some answers.
    assert float(*STORED.findall(said)) == pytest.approx(float(*STORED.findall(readme)), abs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["demo-index"]
    assert sorted(path.name for path in (tmp_path / "demo-index").iterdir()) == [
        "answers.jsonl",
        "answers.jsonl.settings.json",
        "compared.jsonl",
        "encyclopedia",
        "run.trec",
        "store",
    ]


def test_it_removes_nothing_of_others(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("do not lose me")
    finished = demo(tmp_path, "mine")
    assert finished.returncode == 1
    assert "thesis.tex" in finished.stderr
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "do not lose me"
