"""Options that several commands share, and flags made from the fields of configurations."""

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand, TyperGroup

from ..configs import Config, presets
from ..configs.base import Flag
from ..configs.load import Kind
from ..configs.names import DOCUMENTS, Dtype
from ..errors import CheckpointError, InputError, StoreError
from ..places import input_paths, local_path
from .console import say

# Names of the parameters that name files and folders to read.
_READ = frozenset({"corpus", "data", "questions", "run", "qrels", "ids"})
# A checkpoint may be a name of the Hugging Face hub, and a store the address of an object store.
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
_ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://", re.IGNORECASE)

_MODELS = "Models"
"""Panel of help pages for options that say which models compute, and how."""


def _matching_presets(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the presets of the command being typed that begin with some letters, for the shell to complete."""
    kinds: dict[str | None, Kind] = {"pretrain": "pretrain", "finetune": "finetune"}
    return [name for name in presets(kinds.get(ctx.command.name, "build")) if name.startswith(incomplete)]


Uri = Annotated[str, typer.Argument(metavar="URI", help="Store: a folder, or an object-store URI.")]
Corpus = Annotated[list[str], typer.Argument(metavar="CORPUS", help="Corpus files, folders or patterns ('*.jsonl').")]
CheckpointDir = Annotated[Path, typer.Option("--checkpoint", "-k", help="Checkpoint folder.")]
Preset = Annotated[
    str | None,
    typer.Option(
        "--config",
        "--preset",
        "-c",
        autocompletion=_matching_presets,
        help="Preset (`pisco-index presets` lists them) or YAML file.",
    ),
]
Run = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Run (TREC, MS MARCO) with the documents of each question's id, not doc_ids."),
]
Documents = Annotated[
    int | None,
    typer.Option(
        "--documents",
        "--hits",
        "-n",
        min=1,
        help=f"Number of documents per question, the best first. Default: {DOCUMENTS} of a run or search, else all.",
    ),
]
Questions = Annotated[
    Path,
    typer.Option(
        "--questions",
        "-q",
        metavar="FILE",
        help="Questions: JSON, CSV or TSV as data sets have them, or one per line; also compressed.",
    ),
]
DecoderBase = Annotated[
    str | None,
    typer.Option(
        "--decoder-base",
        "--base",
        rich_help_panel=_MODELS,
        help="Folder of the base decoder, instead of the checkpoint's.",
    ),
]
CompressorBase = Annotated[
    str | None,
    typer.Option(rich_help_panel=_MODELS, help="Folder of the compressor's base model, instead of the checkpoint's."),
]
QueryExtra = Annotated[
    int,
    typer.Option(
        min=0,
        rich_help_panel=_MODELS,
        help="Tokens that a question may take beside a document, if memory is made at question time. "
        "The released entry of OSCAR has 0.",
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        rich_help_panel=_MODELS,
        help="Factor by which tokens that an answer has already become less likely; 1: none. Default: the model's own.",
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option(min=1, rich_help_panel=_MODELS, help="Largest number of tokens in an answer.")
]
BatchSize = Annotated[int, typer.Option(min=1, rich_help_panel=_MODELS, help="Number of questions to answer at once.")]
DecoderDtype = Annotated[Dtype, typer.Option(rich_help_panel=_MODELS, help="Dtype that the decoder computes in.")]
Device = Annotated[
    str,
    typer.Option(rich_help_panel=_MODELS, help="Device to compute on: cpu, cuda, …; auto uses a GPU if there is one."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class _Untyped:
    """Mixin of commands whose help pages name no type beside a flag, which takes no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters."""
        params = super().get_params(ctx)  # pyrefly: ignore[missing-attribute]
        for each in params:
            if getattr(each, "is_flag", False):
                each.metavar = ""
        return params


class Command(_Untyped, TyperCommand):
    """A command of the program."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. A place to read that is not there is found before torch and the like are loaded."""
        _require_places(ctx.params)
        return super().invoke(ctx)


def _require_places(params: Mapping[str, Any]) -> None:
    for name in _READ & params.keys():
        given = params[name] or ()
        for place in (given,) if isinstance(given, str | Path) else given:
            for path in input_paths(place)[1]:
                try:
                    path.stat()
                except OSError as error:
                    message = f"{place}: cannot be read ({error.strerror}). Check its path and permissions."
                    raise InputError(message) from None
    checkpoint, uri = params.get("checkpoint"), params.get("uri") or params.get("target")
    if checkpoint and not _HUB_NAME.fullmatch(str(checkpoint)) and not local_path(checkpoint).exists():
        raise CheckpointError(f"{checkpoint}: no such checkpoint folder.")
    if uri and not is_address(uri) and not (store := local_path(uri)).exists():
        raise StoreError(f"there is no store at {store.absolute()}. Check the address, or build the store first.")


def is_address(uri: str) -> bool:
    """Return True for the address of an object store, False for a folder."""
    return _ADDRESS.match(uri) is not None


class Group(_Untyped, TyperGroup):
    """A group of commands."""


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        say(f"pisco-index {version('pisco-index')}, in {Path(__file__).parents[1]}")
        raise typer.Exit


def no_command(
    shows_version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version, and the folder with README.md, docs/ and examples/.",
        ),
    ] = False,
) -> None:
    """Take the options that stand before the command."""


