"""Merge a checkpoint's embeddings and LoRA pairs into its base decoder."""

from collections.abc import Collection
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from ...errors import CheckpointError

# Adapters are trained with alpha = 2 × rank, and LoRA scales its update by alpha / rank.
LORA_SCALE = 2.0
# peft saves a module that is trained whole twice: as it was in the base, and as it was trained.
ORIGINAL = "original_module"
SAVED_COPY = "modules_to_save.default"


def merge_decoder_state(model: Any, state: dict[str, torch.Tensor], origin: str) -> None:
    """Merge the tensors of a ``decoder_state.pt`` into a base decoder, in place.

    The embedding and ``lm_head`` are replaced by the trained copies, so tied ones become two. Each adapted linear
    layer gets ``W += 2·B·A``, computed in fp32.

    Args:
        model: the base decoder.
        state: tensors by name.
        origin: path of the file, for messages.

    Raises:
        CheckpointError: a tensor has no place in the model, lacks its partner, or has a wrong shape; or a linear layer
            has no pair.
    """
    remaining = dict(state)
    model.config.tie_word_embeddings = False
    for module_name in embedding_names(model):
        _replace_rows(model.get_submodule(module_name), module_name, remaining, origin)
    model.config.vocab_size = model.get_input_embeddings().weight.shape[0]
    _merge_pairs(model, remaining, origin)
    if remaining:
        raise CheckpointError(f"{origin}: {len(remaining)} tensors have no place, the first: {sorted(remaining)[0]}.")


def _merge_pairs(model: Any, remaining: dict[str, torch.Tensor], origin: str) -> None:
    """Merge the LoRA pairs among the remaining tensors, and remove them."""
    adapted: set[str] = set()
    for name in [name for name in remaining if ".lora_A." in name]:
        linear_name, _, adapter = name.partition(".lora_A.")
        down, up = remaining.pop(name), remaining.pop(f"{linear_name}.lora_B.{adapter}", None)
        linear = None
        with suppress(AttributeError):
            linear = model.get_submodule(linear_name)
        if up is None or not isinstance(linear, nn.Linear):
            raise CheckpointError(f"{origin}: {name} has no partner lora_B, or no Linear in the base decoder.")
        fits = up.ndim == down.ndim == 2 and up.shape[1] == down.shape[0]
        if not fits or (up.shape[0], down.shape[1]) != linear.weight.shape:
            raise CheckpointError(
                f"{origin}: {linear_name} is {tuple(linear.weight.shape)} in the base decoder, but its LoRA pair is "
                f"{tuple(up.shape)} × {tuple(down.shape)}. Is it the base this checkpoint was trained on?"
            )
        merged = linear.weight.float() + LORA_SCALE * (up.float() @ down.float())
        linear.weight = nn.Parameter(merged.to(linear.weight.dtype), requires_grad=False)
        adapted.add(linear_name)
    if not remaining:
        require_pairs(model, adapted, origin)


def require_pairs(model: Any, adapted: Collection[str], origin: str) -> None:
    """Check that each linear layer of a base decoder but ``lm_head`` is among those that have a LoRA pair.

    Raises:
        CheckpointError: naming the first one that is not.
    """
    head = model.get_output_embeddings()
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head}
    if lacking := sorted(linears.difference(adapted)):
        raise CheckpointError(
            f"{origin}: {len(lacking)} linear layers have no LoRA pair, the first: {lacking[0]}. Is the file whole?"
        )


def _replace_rows(module: Any, module_name: str, remaining: dict[str, torch.Tensor], origin: str) -> None:
    """Give an embedding or ``lm_head`` its saved weight, and bias if it has one. The number of rows may change."""
    for kind, present in list(module.named_parameters()):
        name = f"{module_name}.{SAVED_COPY}.{kind}"
        saved = remaining.pop(name, None)
        remaining.pop(f"{module_name}.{ORIGINAL}.{kind}", None)
        if saved is None:
            raise CheckpointError(f"{origin}: lacks {name}.")
        if saved.ndim != present.ndim or saved.shape[1:] != present.shape[1:]:
            raise CheckpointError(
                f"{origin}: {name} is {tuple(saved.shape)}, but {tuple(present.shape)} in the base decoder. "
                "Is it the base this checkpoint was trained on?"
            )
        setattr(module, kind, nn.Parameter(saved.to(present.dtype), requires_grad=False))
    rows = {len(values) for values in module.parameters()}
    if len(rows) != 1:
        raise CheckpointError(f"{origin}: weight and bias of {module_name} differ in rows: {sorted(rows)}.")
    setattr(module, "num_embeddings" if isinstance(module, nn.Embedding) else "out_features", rows.pop())


def embedding_names(model: Any) -> tuple[str, str]:
    """Return the names of a model's input embedding and output head."""
    names = {id(module): name for name, module in model.named_modules()}
    return names[id(model.get_input_embeddings())], names[id(model.get_output_embeddings())]
