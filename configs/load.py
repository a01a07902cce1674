"""Load configurations: a preset or a YAML file, overridden by the values of the command line."""

from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal, TypeVar

import yaml

from ..errors import ConfigError
from ..places import input_path
from .base import Config
from .build import BuildConfig
from .training import FinetuningConfig, PretrainingConfig

_Config = TypeVar("_Config", bound=Config)
Kind = Literal["build", "pretrain", "finetune"]
_FOLDERS: dict[Kind, str] = {"build": "", "pretrain": "pretrain", "finetune": "finetune"}


def presets(kind: Kind = "build") -> dict[str, str]:
    """Return the names of the shipped presets, each with its description: the first line of its file."""
    files = sorted(_folder(kind).iterdir(), key=lambda file: file.name.removesuffix(".yaml"))
    return {
        file.name.removesuffix(".yaml"): file.read_text("utf-8").splitlines()[0].lstrip("# ")
        for file in files
        if file.name.endswith(".yaml")
    }


def preset_text(name: str, kind: Kind = "build") -> str:
    """Return the YAML of a shipped preset."""
    return _folder(kind).joinpath(f"{name}.yaml").read_text("utf-8")


def load_config(name: str | None = None, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> BuildConfig:
    """Load a build's configuration.

    Args:
        name: name of a preset, or path of a YAML file; None starts from the defaults.
        overrides: section → key → value; a value of None overrides nothing.

    Raises:
        ConfigError: if there is no such preset or file, it is not YAML, or a key or value is not valid.
    """
    return _load(BuildConfig, "build", name, overrides or {})


def load_pretraining(name: str | None = None, overrides: Mapping[str, Any] | None = None) -> PretrainingConfig:
    """Load a pretraining's configuration, like ``load_config``; overrides may also be keys outside a section."""
    return _load(PretrainingConfig, "pretrain", name, overrides or {})


def load_finetuning(name: str | None = None, overrides: Mapping[str, Any] | None = None) -> FinetuningConfig:
    """Load a fine-tuning's configuration, with the arguments and errors of ``load_pretraining``."""
    return _load(FinetuningConfig, "finetune", name, overrides or {})


def _load(model: type[_Config], kind: Kind, name: str | None, overrides: Mapping[str, Any]) -> _Config:
    values = {} if name is None else _read_yaml(kind, name)
    for key, value in overrides.items():
        given = {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value
        if isinstance(given, dict):
            base = values.get(key) or {}
            if given:
                values[key] = {**base, **given} if isinstance(base, dict) else base
        elif given is not None:
            values[key] = given
    return model.parse(values, name or "command line")


def _folder(kind: Kind) -> Any:
    # Not resources.files() of the folder: it would import it, and put the module in the place of configs.presets().
    return resources.files(__package__ or "").joinpath("presets", _FOLDERS[kind])


def _read_yaml(kind: Kind, name: str) -> dict[str, Any]:
    if name in presets(kind):
        text = preset_text(name, kind)
    elif (path := input_path(name, ConfigError)).is_file():
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{name}: cannot be read as UTF-8 text: {error}.") from None
    else:
        raise ConfigError(f"{name}: neither a file nor a preset. Presets: {', '.join(presets(kind))}.")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: expected sections such as corpus: and compression:, found {type(values).__name__}.")
    return values
