"""Reading configuration: a preset or YAML file, with the command line's values laid over it."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from ..errors import ConfigError
from .base import Config
from .build import BuildConfig
from .training import FinetuningConfig, PretrainingConfig

_Config = TypeVar("_Config", bound=Config)
Kind = Literal["build", "pretrain", "finetune"]
_FOLDERS: dict[Kind, str] = {"build": "", "pretrain": "pretrain", "finetune": "finetune"}


def presets(kind: Kind = "build") -> dict[str, str]:
    """Names of the shipped presets, each with the first line of its file."""
    files = sorted(_folder(kind).iterdir(), key=lambda file: file.name.removesuffix(".yaml"))
    return {
        file.name.removesuffix(".yaml"): file.read_text("utf-8").splitlines()[0].lstrip("# ")
        for file in files
        if file.name.endswith(".yaml")
    }


def load_config(name: str | None = None, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> BuildConfig:
    """Read a build's configuration.

    Args:
        name: a preset's name or a YAML file's path; None starts from the defaults.
        overrides: section → key → value; a value of None leaves the key as it is.

    Raises:
        ConfigError: if there is no such file, it is not YAML, or a key or value is not valid.
    """
    return _load(BuildConfig, "build", name, overrides or {})


def load_pretraining(name: str | None = None, overrides: Mapping[str, Any] | None = None) -> PretrainingConfig:
    """Read the configuration of a pretraining; as ``load_config``, but for keys, which have no section."""
    return _load(PretrainingConfig, "pretrain", name, overrides or {})


def load_finetuning(name: str | None = None, overrides: Mapping[str, Any] | None = None) -> FinetuningConfig:
    """Read the configuration of a fine-tuning; arguments and errors as for ``load_pretraining``."""
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
    return resources.files(f"{__package__}.presets").joinpath(_FOLDERS[kind])


def _read_yaml(kind: Kind, name: str) -> dict[str, Any]:
    if name in presets(kind):
        text = _folder(kind).joinpath(f"{name}.yaml").read_text("utf-8")
    elif Path(name).is_file():
        try:
            text = Path(name).read_text("utf-8")
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
