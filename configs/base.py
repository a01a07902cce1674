"""Base of the configuration models: frozen, typed, closed to unknown keys, and marked for the command line."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ConfigError

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Flag:
    """A key's flag on the command line. It stands in the ``Annotated`` type of keys whose flag is not just ``--key``.

    Attributes:
        names: names of the flag; empty for ``--key``, and ``--key/--no-key`` if the key is a boolean.
        metavar: word for the value in the help pages; None for its type.
        empty: value that stands for an empty list, which repeating a flag cannot express; None if there is none.
        is_hidden: True if the key has no flag, and is set in a YAML file or in Python only.
    """

    names: tuple[str, ...] = ()
    metavar: str | None = None
    empty: str | None = None
    is_hidden: bool = False


FileOnly = Annotated[_Value, Flag(is_hidden=True)]
"""Type of a key that has no flag: ``attempts: FileOnly[int]``."""


class Config(BaseModel):
    """Base of the configuration models. They are immutable and reject unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def parse(cls, values: dict[str, Any], origin: str) -> Self:
        """Validate plain values.

        Args:
            values: nested keys and values, as read from YAML.
            origin: source of the values, for messages.

        Raises:
            ConfigError: for wrong keys or values. It names each of them, and the nearest valid key to an unknown one.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(_explain(cls, detail) for detail in error.errors())
            raise ConfigError(f"{origin}: {problems}" + ("" if problems.endswith("?") else ".")) from None


def _explain(root: type[BaseModel], detail: Any) -> str:
    *parents, last = detail["loc"] or ("",)
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] != "extra_forbidden":
        message = detail["msg"].removeprefix("Value error, ")
        # A rule about several keys has no single value to show.
        return (
            f"{key}: {message}" if isinstance(detail["input"], dict) else f"{key}: {message}, not {detail['input']!r}"
        )
    model: Any = root
    for part in parents:
        model = model.model_fields[part].annotation
    elsewhere = [
        f"{section}.{last}"
        for section, field in root.model_fields.items()
        if last in getattr(field.annotation, "model_fields", ())
    ]
    near = elsewhere or get_close_matches(str(last), model.model_fields, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "valid keys are " + ", ".join(model.model_fields)
    return f"unknown key {key}; {hint}"
