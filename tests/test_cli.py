"""The command, as its users type it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from pisco_index import Reader
from pisco_index.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, a corpus and a store of it, all made by the command."""
    folder = tmp_path_factory.mktemp("cli")
    lines = [{"_id": f"d{n}", "title": f"T{n}", "text": "the river and the city " * (n + 1)} for n in range(12)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("checkpoint", "new", folder / "checkpoint", "--tiny", "--rate", 8).exit_code == 0
    built = run("build", folder / "corpus.jsonl", "-k", folder / "checkpoint", "-o", folder / "store", "-c", "beir")
    assert built.exit_code == 0, built.output
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_info(folder):
    shown = run("info", folder / "store")
    assert shown.exit_code == 0
    for word in ("documents", "memory tokens", "compression", "on disk", "fingerprint", "codec bf16", "1 of 1 done"):
        assert word in shown.stdout
    values = json.loads(run("info", folder / "store", "--json").stdout)
    assert values["documents"] == 12
    assert values["shards_missing"] == []


def test_get(folder, tmp_path):
    shown = run("get", folder / "store", "d3", "d1", "-o", tmp_path / "memory.npz")
    assert shown.exit_code == 0, shown.output
    arrays = np.load(tmp_path / "memory.npz")
    assert sorted(arrays) == ["d1", "d3"]
    rows = json.loads(run("get", folder / "store", "d3", "d1", "--json").stdout)
    assert [row["doc_id"] for row in rows] == ["d3", "d1"]
    assert rows[0]["shape"] == list(arrays["d3"].shape)
    assert rows[0]["mean_norm"] == pytest.approx(float(np.linalg.norm(arrays["d3"], axis=1).mean()), rel=1e-5)


def test_ask(folder):
    arguments = ("ask", folder / "store", "What is it?", "--doc", "d3", "--doc", "d1", "-k", folder / "checkpoint")
    shown = run(*arguments, "--max-new-tokens", 4)
    assert shown.exit_code == 0, shown.output
    values = json.loads(run(*arguments, "--max-new-tokens", 4, "--json").stdout)
    assert values["text"] in shown.stdout
    assert values["memory_tokens"] > 0


def test_dry_run(folder, tmp_path):
    arguments = ("build", folder / "corpus.jsonl", "-k", folder / "checkpoint", "-o", tmp_path / "store", "--dry-run")
    shown = run(*arguments)
    assert shown.exit_code == 0, shown.output
    assert "12 in 1 shard" in shown.stdout
    assert json.loads(run(*arguments, "--json").stdout)["documents"] == 12
    assert not (tmp_path / "store").exists()


def test_build_again(folder):
    again = run(
        "build", folder / "corpus.jsonl", "-k", folder / "checkpoint", "-o", folder / "store", "-c", "beir", "--json"
    )
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["committed"] == 0


@pytest.mark.parametrize(
    ("options", "kept"),
    [((), ["title"]), (("--keep", "nothing"), []), (("--keep", "title", "--keep", "text"), ["title", "text"])],
)
def test_keep(folder, tmp_path, options, kept):
    run("build", folder / "corpus.jsonl", "-k", folder / "checkpoint", "-o", tmp_path / "store", *options)
    assert list(Reader(tmp_path / "store").meta.optional_columns) == kept


def test_control_characters_of_a_model_do_not_reach_the_terminal(folder, monkeypatch):
    monkeypatch.setattr("pisco_index.reader.ask.Decoder.answer", lambda *_, **__: "a\x1b[2Jb\nc é")
    shown = run("ask", folder / "store", "why?", "--doc", "d1", "-k", folder / "checkpoint")
    assert shown.stdout == "a\\x1b[2Jb\nc é\n"


def test_inspect(folder):
    values = json.loads(run("checkpoint", "inspect", folder / "checkpoint", "--json").stdout)
    assert values["rate"] == 8
    assert values["compressor"]["hidden"] == 64
    assert "decoder lora rank" in run("checkpoint", "inspect", folder / "checkpoint").stdout


def test_presets():
    shown = run("presets").stdout
    for name in ("beir", "dpr", "msmarco", "wikipedia"):
        assert name in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "{}/nothing.jsonl", "-k", "{}/checkpoint", "-o", "{}/s"), "nothing.jsonl"),
        (("build", "{}/corpus.jsonl", "-k", "{}/nothing", "-o", "{}/s"), "no such checkpoint folder"),
        (
            ("build", "{}/corpus.jsonl", "-k", "{}/checkpoint", "-o", "{}/s", "-c", "wikpedia"),
            "neither a file nor a preset",
        ),
        (("build", "{}/corpus.jsonl", "-k", "{}/checkpoint", "-o", "{}/s", "-c", "wikipedia"), "mediawiki"),
        (("build", "{}/corpus.jsonl", "-k", "{}/checkpoint", "-o", "{}/s", "--max-length", "0"), "max_length"),
        (("build", "{}/corpus.jsonl", "-k", "{}/checkpoint", "-o", "{}/s", "--text-field", "body"), "body"),
        (("build", "{}/corpus.jsonl", "-k", "{}/checkpoint", "-o", "{}/s", "--device", "cuda:9"), "cuda:9"),
        (("build", "{}/corpus.jsonl", "-k", "{}/checkpoint", "-o", "{}/s", "--device", "mps"), "is no device"),
        (("build", "{}/corpus.jsonl", "-k", "{}/checkpoint", "-o", "{}/s", "-c", "{}/store/assets.lance"), "neither"),
        (("info", "{}/nothing"), "no store"),
        (("get", "{}/store", "d1", "-o", "{}/no/folder/x.npz"), "cannot be written"),
        (("ask", "{}/store", "why?", "--doc", "d1", "-k", "{}/checkpoint", "--max-new-tokens", "0"), "max-new-tokens"),
        (("checkpoint", "new", "{}/corpus.jsonl/x", "--tiny"), "cannot be made"),
        (("get", "{}/store", "d1", "zz"), "'zz'"),
        (("get", "{}/store", "d1", "-o", "{}/x.bin"), ".npz"),
        (("ask", "{}/store", "why?", "--doc", "zz", "-k", "{}/checkpoint"), "'zz'"),
        (("checkpoint", "inspect", "{}/store"), "missing config.json"),
        (("checkpoint", "new", "{}/checkpoint", "--tiny"), "holds something already"),
        (("checkpoint", "new", "{}/other"), "--tiny"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(folder, arguments, message):
    shown = run(*(argument.format(folder) for argument in arguments))
    assert shown.exit_code == 2, shown.output
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr


def test_an_unknown_key_names_the_nearest(folder, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("compression:\n  max_lenght: 128\n")
    shown = run("build", folder / "corpus.jsonl", "-k", folder / "checkpoint", "-o", tmp_path / "s", "-c", path)
    assert shown.exit_code == 2
    assert "did you mean max_length?" in shown.stderr


def test_the_command_line_overrides_the_file(folder, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("compression: {max_length: 16, on_long: truncate}\n")
    run(
        "build", folder / "corpus.jsonl", "-k", folder / "checkpoint", "-o", tmp_path / "s", "-c", path,
        "--max-length", 24,
    )  # fmt: skip
    components = json.loads(run("info", tmp_path / "s", "--json").stdout)["fingerprint_components"]
    assert (components["max_length"], components["on_long"]) == ("24", "truncate")


def test_help_starts_without_torch():
    code = "import sys; sys.argv = ['pisco-index', '--help']\nfrom pisco_index.cli import main\ntry: main()\n"
    code += "except SystemExit: pass\nprint('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip().endswith("False")
