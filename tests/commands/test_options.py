"""Flags that are made from the fields of configurations."""

from typing import Annotated, Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from pisco_index.cli import COMMANDS
from pisco_index.commands.options import Given, arguments_of, flags_of
from pisco_index.configs import CompressionConfig, Config
from pisco_index.configs.base import FileOnly, Flag


class Section(Config):
    size: int = Field(3, ge=1, le=9, description="Size of it.")
    shape: Literal["round", "square"] = Field("round", description="Shape of it.")
    colours: Annotated[tuple[Literal["red", "blue"], ...], Flag(empty="none")] = Field(("red",), description="Colours.")
    names: tuple[str, ...] | None = Field(None, description="Names.")


class Whole(Config):
    section: Section = Section()
    quick: bool | None = Field(None, description="Be quick.")
    loud: Annotated[bool, Flag(names=("--loud/--quiet",))] = Field(False, description="Be loud.")
    bare: Annotated[bool, Flag(names=("--bare",))] = Field(False, description="Be bare.")
    empty: tuple[str, ...] = Field((), description="Empty.")
    place: Annotated[str | None, Flag(names=("--place", "-p"), metavar="PLACE")] = Field(None, description="Place.")
    secret: FileOnly[int] = 5


class Command:
    """A command with flags for some keys of ``Whole``, which notes what it is called with."""

    def __init__(self, *keys):
        self.app = typer.Typer(add_completion=False)
        self.app.command()(flags_of(Whole, *keys)(self.call))
        options = [each for each in typer.main.get_command(self.app).params if each.name not in ("first", "last")]
        self.help = {"/".join((*each.opts, *each.secondary_opts)): each.help for each in options}

    def call(self, first: str = "x", *, given: Given, last: str = "y") -> None:
        self.called = first, given, last

    def run(self, *arguments):
        return CliRunner().invoke(self.app, arguments)


def test_names_and_help_come_from_fields():
    assert Command().help == {
        "--size": "Size of it. Default: 3.",
        "--shape": "Shape of it. Default: round.",
        "--colours": "Colours. Repeatable, or none. Default: red.",
        "--names": "Names. Repeatable.",
        "--quick/--no-quick": "Be quick.",
        "--loud/--quiet": "Be loud. Default: --quiet.",
        "--bare": "Be bare.",
        "--empty": "Empty. Repeatable.",
        "--place/-p": "Place.",
    }
    assert list(Command("place", "section.size").help) == ["--place/-p", "--size"]


def test_only_flags_of_a_section_have_a_panel():
    options = typer.main.get_command(Command().app).params
    panels = {each.name: getattr(each, "rich_help_panel", None) for each in options}
    assert panels["section_size"] == "Section"
    assert panels["place"] is None


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ([], {}),
        (["--size", "4", "--shape", "square"], {"section": {"size": 4, "shape": "square"}}),
        (["--colours", "blue", "--colours", "red"], {"section": {"colours": ["blue", "red"]}}),
        (["--colours", "none"], {"section": {"colours": []}}),
        (["--names", "a"], {"section": {"names": ["a"]}}),
        (["--no-quick", "--quiet", "-p", "here"], {"quick": False, "loud": False, "place": "here"}),
    ],
)
def test_given_values_stand_in_their_section(arguments, given):
    command = Command()
    command.run("--first", "a", *arguments, "--last", "b")
    assert command.called == ("a", given, "b")
    assert Whole.parse(given, "command line")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "0"), "greater than or equal to 1"),
        (("--size", "10"), "less than or equal to 9"),
        (("--shape", "flat"), "'round', 'square'"),
        (("--colours", "green"), "'red', 'blue', 'none'"),
    ],
)
def test_types_and_bounds_come_from_fields(arguments, message):
    refused = Command().run(*arguments)
    assert refused.exit_code == 2
    assert message in " ".join(refused.output.replace("│", "").split())


def test_every_flag_of_a_command_has_a_name_of_its_own():
    for command in (command for commands in COMMANDS.values() for command in commands.values()):
        app = typer.Typer(add_completion=False)
        app.command()(command)
        options = typer.main.get_command(app).params
        names = [name for each in options for name in (*each.opts, *each.secondary_opts)]
        assert len(names) == len(set(names))


def test_the_arguments_of_a_configuration_give_the_values_that_were_set():
    settings = CompressionConfig(max_length=64, template="{text}", repeat_title=True, dtype="float32")
    wanted = ["--max-length", "64", "--template", "{text}", "--repeat-title"]
    assert arguments_of(settings, without=("dtype",)) == wanted
    assert arguments_of(CompressionConfig(repeat_title=False)) == []
