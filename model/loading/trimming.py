"""Models made of some layers of a base model."""

import copy
from typing import Any

import torch
from torch import nn

from ...errors import CheckpointError


def kept_layers(layers: int, first: int | None, every: int | None, origin: object) -> list[int]:
    """Return the indices of the layers that are kept.

    Args:
        layers: number of the base's layers.
        first: number of layers to keep from the beginning, or None.
        every: distance between kept layers, or None.
        origin: name of the checkpoint in messages.

    Raises:
        CheckpointError: the base has too few layers.
    """
    kept = list(range(first)) if first is not None else [every * i for i in range(layers // every)] if every else []
    if not kept or kept[-1] >= layers:
        raise CheckpointError(f"{origin}: its compressor keeps {len(kept)} layers of a base that has {layers}.")
    return kept


def trimmed_config(config: Any, kept: list[int]) -> Any:
    """Return the configuration of a model with some layers of another."""
    trimmed = copy.deepcopy(config)
    trimmed.num_hidden_layers = len(kept)
    # The kinds of the layers, in models whose layers differ (sliding windows in some).
    if (kinds := getattr(config, "layer_types", None)) is not None:
        trimmed.layer_types = [kinds[i] for i in kept]
    return trimmed


def keep_layers(model: Any, kept: list[int]) -> None:
    """Remove all but some layers of a base model, in place."""
    config = trimmed_config(model.config, kept)
    model.layers = nn.ModuleList(model.layers[i] for i in kept)
    model.config.num_hidden_layers = config.num_hidden_layers
    if hasattr(config, "layer_types"):
        model.config.layer_types = config.layer_types


def round_rotary(model: Any) -> None:
    """Round a model's rotary inverse frequencies to bf16, in which trimmed compressors were trained."""
    for name, values in model.named_buffers():
        if name.endswith("inv_freq") and not name.endswith("original_inv_freq"):
            values.copy_(values.to(torch.bfloat16))
