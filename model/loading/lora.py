"""LoRA pairs of a checkpoint: read from its tensors, merged into a model, or laid over one whose weights are shared."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...errors import CheckpointError
from .adapters import LORA_SCALE

Pair = tuple[torch.Tensor, torch.Tensor]
"""``lora_A`` ``(rank, in)`` and ``lora_B`` ``(out, rank)`` of one linear layer."""

Adapter = dict[str, Pair]
"""Pairs by the name of their linear layer within the base model, such as ``layers.0.mlp.up_proj``."""


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank update beside its weight, which other models may share.

    Args:
        linear: layer whose weight and bias are used, not copied.
        down: ``(rank, in)``.
        up: ``(out, rank)``, scale included.
    """

    def __init__(self, linear: nn.Linear, down: torch.Tensor, up: torch.Tensor):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_down = nn.Parameter(down.to(linear.weight), requires_grad=False)
        self.lora_up = nn.Parameter(up.to(linear.weight), requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """Return the layer's output with the update added."""
        update = nn.functional.linear(nn.functional.linear(input, self.lora_down), self.lora_up)
        return super().forward(input) + update


def take_adapter(state: Mapping[str, torch.Tensor], prefix: str, origin: object) -> Adapter:
    """Return the pairs among named tensors.

    Args:
        state: tensors named ``{prefix}{linear}.lora_{A,B}.weight``, and no others.
        prefix: prefix of the base model's names, such as ``model.``.
        origin: name of the file in messages.

    Raises:
        CheckpointError: a tensor has another name or lacks its partner, or the ranks of a pair differ.
    """
    remaining, adapter = dict(state), {}
    for name in [name for name in remaining if ".lora_A." in name]:
        linear, _, kind = name.partition(".lora_A.")
        down, up = remaining.pop(name), remaining.pop(f"{linear}.lora_B.{kind}", None)
        if up is None:
            raise CheckpointError(f"{origin}: {name} has no partner lora_B.")
        if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
            raise CheckpointError(f"{origin}: the pair of {linear} is {tuple(up.shape)} × {tuple(down.shape)}.")
        if not linear.startswith(prefix) or kind not in ("weight", "default.weight"):
            raise CheckpointError(f"{origin}: unknown tensor {name}.")
        adapter[linear.removeprefix(prefix)] = (down, up)
    if remaining:
        raise CheckpointError(
            f"{origin}: {len(remaining)} tensors have no place, the first: {sorted(remaining)[0]}. Nothing was loaded."
        )
    return adapter


def require_adapter_fits(adapter: Adapter, model: Any, rank: int, origin: object) -> None:
    """Check that an adapter has one pair for every linear layer of a base model, of the right shape and rank.

    Args:
        adapter: pairs, which may be on the meta device.
        model: the base model without ``lm_head``, which may be on the meta device.
        rank: rank that the checkpoint's configuration states.
        origin: name of the file in messages.

    Raises:
        CheckpointError: naming the first layer for which that is not so.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if strange := sorted(adapter.keys() - linears.keys()):
        raise CheckpointError(
            f"{origin}: the base model has no linear layer {strange[0]}. Is it the base this checkpoint was trained on?"
        )
    if missing := sorted(linears.keys() - adapter.keys()):
        raise CheckpointError(f"{origin}: {len(missing)} linear layers have no LoRA pair, the first: {missing[0]}.")
    for name, (down, up) in adapter.items():
        if (up.shape[0], down.shape[1]) != linears[name].weight.shape:
            raise CheckpointError(
                f"{origin}: {name} is {tuple(linears[name].weight.shape)} in the base model, but its LoRA pair is "
                f"{tuple(up.shape)} × {tuple(down.shape)}. Is it the base this checkpoint was trained on?"
            )
        if down.shape[0] != rank:
            raise CheckpointError(
                f"{origin}: the LoRA pair of {name} has rank {down.shape[0]}; config.json says {rank}."
            )


def merge_adapter(adapter: Adapter, model: Any) -> None:
    """Add ``2·B·A``, computed in fp32 on the model's device, to each linear layer of a base model, in place."""
    for name, pair in adapter.items():
        linear = model.get_submodule(name)
        weight = linear.weight.detach()
        down, up = (each.to(weight.device, torch.float32) for each in pair)
        merged = torch.addmm(weight.float(), up, down, alpha=LORA_SCALE)
        linear.weight = nn.Parameter(merged.to(weight.dtype), requires_grad=False)


def exchange_adapter(merged: Adapter, wanted: Adapter, model: Any) -> None:
    """Lay the difference of two adapters over a model into which one of them is merged, and leave its weights alone.

    Args:
        merged: adapter that the weights contain.
        wanted: adapter that the model shall have.
        model: the base model; its linear layers are replaced, their weights are shared.
    """
    for name in wanted:
        (down, up), (wanted_down, wanted_up) = merged[name], wanted[name]
        parent, _, child = name.rpartition(".")
        layer = LoraLinear(
            model.get_submodule(name),
            torch.cat([wanted_down.float(), down.float()]),
            torch.cat([LORA_SCALE * wanted_up.float(), -LORA_SCALE * up.float()], 1),
        )
        setattr(model.get_submodule(parent), child, layer)
