"""Generation settings that a base model brings along: stop tokens and repetition penalty."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .loading.files import read_json


@dataclass(frozen=True)
class GenerationDefaults:
    """Settings that greedy decoding takes from a base model.

    Attributes:
        stop_token_ids: ids of the tokens that end an answer.
        repetition_penalty: factor by which tokens that the answer already has become less likely; 1.0 for none.
    """

    stop_token_ids: tuple[int, ...]
    repetition_penalty: float = 1.0


def read_generation_defaults(folder: Path, tokenizer: Any) -> GenerationDefaults:
    """Return the generation settings of a base model's folder.

    The stop tokens are those of ``generation_config.json``, else of ``config.json``, else the tokenizer's EOS. Sampling
    settings are ignored, since decoding is greedy.

    Raises:
        CheckpointError: a file is damaged, or a value is not of its kind.
    """
    path = folder / "generation_config.json"
    values: Mapping[str, Any] = read_json(path) if path.is_file() else {}
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{path}: holds {type(values).__name__}; expected an object.")
    ends = values.get("eos_token_id")
    if ends is None:
        ends = read_json(folder / "config.json").get("eos_token_id")
    if ends is None:
        ends = tokenizer.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if any(not isinstance(end, int) or isinstance(end, bool) for end in ends):
        raise CheckpointError(f"{path}: eos_token_id is {ends}; expected token ids.")
    penalty = values.get("repetition_penalty")
    penalty = 1.0 if penalty is None else penalty
    if not isinstance(penalty, int | float) or isinstance(penalty, bool) or not 0 < penalty < float("inf"):
        raise CheckpointError(f"{path}: repetition_penalty is {penalty!r}; expected a positive number.")
    return GenerationDefaults(tuple(ends), float(penalty))
