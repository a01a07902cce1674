"""The commands ``checkpoint new`` and ``checkpoint inspect``."""

import json

import pytest


def test_inspect(folder, run):
    values = json.loads(run("checkpoint", "inspect", folder / "checkpoint", "--json").stdout)
    assert values["rate"] == 8
    assert values["compressor"]["hidden"] == 64
    assert "decoder lora rank" in run("checkpoint", "inspect", folder / "checkpoint").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "{}/store"), "missing config.json"),
        (("new", "{}/corpus.jsonl/x", "--tiny"), "cannot be created"),
        (("new", "{}/checkpoint", "--tiny"), "holds something already"),
        (("new", "{}/other"), "--tiny"),
        (("new", "{}/other", "--compressor", "x"), "give --compressor and --decoder, or --tiny"),
    ],
)
def test_bad_input(folder, run, arguments, message):
    shown = run("checkpoint", *(argument.format(folder) for argument in arguments))
    assert shown.exit_code == 2, shown.output
    assert message in shown.stderr
