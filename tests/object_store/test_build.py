"""Builds into an object store are killed, resumed and updated, and leave no credentials anywhere."""

import json
import signal
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from pisco_index import (
    BuildConfig,
    Reader,
    build,
    build_status,
    export,
    new_tiny_checkpoint,
    recode,
    repair,
    run_status,
    verify,
)
from pisco_index.cli import app
from pisco_index.errors import StoreError
from pisco_index.pipeline.watch.progress import BuildProgress
from pisco_index.store import Store

VALUES = {
    "run": {"shard_documents": 4, "commit_shards": 2},
    "compression": {"dtype": "float32"},
    "store": {"codec": "bf16"},
}
CONFIG = BuildConfig.parse(VALUES, "test")


@pytest.fixture
def checkpoint(tmp_path):
    return new_tiny_checkpoint(tmp_path / "checkpoint", rate=8).path


@pytest.fixture
def make_corpus(tmp_path):
    """Write a corpus of these documents; the text of each is a function of its number and the edition."""

    def make(name, numbers, edition=1):
        path = tmp_path / name
        with path.open("w") as file:
            for n in numbers:
                text = f"Edition {edition if n % 10 == 0 else 1} of {n}: " + "the history of the city " * (n % 7)
                file.write(json.dumps({"id": f"doc-{n}", "text": text}) + "\n")
        return path

    return make


def rows(uri):
    """Return the stored row of each document, by id."""
    columns = ["doc_id", "payload", "text_hash", "tokens_fed"]
    return {row["doc_id"]: row for row in Store.open(uri).table.to_table(columns=columns).to_pylist()}


def test_how_a_build_is_going_is_told_by_its_commits(uri, checkpoint, make_corpus):
    class Looking(BuildProgress):
        seen = ()

        def finished_shard(self, *_):
            self.seen += (run_status(uri),)

    looking = Looking()
    build([make_corpus("corpus.jsonl", range(40))], checkpoint, uri, CONFIG, progress=looking)
    first, last = looking.seen[0], looking.seen[-1]
    assert (first.shards, first.missing, first.records, first.documents) == (10, 10, 40, 0)
    assert (first.documents_per_s, first.remaining_s) == (None, None)
    assert 0 < last.missing < 10
    assert last.documents_per_s > 0
    assert last.remaining_s is not None
    assert (last.running, last.holder, last.driver) == (None, None, None)
    finished = run_status(uri)
    assert (finished.is_complete, finished.documents, finished.remaining_s) == (True, 40, 0)


def run(*arguments):
    finished = CliRunner().invoke(app, list(map(str, arguments)))
    assert finished.exit_code == 0, finished.output
    return finished.output


