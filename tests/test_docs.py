"""The documentation says what is there: every key, option, command, name and link; and its examples run."""

import ast
import doctest
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import annotated_types
import pytest
import typer
import yaml

from pisco_index import BuildConfig, build, errors, load_config, presets
from pisco_index.cli import app
from pisco_index.configs import (
    Config,
    FinetuningConfig,
    PretrainingConfig,
    ServeConfig,
    TrainingConfig,
    load_finetuning,
    load_pretraining,
)
from pisco_index.training.tinypedia import write

ROOT = Path(__file__).parents[1]
README, PYTHON, CONFIGURATION = ROOT / "README.md", ROOT / "docs" / "python.md", ROOT / "docs" / "configuration.md"
TRAINING, UPDATING = ROOT / "docs" / "training.md", ROOT / "docs" / "updating.md"
SERVING = ROOT / "docs" / "serving.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SECTIONS = {name: field.annotation for name, field in BuildConfig.model_fields.items()}
PUBLIC = [
    alias.asname or alias.name
    for node in ast.parse((ROOT / "__init__.pyi").read_text("utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
]

# Options whose name is not their key's.
OPTIONS = {"corpus.format": "--format", "search.stop_words": "--stopwords"}


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> dict[str, Any]:
    """Every command by its words: "build", "checkpoint new", …"""

    def walk(group: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, (*words, name))
            else:
                yield " ".join((*words, name)), command

    return dict(walk(typer.main.get_command(app), ()))


COMMANDS = commands()


def options_of(command: Any) -> set[str]:
    own = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    return own | {"--help", "-h"}


# Configuration


def type_of(annotation: Any, bounds: str = "") -> str:
    """A key's type in words."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {type_of(get_args(annotation)[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return "section"
    if get_origin(annotation) is dict:
        return "mapping"
    if isinstance(annotation, UnionType):
        (kind,) = [each for each in get_args(annotation) if each is not NoneType]
        return f"{type_of(kind, bounds)}, or null"
    return {str: "string", int: "integer", float: "number", bool: "boolean"}[annotation] + bounds


def bounds_of(field: Any) -> str:
    shown = {
        annotated_types.Ge: ("≥", "ge"),
        annotated_types.Gt: (">", "gt"),
        annotated_types.Le: ("≤", "le"),
        annotated_types.Lt: ("<", "lt"),
    }
    known = [(*shown[type(m)], m) for m in field.metadata if type(m) in shown]
    return "".join(f" {sign} {getattr(m, name):g}" for sign, name, m in known)


def yaml_of(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = '"{title}\\n{text}"' if value == "{title}\n{text}" else yaml.safe_dump(plain, default_flow_style=True)
    return text.removesuffix("\n").removesuffix("\n...")


def table_of(fields: dict[str, Any], command: str, title: str, section: str = "") -> list[str]:
    """A table of keys as the documents shall have it, with the options of a command."""
    lines = [f"| key | type | default | option of `{title}` | |", "|---|---|---|---|---|"]
    for key, field in fields.items():
        option = OPTIONS.get(f"{section}.{key}", "--" + key.replace("_", "-"))
        shown = f"`{option}`" if option in options_of(COMMANDS[command]) else ""
        kind = type_of(field.annotation, bounds_of(field))
        is_section = isinstance(field.default, Config)
        default = f"[`{key}`](configuration.md#{key})" if is_section else f"`{yaml_of(field.default)}`"
        lines.append(f"| `{key}` | {kind} | {default} | {shown} | {field.description} |")
    return lines


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_documented_as_it_is(section):
    table = table_of(SECTIONS[section].model_fields, "build", "build", section)
    expected = "\n".join([f"## `{section}`", "", *table])
    assert expected in CONFIGURATION.read_text("utf-8"), f"docs/configuration.md must say:\n{expected}"


@pytest.mark.parametrize(
    ("model", "title"),
    [(TrainingConfig, "train"), (PretrainingConfig, "train pretrain"), (FinetuningConfig, "train finetune")],
)
def test_every_key_of_a_training_is_documented_as_it_is(model, title):
    inherited = TrainingConfig.model_fields if model is not TrainingConfig else {}
    own = {key: field for key, field in model.model_fields.items() if key not in inherited}
    expected = "\n".join(table_of(own, title if inherited else "train pretrain", title))
    assert expected in TRAINING.read_text("utf-8"), f"docs/training.md must say:\n{expected}"


def test_every_setting_of_a_server_is_documented_as_it_is():
    expected = "\n".join(table_of(ServeConfig.model_fields, "serve", "serve"))
    assert expected in SERVING.read_text("utf-8"), f"docs/serving.md must say:\n{expected}"


@pytest.mark.parametrize("text", blocks(TRAINING, "yaml"))
def test_the_examples_of_training_configurations_are_valid(text, tmp_path):
    path = tmp_path / "example.yaml"
    path.write_text(text, "utf-8")
    (load_pretraining if "windows" in text else load_finetuning)(str(path))


def test_every_training_preset_loads():
    for kind, load in (("pretrain", load_pretraining), ("finetune", load_finetuning)):
        for name, description in presets(kind).items():
            load(name)
            assert description


@pytest.mark.parametrize("text", blocks(CONFIGURATION, "yaml"))
def test_the_examples_of_configurations_are_valid(text, tmp_path):
    path = tmp_path / "example.yaml"
    path.write_text(text, "utf-8")
    load_config(str(path))


def test_every_preset_loads_and_is_documented():
    for name in presets():
        load_config(name)
        assert f"--preset {name} " in (ROOT / "docs" / "corpora.md").read_text("utf-8")


def test_every_exit_code_is_documented():
    codes = {0} | {error.exit_code for error in vars(errors).values() if hasattr(error, "exit_code")}
    table = re.findall(r"^\| (\d+) \| (.+) \|$", CONFIGURATION.read_text("utf-8"), re.MULTILINE)
    assert {int(code) for code, _ in table} == codes
    epilog = typer.main.get_command(app).epilog
    assert all(str(code) in epilog for code in codes - {1})


# Commands


def test_every_command_and_option_has_a_help_text():
    for name, command in COMMANDS.items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_the_readme_lists_every_command():
    for name in COMMANDS:
        assert f"| `pisco-index {name}" in README.read_text("utf-8"), name


def command_lines() -> list[tuple[str, list[str]]]:
    """Every command of this package that the documents show, as its words."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text("utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?:\$ |\| .*`)?(pisco-index [a-z][^`\n]*)", text, re.MULTILINE):
            found.append((path.name, shlex.split(line, comments=True)[1:]))
    return found


