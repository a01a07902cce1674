"""Check a model folder before transformers reads it: its configuration must not ask for more than its weights hold.

A configuration may name a width of a million million, and transformers would allocate it. The numbers in it are
compared with the bytes in the folder first.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ...errors import CheckpointError
from .files import checkpoint_errors, read_json
from .tensors import tensor_shapes
from .weight_files import weight_files

# Numbers whose names contain these words count modules or list entries, so that even small ones cost memory.
_COUNTS = ("layer", "expert", "block", "depth", "stage", "label")
# Limit of such a count: no language model has as many layers, experts or labels.
_MAX_COUNT = 10_000
# Limit of every other number: no model has a width, vocabulary or context near it.
_MAX_NUMBER = 2**40
# Numbers that a model may have beside those in its files: rotary tables, masks, an unused head.
_SLACK = 1 << 26
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read a model's ``config.json`` and check that it asks for no other files, libraries or absurd sizes.

    Raises:
        CheckpointError: it is missing or damaged, or asks for one of these.
    """
    path = folder / "config.json"
    values = read_json(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: no model configuration: holds {type(values).__name__}, expected an object.")
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{folder}: an adapter, whose adapter_config.json names another model; merge it first.")
    for key in ("quantization_config", "transformers_weights"):
        if values.get(key) is not None:
            raise CheckpointError(f"{folder}: cannot be loaded: its config.json has {key}, which is not supported.")
    for name, number in _numbers(values):
        is_count = any(word in name.lower() for word in _COUNTS)
        if abs(number) > (_MAX_COUNT if is_count else _MAX_NUMBER):
            raise CheckpointError(f"{path}: no model configuration has {name} {number}.")
    return values


def _numbers(values: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """Yield every integer in a configuration with the name of its key."""
    if isinstance(values, bool):
        return
    if isinstance(values, int):
        yield name, values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _numbers(value, str(key))
    elif isinstance(values, list):
        for value in values:
            # Entries of a list are indices (of layers, of tokens) and count nothing.
            yield from _numbers(value, "" if isinstance(value, int) else name)


def require_weights(folder: Path, name: str, auto_class: Any, config: Any) -> int:
    """Check that a model's files hold about as many numbers as its configuration asks for, before it is allocated.

    Args:
        folder: folder of the model.
        name: name of the model in messages.
        auto_class: transformers class that the model will be made by.
        config: the model's transformers configuration.

    Returns:
        The number of parameters that the model will have.

    Raises:
        CheckpointError: the files hold too few numbers, are damaged, or hold something other than floating-point
            numbers.
    """
    tensors, held = _count_weights(folder, name)
    layers = getattr(config, "num_hidden_layers", 1)
    if not 1 <= layers <= tensors:
        raise CheckpointError(f"{name}: its config.json says {layers} layers, and its files hold {tensors} tensors.")
    with checkpoint_errors(f"{name}: its configuration makes no model"), torch.device("meta"):
        model = auto_class.from_config(config, attn_implementation=None, trust_remote_code=False)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    wanted = parameters + sum(buffer.numel() for buffer in model.buffers())
    if wanted > 2 * held + _SLACK:
        raise CheckpointError(f"{name}: its config.json asks for {wanted:,} numbers, and its files hold {held:,}.")
    return parameters


def _count_weights(folder: Path, name: str) -> tuple[int, int]:
    """Return how many tensors and how many numbers a model's files hold."""
    tensors = numbers = 0
    for path in weight_files(folder, name):
        if path.suffix == ".bin":
            shapes = tensor_shapes(path)
            tensors, numbers = tensors + len(shapes), numbers + sum(map(math.prod, shapes.values()))
            continue
        with checkpoint_errors(f"{name}: cannot be loaded: {path.name}"), safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                part = file.get_slice(key)
                count, dtype = math.prod(part.get_shape()), part.get_dtype()
                # Some models save integers too: single numbers, causal masks (named bias) and position ids.
                may_be_other = count <= 1 or "bias" in key or "position" in key
                if dtype not in _FLOATS and not may_be_other:
                    raise CheckpointError(f"{path}: {key} holds {dtype}; expected floating-point numbers.")
                tensors, numbers = tensors + 1, numbers + count
    return tensors, numbers
