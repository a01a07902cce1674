"""The commands ``ids``, ``show``, ``get`` and ``export``."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest


def test_get(folder, run, tmp_path):
    shown = run("get", folder / "store", "d3", "d1", "-o", tmp_path / "memory.npz")
    assert shown.exit_code == 0, shown.output
    arrays = np.load(tmp_path / "memory.npz")
    assert sorted(arrays) == ["d1", "d3"]
    rows = json.loads(run("get", folder / "store", "d3", "d1", "--json").stdout)
    assert [row["doc_id"] for row in rows] == ["d3", "d1"]
    assert rows[0]["shape"] == list(arrays["d3"].shape)
    assert rows[0]["mean_norm"] == pytest.approx(float(np.linalg.norm(arrays["d3"], axis=1).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("d1", "zz"), "'zz'"), (("d1", "-o", "no/folder/x.npz"), "cannot be written"), (("d1", "-o", "x.bin"), ".npz")],
)
def test_get_refuses(folder, run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    refused = run("get", folder / "store", *arguments)
    assert refused.exit_code == 2, refused.output
    assert message in refused.stderr


def test_export(folder, run, tmp_path):
    (tmp_path / "ids").write_text("d3\nd1\n")
    arguments = ("export", folder / "store", "--out", tmp_path / "out", "--ids", tmp_path / "ids", "--format", "npy")
    shown = run(*arguments)
    assert shown.exit_code == 0, shown.output
    assert f"{tmp_path / 'out'}: 2 documents, " in shown.stdout
    assert (tmp_path / "out" / "part-00000.ids.json").read_text() == '["d3", "d1"]\n'
    again = run(*arguments, "--json")
    assert json.loads(again.stdout)["parts_before"] == 1
    assert "in 1 part (1 before)" in run(*arguments).stdout
    refused = run(*arguments, "--dtype", "bfloat16")
    assert refused.exit_code == 2
    assert "npy files do not hold bfloat16" in refused.stderr


def test_ids(folder, run):
    ids = [f"d{n}" for n in range(12)]
    assert run("ids", folder / "store").stdout.splitlines() == ids
    assert run("ids", folder / "store", "--prefix", "d1").stdout.splitlines() == ["d1", "d10", "d11"]
    assert json.loads(run("ids", folder / "store", "--json").stdout) == ids
    assert json.loads(run("ids", folder / "store", "--json", "--prefix", "x").stdout) == []


def test_ids_end_quietly_with_their_reader(folder):
    """As `| head` does."""
    command = [sys.executable, "-m", "pisco_index.cli", "ids", folder / "store"]
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        command,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_show(folder, run):
    shown = run("show", folder / "store", "d1", "d0").stdout
    assert re.search(r"^id +d1\n", shown, re.MULTILINE)
    assert re.search(r"^tokens +15 \(15 fed to the compressor\)$", shown, re.MULTILINE)
    assert "the river and the city the river and the city \n" in shown
    rows = json.loads(run("show", folder / "store", "d1", "d0", "--json").stdout)
    assert [(row["doc_id"], row["error"], row["shard"]) for row in rows] == [("d1", None, 0), ("d0", None, 0)]
    assert rows[0]["tokens_fed"] == 15
    (memory,) = json.loads(run("get", folder / "store", "d1", "--json").stdout)
    assert (rows[0]["n_mem"], rows[0]["codec"]) == (memory["shape"][0], "int8")
    refused = run("show", folder / "store", "d1", "zz")
    assert (refused.exit_code, "'zz'" in refused.stderr) == (2, True)


def test_a_document_that_was_cut_into_passages(folder, run, build, tmp_path):
    built = build("-o", tmp_path / "cut", "-c", "beir", "--passage-words", 10)
    assert built.exit_code == 0, built.output
    refused = run("get", tmp_path / "cut", "d3", "d0", "zz")
    assert refused.exit_code == 2
    assert "It holds passages of them: 'd3#0' … 'd3#1'; 'd0#0'." in refused.stderr
