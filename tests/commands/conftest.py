"""A small store, and the command that its tests run."""

import json

import pytest
from typer.testing import CliRunner

from pisco_index.cli import app


def run_command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def run():
    """The command ``pisco-index``, run in this process."""
    return run_command


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A checkpoint, a corpus and a store of it, all made by the command. Tests leave them as they are."""
    folder = tmp_path_factory.mktemp("commands")
    lines = [{"_id": f"d{n}", "title": f"T{n}", "text": "the river and the city " * (n + 1)} for n in range(12)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run_command("checkpoint", "new", folder / "checkpoint", "--tiny", "--rate", 8).exit_code == 0
    built = run_command("build", *sources(folder), "-o", folder / "store", "-c", "beir")
    assert built.exit_code == 0, built.output
    return folder


@pytest.fixture
def build(folder, run):
    """The command ``build`` of the shared corpus, without --out."""
    return lambda *options: run("build", *sources(folder), *options)


def sources(folder):
    return folder / "corpus.jsonl", "-k", folder / "checkpoint"
