"""The commands ``info`` and ``status``."""

import json
import os
import shutil

import pytest

from pisco_index import BuildConfig
from pisco_index.pipeline.watch.progress import WorkerState
from pisco_index.pipeline.watch.running import StatusFile
from pisco_index.store import build_lock


def test_info(folder, run, tmp_path):
    shown = run("info", folder / "store")
    assert shown.exit_code == 0
    for word in ("documents", "memory tokens", "compression", "on disk", "fingerprint", "codec int8", "1 of 1 done"):
        assert word in shown.stdout
    values = json.loads(run("info", folder / "store", "--json").stdout)
    assert values["documents"] == 12
    assert values["shards_missing"] == []
    missing = run("info", tmp_path / "none")
    assert missing.exit_code == 2
    assert "no store" in missing.stderr


def test_status(folder, run, tmp_path):
    shown = run("status", folder / "store")
    assert shown.exit_code == 0, shown.output
    for words in (
        "complete, not running",
        "1 of 1 done, 0 missing",
        "12 in the store; the last plan read 12 records",
        " ago",
    ):
        assert words in shown.stdout, words
    values = json.loads(run("status", folder / "store", "--json").stdout)
    assert (values["complete"], values["running"], values["documents"]) == (True, False, 12)
    (line,) = run("status", folder / "store", "--json", "--watch").stdout.splitlines()
    assert json.loads(line) == values
    missing = run("status", tmp_path / "none")
    assert missing.exit_code == 2
    assert "no store" in missing.stderr


def test_an_update_that_only_prunes_has_no_shards(folder, run, tmp_path):
    store = shutil.copytree(folder / "store", tmp_path / "store")
    lines = (folder / "corpus.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "corpus.jsonl").write_text("".join(lines[:-2]), "utf-8")
    built = run("build", tmp_path / "corpus.jsonl", "-k", folder / "checkpoint", "-o", store, "-c", "beir", "--prune")
    assert built.exit_code == 0, built.output
    for command in ("status", "info"):
        shown = run(command, store).stdout
        assert "none: nothing is to be compressed" in shown
        assert "0 new, 0 changed, 10 same, 0 gone, 2 pruned" in shown
        assert "0 of 0" not in shown
    values = json.loads(run("status", store, "--json").stdout)
    assert (values["complete"], values["shards"], values["missing"], values["documents"]) == (True, 0, 0, 10)
    assert values["changes"] == {"new": 0, "changed": 0, "same": 10, "gone": 0, "pruned": 2}


def test_status_of_a_running_build_until_it_is_over(folder, run, tmp_path):
    store = shutil.copytree(folder / "store", tmp_path / "store")
    with build_lock(store):
        listener = StatusFile()
        listener.began(str(store), BuildConfig())
        listener.started(1, 0, {0: 100}, "Ray (auto), 2 workers")
        listener.pace.update([])
        listener.states = (
            WorkerState("[gpu-0]", "compressing", 0, 1234, 5678, 0.25),
            WorkerState("gpu-1", "starting", None, 0, 0),
        )
        listener.stopping()
        shown = run("status", store)
        assert shown.exit_code == 0, shown.output
        expected = (
            f"running: process {os.getpid()}",
            "in Ray (auto), 2 workers; stopping",
            "[gpu-0]",
            "0 (25%)",
            "1,234",
        )
        for words in expected:
            assert words in shown.stdout, words
        looks = 0

        def end(seconds):
            nonlocal looks
            looks += 1
            assert seconds == 0.5
            (store / ".build.lock").rename(store / ".build.gone")

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("pisco_index.commands.watch.time.sleep", end)
            watched = run("status", store, "--watch", "--every", 0.5, "--json")
        assert looks == 1
        assert [json.loads(line)["running"] for line in watched.stdout.splitlines()] == [True, False]
        listener.ended()