@pytest.mark.fault(
    "A build into an object store is killed within a commit.",
    "The same command resumes to the same rows.",
)
def test_a_build_is_killed_resumed_and_updated(uri, checkpoint, make_corpus, tmp_path, proxy, bucket, secrets):
    corpus = make_corpus("corpus.jsonl", range(40))
    second_commit, killed, manifests = threading.Event(), threading.Event(), []

    def wait_at_the_second_commit(method, path):
        if method == "PUT" and "/memory.lance/_versions/" in path:
            manifests.append(path)
            # The first one makes the table.
            if len(manifests) == 3:
                second_commit.set()
                killed.wait()

    proxy.before = wait_at_the_second_commit
    command = [sys.executable, "-m", "pisco_index.cli", "build", str(corpus), "-k", str(checkpoint), "-o", uri]
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(VALUES))
    running = subprocess.Popen(
        [*command, "--config", str(config)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not second_commit.wait(0.1):
        assert running.poll() is None, running.stdout.read()
    running.send_signal(signal.SIGKILL)
    output, _ = running.communicate()
    proxy.before = lambda method, path: None
    killed.set()
    assert not build_status(uri).is_complete

    proxy.failing = 0.05
    report = build([corpus], checkpoint, uri, CONFIG)
    proxy.failing = 0.0
    assert report.shards == report.done_before + report.committed == 10
    # The first commit holds. The second was put or not when its sender died, with all shards that were done by then.
    assert 2 <= report.done_before < 10
    build([corpus], checkpoint, tmp_path / "whole", CONFIG)
    assert rows(uri) == rows(tmp_path / "whole")

    changed = make_corpus("changed.jsonl", range(8, 48), edition=2)
    report = build([changed], checkpoint, uri, CONFIG, prune=True)
    assert (report.changes.new, report.changes.changed, report.changes.gone) == (8, 3, 0)
    output += run("delete", uri, "doc-9", "doc-40")
    output += run("compact", uri, "--older-than", "0", "--no-build-runs")
    build([changed], checkpoint, tmp_path / "fresh", CONFIG)
    fresh = rows(tmp_path / "fresh")
    assert rows(uri) == {doc_id: row for doc_id, row in fresh.items() if doc_id not in {"doc-9", "doc-40"}}
    output += run("info", uri)
    output += run("status", uri)
    assert "older versions in an object store are not counted" in output
    output += run("get", uri, "doc-10", "doc-47", "--out", tmp_path / "memory.npz")
    with Reader(uri) as reader:
        assert reader.fetch(["doc-47", "doc-10"]).doc_ids == ("doc-47", "doc-10")
    for secret in secrets:
        assert secret not in output
        for key, data in bucket.objects().items():
            assert secret.encode() not in data, key
        for path in (tmp_path / "cache").rglob("*"):
            assert path.is_dir() or secret.encode() not in path.read_bytes(), path


def test_a_command_refuses_credentials_in_an_address(checkpoint, make_corpus):
    corpus = make_corpus("corpus.jsonl", range(4))
    arguments = ["build", corpus, "-k", checkpoint, "-o", "s3://AKIAKEY:topsecret@bucket/index"]
    finished = CliRunner().invoke(app, list(map(str, arguments)))
    assert finished.exit_code == 2
    assert "must not hold credentials" in finished.output
    assert "topsecret" not in finished.output
    assert "AKIAKEY" not in finished.output


def test_a_store_is_verified_repaired_recoded_and_exported(uri, checkpoint, make_corpus, tmp_path, proxy, bucket):
    corpus = make_corpus("corpus.jsonl", range(12))
    build([corpus], checkpoint, uri, CONFIG)
    report = verify(uri, checkpoint=checkpoint, corpus=[corpus], sample=4)
    assert report.is_sound, report.problems
    assert (report.documents, report.sampled) == (12, 4)
    assert recode(uri, "int4", f"{uri}-int4").documents == 12
    exported = export(f"{uri}-int4", tmp_path / "export", format="npy")
    assert exported.documents == 12

    # A build may have written this file without committing it yet; no lock shows that it runs.
    bucket.put("some/index/memory.lance/data/uncommitted.lance", b"rows")
    assert repair(uri).problem_count == 0
    assert "some/index/memory.lance/data/uncommitted.lance" in bucket.objects()
    before = rows(uri)
    path = next(path for path in bucket.objects() if path.startswith("some/index/memory.lance/data/"))
    bucket.put(path, b"not a data file")
    assert not verify(uri).is_sound
    assert len(repair(uri).files) == 1
    build([corpus], checkpoint, uri, CONFIG)
    assert verify(uri).is_sound
    assert {i: row["text_hash"] for i, row in rows(uri).items()} == {i: row["text_hash"] for i, row in before.items()}


def test_a_store_that_does_not_answer_is_not_taken_for_a_damaged_one(uri, checkpoint, make_corpus, proxy, monkeypatch):
    build([make_corpus("corpus.jsonl", range(8))], checkpoint, uri, CONFIG)
    monkeypatch.setenv("OBJECT_STORE_CLIENT_MAX_RETRIES", "0")
    monkeypatch.setenv("OBJECT_STORE_CLIENT_RETRY_TIMEOUT", "1")
    proxy.loses = lambda method, path, status: "/memory.lance/data/" in path
    for check in (verify, repair):
        with pytest.raises(StoreError, match="the object store does not answer"):
            check(uri)


def test_a_store_that_goes_away_in_mid_build_is_waited_for(uri, checkpoint, make_corpus, proxy, monkeypatch):
    monkeypatch.setenv("OBJECT_STORE_CLIENT_MAX_RETRIES", "0")
    monkeypatch.setenv("OBJECT_STORE_CLIENT_RETRY_TIMEOUT", "1")

    class Outage(BuildProgress):
        waits = 0

        def committed(self, shards):
            if not self.waits:
                proxy.failing = 1.0

        def waiting_for_store(self, error, seconds):
            self.waits += 1
            proxy.failing = 0.0 if self.waits == 2 else 1.0

    outage = Outage()
    report = build([make_corpus("corpus.jsonl", range(40))], checkpoint, uri, CONFIG, progress=outage)
    assert outage.waits == 2
    assert report.committed == 10
    assert rows(uri).keys() == {f"doc-{n}" for n in range(40)}
