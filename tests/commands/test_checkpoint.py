"""The commands ``checkpoint new``, ``checkpoint inspect`` and ``checkpoint convert``."""

import json
import shutil

import pytest

from ..released import write_cocom


def test_inspect(folder, run):
    values = json.loads(run("checkpoint", "inspect", folder / "checkpoint", "--json").stdout)
    assert values["rate"] == 8
    assert values["compressor"]["hidden"] == 64
    assert "decoder lora rank" in run("checkpoint", "inspect", folder / "checkpoint").stdout


def test_a_store_serves_the_original_and_the_converted_checkpoint(folder, run, tmp_path):
    original, merged, corpus = write_cocom(tmp_path / "model"), tmp_path / "merged", folder / "corpus.jsonl"
    converted = run("checkpoint", "convert", original, merged, "--dtype", "float32", "--json")
    assert converted.exit_code == 0, converted.output
    values = json.loads(converted.stdout)
    assert (values["path"], values["family"], values["dtype"]) == (str(merged), "cocom", "float32")
    assert values["memory_difference"] <= 1e-5
    store = tmp_path / "store"
    options = "-c", "beir", "--dtype", "float32", "-o", store
    built = run("build", corpus, "-k", original, *options)
    assert built.exit_code == 0, built.output
    own = run("ask", store, "Where?", "-d", "d1", "-k", original, "--dtype", "float32", "--json")
    shutil.rmtree(original.parent)
    again = run("ask", store, "Where?", "-d", "d1", "-k", merged, "--dtype", "float32", "--json")
    assert json.loads(again.stdout)["answer"] == json.loads(own.stdout)["answer"]
    verified = run("verify", store, "-k", merged, "--sample", 5, "--corpus", corpus)
    assert verified.exit_code == 0, verified.output
    with corpus.open() as lines, (tmp_path / "corpus.jsonl").open("w") as more:
        more.write(lines.read() + '{"_id": "new", "title": "T", "text": "more"}\n')
    updated = run("build", tmp_path / "corpus.jsonl", "-k", merged, *options, "--json")
    assert json.loads(updated.stdout)["changes"]["new"] == 1
    assert "needs no base model" in run("checkpoint", "inspect", merged).stdout
    shown = run("checkpoint", "convert", merged, tmp_path / "twice")
    assert "is merged already" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "{}/store"), "missing config.json"),
        (("new", "{}/corpus.jsonl/x", "--tiny"), "cannot be created"),
        (("new", "{}/checkpoint", "--tiny"), "holds something already"),
        (("new", "{}/other"), "--tiny"),
        (("convert", "{}/checkpoint", "{}/other"), "need not be converted"),
        (("new", "{}/other", "--compressor", "x"), "give --compressor and --decoder, or --tiny"),
    ],
)
def test_bad_input(folder, run, arguments, message):
    shown = run("checkpoint", *(argument.format(folder) for argument in arguments))
    assert shown.exit_code == 2, shown.output
    assert message in shown.stderr
