"""What all configurations share: frozen, typed, and unknown keys are errors that name the nearest valid one."""

from difflib import get_close_matches
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ConfigError


class Config(BaseModel):
    """Base of the configuration models: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def parse(cls, values: dict[str, Any], origin: str) -> Self:
        """Validate plain values.

        Args:
            values: nested keys and values, as YAML gives them.
            origin: where they come from, for messages.

        Raises:
            ConfigError: naming each wrong key or value, and for an unknown key the nearest valid one.
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
        # Rules over several keys have no one value to show.
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
