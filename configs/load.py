"""Reading configuration: a preset or YAML file, with the command line's values laid over it."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from .build import BuildConfig


def presets() -> dict[str, str]:
    """Names of the shipped presets, each with the first line of its file."""
    files = sorted(
        resources.files(f"{__package__}.presets").iterdir(), key=lambda file: file.name.removesuffix(".yaml")
    )
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
    values: dict[str, Any] = {}
    if name is not None:
        values = _read_yaml(name)
    for section, entries in (overrides or {}).items():
        given = {key: value for key, value in entries.items() if value is not None}
        if given:
            base = values.get(section) or {}
            values[section] = {**base, **given} if isinstance(base, dict) else base
    return BuildConfig.parse(values, name or "command line")


def _read_yaml(name: str) -> dict[str, Any]:
    if name in presets():
        text = resources.files(f"{__package__}.presets").joinpath(f"{name}.yaml").read_text("utf-8")
    elif Path(name).is_file():
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{name}: cannot be read as UTF-8 text: {error}.") from None
    else:
        raise ConfigError(f"{name}: neither a file nor a preset. Presets: {', '.join(presets())}.")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: expected sections such as corpus: and compression:, found {type(values).__name__}.")
    return values