def test_commands_in_the_documents_exist_with_their_options():
    lines = command_lines()
    assert len(lines) > 20
    for document, words in lines:
        name = next((n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS), None)
        assert name, f"{document}: pisco-index {' '.join(words)}"
        given = {word for word in words if re.match(r"--?[a-z]", word)}
        assert given <= options_of(COMMANDS[name]), f"{document}: {given - options_of(COMMANDS[name])} of {name}"


# Python


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory) -> Path:
    """A folder as the repository's root is after ``make demo``."""
    folder = tmp_path_factory.mktemp("documentation")
    shutil.copytree(ROOT / "examples", folder / "examples")
    encyclopedia, store = (folder / "demo-index" / name for name in ("encyclopedia", "store"))
    write(encyclopedia, "held-out", count=60)
    build([encyclopedia / "corpus.jsonl"], folder / "examples/tinypedia-checkpoint", store, load_config("tinypedia"))
    return folder


@pytest.mark.parametrize("path", [README, PYTHON, TRAINING, UPDATING], ids=lambda path: path.name)
def test_the_python_examples_run_and_show_what_they_say(path, demo_folder, monkeypatch):
    monkeypatch.chdir(demo_folder)
    names: dict[str, Any] = {}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    for number, block in enumerate(blocks(path, "python")):
        example = doctest.DocTestParser().get_doctest(block, names, f"{path.name}, block {number}", str(path), 0)
        assert example.examples
        runner.run(example, out=said.append, clear_globs=False)
        names = example.globs
    assert runner.tries
    assert not runner.failures, "".join(said)


def test_every_public_name_is_documented():
    text = PYTHON.read_text("utf-8")
    assert not [name for name in PUBLIC if f"`{name}`" not in text]


# Links


def anchors_of(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors_of(linked), target


def test_the_readme_leads_to_every_document():
    for path in DOCUMENTS:
        if path != README:
            assert f"]({path.relative_to(ROOT).as_posix()})" in README.read_text("utf-8"), path.name


def test_the_table_of_faults_is_made_of_the_tests_markers():
    table = runpy.run_path(str(Path(__file__).with_name("fault_table.py")))["table"]()
    assert table.count("\n") > 60
    assert table in (ROOT / "docs" / "reliability.md").read_text("utf-8"), "run: python tests/fault_table.py"


def test_the_documents_are_short_enough_to_be_read():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "docs").glob("*.md")}
    assert sum(sizes.values()) <= 155_000
    assert (ROOT / "ARCHITECTURE.md").stat().st_size <= 8_000
    assert len(README.read_text("utf-8").splitlines()) < 200
