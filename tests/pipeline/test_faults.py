"""Documents that workers die of, hang at or refuse: they alone are quarantined, and every other one is stored.

What they do is in tests/faults.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lancedb
import pytest

from pisco_index import BuildConfig, build

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
    # A passage at a time: in other company its memory is rounded otherwise.
    "run": {"shard_documents": 8, "commit_shards": 2, "token_budget": 1},
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


def rows(uri):
    table = lancedb.connect(str(uri)).open_table("memory").to_arrow()
    columns = (table[name].to_pylist() for name in ("doc_id", "payload", "error", "n_mem"))
    found = list(zip(*columns, strict=True))
    assert len(found) == len({row[0] for row in found})
    return {doc_id: (payload, error, n_mem) for doc_id, payload, error, n_mem in found}


def require_all_but(uri, undisturbed, poison):
    """Every document once, as an undisturbed build stores it; poison with an error in place of memory."""
    found = rows(uri)
    assert found.keys() == undisturbed.keys()
    assert {doc_id for doc_id, (_, error, _) in found.items() if error} == {f"doc-{number}" for number in poison}
    for doc_id, (payload, error, n_mem) in found.items():
        if error:
            assert (payload, n_mem) == (None, 0)
        else:
            assert payload == undisturbed[doc_id][0]


@pytest.fixture(scope="module")
def undisturbed(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    write_corpus(folder / "corpus.jsonl", 40)
    build([folder / "corpus.jsonl"], checkpoint, folder / "store", BuildConfig.parse(SETTINGS, "test"))
    return rows(folder / "store")


def test_a_document_that_raises_is_quarantined_here(spoiled, run, undisturbed, tmp_path):
    poison = {3: "RAISE", 17: "RAISE-LATE"}
    finished = run(corpus := spoiled(poison))
    assert finished.returncode == 3, finished.stderr
    assert "2 documents could not be compressed" in finished.stderr
    assert "'doc-3', 'doc-17'; the first: ValueError: this document cannot be compressed" in finished.stderr
    require_all_but(tmp_path / "store", undisturbed, poison)
    assert run(corpus).returncode == 0
    require_all_but(tmp_path / "store", undisturbed, poison)


SLOW = pytest.mark.skipif("PISCO_INDEX_TORTURE" not in os.environ, reason="slow: make torture-short")


@pytest.mark.parametrize(("fault", "word"), [("SEGV-LATE", "SIGSEGV"), pytest.param("EXIT", "exit code 7", marks=SLOW)])
def test_a_document_that_this_process_dies_of_is_quarantined_in_the_end(
    spoiled, run, undisturbed, tmp_path, fault, word
):
    corpus = spoiled({11: fault})
    codes = []
    while not codes or codes[-1] not in (0, 3):
        finished = run(corpus)
        codes.append(finished.returncode)
        assert len(codes) < 5
    died = {"SEGV-LATE": -signal.SIGSEGV, "EXIT": 7}[fault]
    assert codes == [died, died, 3], finished.stderr
    assert word in rows(tmp_path / "store")["doc-11"][1]
    require_all_but(tmp_path / "store", undisturbed, {11})
    assert not [path for path in (tmp_path / "store").iterdir() if path.name.startswith(".build.crashes")]


def test_a_document_that_this_process_dies_of_in_the_sample_for_a_codec(spoiled, run, tmp_path):
    corpus = spoiled({11: "SEGV-LATE"})
    codes = [run(corpus, "--codec", "int8").returncode for _ in range(3)]
    # In the sample, in its shard, alone.
    assert codes == [-signal.SIGSEGV, -signal.SIGSEGV, 3]
    found = rows(tmp_path / "store")
    assert [doc_id for doc_id, (_, error, _) in found.items() if error] == ["doc-11"]
    assert len(found) == 40


@SLOW
def test_a_document_that_this_process_hangs_at_is_quarantined_next_time(spoiled, run, undisturbed, tmp_path):
    corpus = spoiled({20: "HANG-LATE"})
    finished = run(corpus, hang_seconds=10)
    assert finished.returncode == 3
    # The poison hangs before the worker says with which shard it computes.
    assert "has taken no step for 10 s" in finished.stderr
    finished = run(corpus, hang_seconds=10)
    assert finished.returncode == 3, finished.stderr
    assert "WorkerHungError" in rows(tmp_path / "store")["doc-20"][1]
    require_all_but(tmp_path / "store", undisturbed, {20})


@SLOW
def test_all_kinds_at_once_on_ray(spoiled, run, undisturbed, tmp_path):
    pytest.importorskip("ray")
    poison = {1: "RAISE", 12: "HANG", 33: "SEGV-LATE"}
    finished = run(spoiled(poison), "--ray", "local", "--workers", 2, hang_seconds=10)
    assert finished.returncode == 3, finished.stderr
    assert "3 documents could not be compressed" in finished.stderr
    require_all_but(tmp_path / "store", undisturbed, poison)
