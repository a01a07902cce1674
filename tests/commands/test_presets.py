"""The command ``presets``, and the completion of their names."""

import pytest
import yaml
from typer.testing import CliRunner

from pisco_index.cli import app
from pisco_index.configs import BuildConfig, preset_text


def test_presets_stand_under_the_command_that_takes_them(run):
    shown = run("presets").stdout
    build, pretrain, finetune = (shown.index(f"{name}\n") for name in ("build", "train pretrain", "train finetune"))
    for name in ("beir", "dpr", "msmarco", "wikipedia"):
        assert build < shown.index(f"  {name} ") < pretrain
    assert pretrain < finetune < shown.index("  oscar ")


def test_a_preset_is_printed_as_a_configuration(run):
    BuildConfig.parse(yaml.safe_load(run("presets", "msmarco").stdout), "presets")
    assert "windows" in run("presets", "pretrain/pisco").stdout


def test_a_name_alone_is_that_of_a_preset_for_builds(run):
    shown = run("presets", "tinypedia")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == preset_text("tinypedia")
    assert shown.stderr == "build/tinypedia. Also of this name: finetune/tinypedia.\n"
    other = run("presets", "finetune/tinypedia")
    assert (other.stdout, other.stderr) == (preset_text("tinypedia", "finetune"), "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wikpedia", "wikpedia: there is no such preset. Do you mean wikipedia?"),
        ("../setup", "../setup: there is no such preset."),
        (
            "wiki",
            "wiki: no preset has this name. It begins build/wikipedia, build/wikipedia-parquet.",
        ),
        (
            "pretrain/tinypedia",
            "It begins pretrain/tinypedia-passages, pretrain/tinypedia-words.",
        ),
        ("pretrian/pisco", "Do you mean pretrain/pisco?"),
        ("pisco", "pisco: 2 presets have this name. Name one of pretrain/pisco, finetune/pisco."),
    ],
)
def test_a_name_of_no_preset_or_of_two_is_an_error(run, name, message):
    result = run("presets", name)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("pisco-index build --preset wiki", ["wikipedia", "wikipedia-parquet"]),
        ("pisco-index train finetune -c pis", ["pisco"]),
    ],
)
def test_the_shell_completes_names_of_presets(typed, names):
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_PISCO_INDEX_COMPLETE": "complete_bash"}
    assert CliRunner().invoke(app, env=words, prog_name="pisco-index").stdout.split() == names
