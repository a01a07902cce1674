"""The commands ``get`` and ``export``."""

import json

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
