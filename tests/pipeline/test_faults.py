"""Documents that workers die of, hang at or refuse: only they are quarantined, and every other one is stored.

What they do is in tests/faults.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pisco_index import BuildConfig, build
from pisco_index.store import Store, decode

from .conftest import write_corpus

FAULTS = Path(__file__).parent.parent / "faults"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def spoiled(make_corpus, tmp_path):
    """Write a corpus in which some documents are poison, by number."""

    def spoil(poison, documents=40):
        path = make_corpus(documents)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for number, fault in poison.items():
            lines[number]["text"] += f" POISON-{fault}"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return spoil


SETTINGS = {
    "run": {"shard_documents": 8, "commit_shards": 2},
    "compression": {"dtype": "float32", "max_length": 64},
    "store": {"codec": "fp32"},
}


@pytest.fixture
def run(checkpoint, tmp_path):
    """Build a corpus by the command, in small shards, with workers that poison works on."""

    def build(corpus, *arguments, hang_seconds=600.0):
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps(SETTINGS | {"run": {**SETTINGS["run"], "hang_seconds": hang_seconds}}))
        command = [sys.executable, "-m", "pisco_index.cli", "build", corpus, "-k", checkpoint, "-c", config]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FAULTS), *sys.path[1:]])}
        return subprocess.run(
            [*map(str, command), "-o", str(tmp_path / "store"), *map(str, arguments)],
            capture_output=True, text=True, timeout=240, check=False, env=environment,
        )  # fmt: skip

    return build


@dataclass
class Row:
    """A document as the store has it: its memory, ``(n_mem, dim)``, or its error."""

    memory: np.ndarray | None
    error: str | None
    n_mem: int
    text_hash: bytes


def rows(uri):
    store = Store.open(uri)
    table = store.table.to_table(columns=["doc_id", "payload", "error", "n_mem", "text_hash"]).to_pylist()
    found = {
        row["doc_id"]: Row(
            row["payload"] and decode(row["payload"], row["doc_id"], store.calibration),
            row["error"],
            row["n_mem"],
            row["text_hash"],
        )
        for row in table
    }
    assert len(found) == len(table)
    return found


def require_all_but(uri, undisturbed, poison, *, rounding=1e-4):
    """Check that every document is stored once, as by an undisturbed build, and poison with an error for its memory.

    Memory may differ by rounding: a document that is computed with others in a batch, or alone, is rounded otherwise.
    """
    found = rows(uri)
    assert found.keys() == undisturbed.keys()
    assert {doc_id for doc_id, row in found.items() if row.error} == {f"doc-{number}" for number in poison}
    for doc_id, row in found.items():
        expected = undisturbed[doc_id]
        if row.error:
            assert (row.memory, row.n_mem) == (None, 0)
            continue
        assert (row.n_mem, row.text_hash) == (expected.n_mem, expected.text_hash)
        assert row.memory.shape == expected.memory.shape
        assert distance(row, expected) < rounding
        # No other document would pass for this one.
        alike = [each for each in undisturbed.values() if each.n_mem == row.n_mem]
        assert min(alike, key=partial(distance, row)) is expected


def distance(row, other):
    return np.linalg.norm(row.memory - other.memory) / np.linalg.norm(other.memory)


@pytest.fixture(scope="module")
def undisturbed(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    write_corpus(folder / "corpus.jsonl", 40)
    build([folder / "corpus.jsonl"], checkpoint, folder / "store", BuildConfig.parse(SETTINGS, "test"))
    return rows(folder / "store")


@pytest.mark.fault(
    "A document makes its worker raise.",
    "It is quarantined.",
)
@pytest.mark.fault(
    "A document kills its process.",
    "It is quarantined; in a build in one process, after two runs that died.",
)
def test_documents_that_raise_or_kill_this_process_are_quarantined_in_the_end(spoiled, run, undisturbed, tmp_path):
    poison = {3: "RAISE", 11: "SEGV-LATE", 17: "RAISE-LATE"}
    corpus = spoiled(poison)
    # Of document 11 the process dies in the sample for the codec, then in its shard. Then the shard is isolated.
    finished = [run(corpus, "--codec", "int8") for _ in range(4)]
    assert [each.returncode for each in finished] == [-signal.SIGSEGV, -signal.SIGSEGV, 3, 0]
    assert "3 documents could not be compressed" in finished[2].stderr
    first = "'doc-3', 'doc-11', 'doc-17'; the first: ValueError: this document cannot be compressed"
    assert first in finished[2].stderr
    assert "SIGSEGV" in rows(tmp_path / "store")["doc-11"].error
    require_all_but(tmp_path / "store", undisturbed, poison, rounding=0.02)
    assert not list((tmp_path / "store").glob(".build.crashes*"))


SLOW = pytest.mark.skipif("PISCO_INDEX_TORTURE" not in os.environ, reason="slow: make torture-short")


@pytest.mark.fault(
    "A document kills its reader process.",
    "It is quarantined, in one process too.",
)
@SLOW
def test_a_document_that_kills_its_readers_is_quarantined_at_once(spoiled, run, undisturbed, tmp_path):
    finished = run(spoiled({11: "KILL"}), "--reader-processes", 1)
    assert finished.returncode == 3, finished.stderr
    assert "shard 1 was read 2 times, and each time a reader process died of SIGKILL" in finished.stderr
    require_all_but(tmp_path / "store", undisturbed, {11})


@SLOW
@pytest.mark.parametrize(
    ("fault", "code", "word"), [("SEGV-LATE", -signal.SIGSEGV, "SIGSEGV"), ("EXIT", 7, "exit code 7")]
)
def test_a_document_that_this_process_dies_of_twice(spoiled, run, undisturbed, tmp_path, fault, code, word):
    corpus = spoiled({11: fault})
    finished = [run(corpus) for _ in range(3)]
    assert [each.returncode for each in finished] == [code, code, 3], finished[-1].stderr
    assert word in rows(tmp_path / "store")["doc-11"].error
    require_all_but(tmp_path / "store", undisturbed, {11})


@pytest.mark.fault(
    "A document hangs its worker.",
    "It is quarantined after `hang_seconds`; in a build in one process, by the next run.",
)
@SLOW
def test_a_document_that_this_process_hangs_at_is_quarantined_next_time(spoiled, run, undisturbed, tmp_path):
    corpus = spoiled({20: "HANG-LATE"})
    finished = run(corpus, hang_seconds=10)
    assert finished.returncode == 3
    # The poison hangs before the worker says with which shard it computes.
    assert "has taken no step for 10 s" in finished.stderr
    finished = run(corpus, hang_seconds=10)
    assert finished.returncode == 3, finished.stderr
    assert "WorkerHungError" in rows(tmp_path / "store")["doc-20"].error
    require_all_but(tmp_path / "store", undisturbed, {20})


@pytest.mark.fault(
    "A document kills its process.",
    "It is quarantined; in a build in one process, after two runs that died.",
)
@SLOW
def test_all_kinds_at_once_on_ray(spoiled, run, undisturbed, tmp_path):
    pytest.importorskip("ray")
    poison = {1: "RAISE", 12: "HANG", 33: "SEGV-LATE"}
    finished = run(spoiled(poison), "--ray", "local", "--workers", 2, hang_seconds=10)
    assert finished.returncode == 3, finished.stderr
    assert "3 documents could not be compressed" in finished.stderr
    require_all_but(tmp_path / "store", undisturbed, poison)