Given = dict[str, Any]
"""Values of the flags that the user gave: key → value, within their section if the configuration has sections."""


def choice_of(words: Any, *others: str) -> Any:
    """Return an enumeration of a Literal's words and of others. Typer takes lists of enumerations, not of Literals."""
    return StrEnum("Choice", {word: word for word in (*get_args(words), *others)})


def flags_of(model: type[Config], *keys: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag for each key of a configuration.

    The flags stand in the place of the command's parameter ``given``, which receives their values. Name, type, choices,
    bounds, default and help of a flag come from the key's field; see ``configs.base.Flag`` for what a field may change.

    Args:
        model: the configuration.
        keys: keys to make flags of, ``section.key`` if in a section; default: all that have a flag.
    """
    fields = dict(_fields(model))
    chosen = keys or [key for key, field in fields.items() if not _marker(field).is_hidden]
    flags = [_KeyFlag(tuple(key.split(".")), fields[key], in_panel=not keys) for key in chosen]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**values: Any) -> None:
            given: Given = {}
            for flag in flags:
                value = values.pop(flag.name)
                if value is not None:
                    flag.put(value, given)
            command(**values, given=given)

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.name == "given":
                parameters += (flag.parameter for flag in flags)
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        run.__signature__ = inspect.Signature(parameters)  # pyrefly: ignore[missing-attribute]
        return run

    return decorate


def arguments_of(config: Config, without: Collection[str] = ()) -> list[str]:
    """Return the command-line arguments that give a configuration's keys the values that were set.

    Args:
        config: a configuration without sections or lists.
        without: keys to leave out.
    """
    given = [key for key in type(config).model_fields if key in config.model_fields_set and key not in without]
    flags = [_KeyFlag((key,), type(config).model_fields[key], in_panel=False) for key in given]
    return [word for flag in flags for word in flag.arguments(getattr(config, flag.name))]


@dataclass(frozen=True)
class _KeyFlag:
    """The flag of a key.

    Attributes:
        path: names of the key's section, if any, and of the key.
        field: field of the key.
        in_panel: True to show the flag in a panel of its section, if any, and not among the command's own options.
    """

    path: tuple[str, ...]
    field: FieldInfo
    in_panel: bool

    @property
    def name(self) -> str:
        return "_".join(self.path)

    @property
    def parameter(self) -> inspect.Parameter:
        marker = _marker(self.field)
        option = typer.Option(
            *(marker.names or self._default_names),
            metavar=marker.metavar,
            show_default=False,
            help=self._help,
            rich_help_panel=self.path[0].capitalize() if self.in_panel and len(self.path) > 1 else None,
            min=_bound(self.field, "ge"),
            max=_bound(self.field, "le"),
        )
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[self._type | None, option]
        )

    def arguments(self, value: Any) -> list[str]:
        """Return the arguments that give the key a value; none for a boolean that keeps its default."""
        name = (_marker(self.field).names or self._default_names)[0]
        if self._type is not bool:
            return [name, str(value)]
        yes, _, no = name.partition("/")
        return [] if value == self.field.default else [yes if value else no]

    def put(self, value: Any, given: Given) -> None:
        """Put a value that the user gave into its section."""
        for section in self.path[:-1]:
            given = given.setdefault(section, {})
        empty = _marker(self.field).empty
        given[self.path[-1]] = [each for each in value if each != empty] if isinstance(value, list) else value

    @property
    def _default_names(self) -> tuple[str, ...]:
        name = self.path[-1].replace("_", "-")
        return (f"--{name}/--no-{name}" if self._type is bool else f"--{name}",)

    @property
    def _type(self) -> Any:
        """Type of the flag's value: the key's, with a list in place of a tuple, and without None."""
        kind: Any = self.field.annotation
        if get_origin(kind) in (Union, UnionType):
            (kind,) = (each for each in get_args(kind) if each is not NoneType)
        if get_origin(kind) is not tuple:
            return kind
        item, empty = get_args(kind)[0], _marker(self.field).empty
        if get_origin(item) is Literal:
            item = choice_of(item, *() if empty is None else (empty,))
        return list[item]

    @property
    def _help(self) -> str:
        default, empty = self.field.default, _marker(self.field).empty
        text = self.field.description or ""
        if get_origin(self._type) is list:
            text += " Repeatable." if empty is None else f" Repeatable, or {empty}."
        if isinstance(default, bool):
            yes, _, no = (_marker(self.field).names or self._default_names)[0].partition("/")
            shown = yes if default else no
        elif isinstance(default, tuple):
            shown = ", ".join(default)
        else:
            shown = "" if default is None else str(default)
        return f"{text} Default: {shown if shown.isprintable() else repr(shown)}." if shown else text


def _fields(model: type[Config]) -> Iterator[tuple[str, FieldInfo]]:
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield from ((f"{key}.{inner}", each) for inner, each in _fields(field.annotation))
        else:
            yield key, field


def _marker(field: FieldInfo) -> Flag:
    return next((each for each in field.metadata if isinstance(each, Flag)), Flag())


def _bound(field: FieldInfo, attribute: str) -> float | None:
    return next((getattr(each, attribute) for each in field.metadata if hasattr(each, attribute)), None)
