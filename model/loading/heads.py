"""Join a base model and an output head into a causal language model."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ...errors import CheckpointError
from .models import empty_model


def with_head(base: Any, head: torch.Tensor | None, origin: object) -> Any:
    """Return a causal LM made of a base model and the weight of its output head, in eval mode.

    Args:
        base: base model, which is used and not copied.
        head: ``(vocabulary, hidden)``; None for the base model's input embedding (tied).
        origin: name of the head's file in messages.

    Raises:
        CheckpointError: the architecture has other parts than a base model and a head without bias.
    """
    model = empty_model(AutoModelForCausalLM, base.config, origin)
    model.config = base.config
    model.config.tie_word_embeddings = head is None
    setattr(model, model.base_model_prefix, base)
    table = base.get_input_embeddings().weight
    layer = nn.Linear(table.shape[1], len(table), bias=False, device="meta")
    layer.weight = table if head is None else nn.Parameter(head.to(table), requires_grad=False)
    model.set_output_embeddings(layer)
    if empty := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise CheckpointError(f"{origin}: {model.config.model_type} models have {empty[0]}, which is not supported.")
    return model.eval().requires_grad_(False)
