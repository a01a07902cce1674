"""Damage the files of a store at random: a reader never returns wrong memory, and ``verify`` finds the damage.

``PISCO_INDEX_DAMAGE_TRIALS=5000 python -m pytest tests/test_damage.py`` runs more trials.
``PISCO_INDEX_DAMAGE_FIRST`` is the number of the first trial: another number gives other damage.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import lance
import pytest

from pisco_index import BuildConfig, build, new_tiny_checkpoint, repair

TRIALS = int(os.environ.get("PISCO_INDEX_DAMAGE_TRIALS", "300"))
FIRST = int(os.environ.get("PISCO_INDEX_DAMAGE_FIRST", "0"))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Build a small store with titles and texts in several files, one of which has a list of deleted rows."""
    folder = tmp_path_factory.mktemp("damage")
    checkpoint = new_tiny_checkpoint(folder / "checkpoint", rate=8).path
    texts = [f"Document {n} is about " + "the history of the city and its river " * (n % 7) for n in range(24)]
    lines = [json.dumps({"id": f"doc-{n}", "title": f"Title {n}", "text": text}) for n, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    sections = {"run": {"shard_documents": 8, "commit_shards": 2}, "store": {"keep": ["title", "text"]}}
    build([folder / "corpus.jsonl"], checkpoint, folder / "store", BuildConfig.parse(sections, "test"))
    table = lance.dataset(folder / "store" / "memory.lance")
    moved = table.to_table(filter="doc_id = 'doc-9'")
    table.delete("doc_id = 'doc-9'")
    lance.write_dataset(moved, table.uri, mode="append")
    # It records the checksums of what Lance wrote.
    assert repair(folder / "store").recorded
    return folder / "store"


@pytest.fixture(scope="module")
def trials(store, tmp_path_factory) -> list[dict]:
    """Return the results of the trials. The process must not end before its last trial."""
    script = str(Path(__file__).with_name("damage.py"))
    # The script imports the same package as this test. Hundreds of panics would print a backtrace each.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "RUST_BACKTRACE": "0"}
    scratch = tmp_path_factory.mktemp("damaged") / "store"
    command = [sys.executable, script, str(store), str(scratch), str(FIRST), str(TRIALS)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 0, f"{lines[-1]}: {ended.stderr[-2000:]}"
    return [line for line in lines if "trial" in line]


@pytest.mark.fault(
    "Any file of a store is damaged, truncated or lost.",
    "What is read is right or refused, and `verify` finds what is refused.",
)
def test_what_is_read_is_right_or_refused(trials):
    assert len(trials) == TRIALS
    assert not [trial for trial in trials if trial["read"] not in ("correct", "refused")]
    # The trials test something only if damage mattered in some of them.
    outcomes = Counter(trial["read"] for trial in trials)
    assert min(outcomes["correct"], outcomes["refused"]) > TRIALS // 10


@pytest.mark.fault(
    "Any file of a store is damaged, truncated or lost.",
    "What is read is right or refused, and `verify` finds what is refused.",
)
def test_verify_finds_all_that_is_refused(trials):
    assert not [trial for trial in trials if trial["verify"] not in ("sound", "unchecked", "problems")]
    assert not [trial for trial in trials if trial["read"] != "correct" and trial["verify"] != "problems"]


@pytest.mark.fault(
    "Any byte of a store's tables is changed.",
    "`verify` finds it.",
)
def test_verify_finds_every_changed_byte(trials):
    """Two kinds of damage do no harm: to Lance's hints about the newest versions, and the loss of an old version."""
    changed = [trial for trial in trials if trial["is_changed"] and "hint.json" not in trial["file"]]
    changed = [trial for trial in changed if not trial["damage"].startswith("delete")]
    assert not [trial for trial in changed if trial["verify"] != "problems"]
    assert len({trial["file"].rpartition("/")[0] for trial in changed}) > 8
    assert not [trial for trial in trials if trial["silent"]]
