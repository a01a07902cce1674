"""The command ``presets``."""

from difflib import get_close_matches
from typing import Annotated, get_args

import typer

from .. import configs
from ..configs.load import Kind
from ..errors import ConfigError
from .console import rows, say

_COMMANDS: dict[Kind, str] = {"build": "build", "pretrain": "train pretrain", "finetune": "train finetune"}


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Preset to print; pretrain/NAME or finetune/NAME if several have the name."
        ),
    ] = None,
) -> None:
    """List the shipped configurations, by the command whose --config takes them; or print one, to be copied.

    Example: pisco-index presets wikipedia > my.yaml
    """
    shipped = {kind: configs.presets(kind) for kind in get_args(Kind)}
    if name is not None:
        say(_text(name, shipped).rstrip("\n"))
        return
    width = max(len(name) for descriptions in shipped.values() for name in descriptions)
    for kind, descriptions in shipped.items():
        say(_COMMANDS[kind], style="bold")
        for row in rows({f"  {name:{width}}": description for name, description in descriptions.items()}):
            say(row)


def _text(name: str, shipped: dict[Kind, dict[str, str]]) -> str:
    places = {f"{kind}/{each}": (each, kind) for kind, names in shipped.items() for each in names}
    found = [place for place in places if name in (place, place.partition("/")[2])]
    if len(found) > 1:
        raise ConfigError(f"{name}: {len(found)} presets have this name. Name one of {', '.join(found)}.")
    if not found:
        near = get_close_matches(name, [each for names in shipped.values() for each in names], n=1)
        meant = f" Do you mean {near[0]}?" if near else ""
        raise ConfigError(f"{name}: there is no such preset.{meant} `pisco-index presets` lists them.")
    return configs.preset_text(*places[found[0]])
