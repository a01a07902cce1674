"""One copy of a base model's weights for the compressor and the decoder of a process.

The first of the two to be loaded has its adapter merged into the weights. The second one shares these weights, and
its layers add the difference of both adapters (``LoraLinear``).
"""

import copy
import weakref
from typing import Any

import torch


class SharedBase:
    """Base models that are alive in this process, by dtype and device."""

    def __init__(self) -> None:
        self._models: dict[tuple[torch.dtype, torch.device], tuple[weakref.ref[Any], str, str]] = {}

    def keep(self, model: Any, role: str, dtype: torch.dtype, device: torch.device) -> None:
        """Remember a base model for as long as something else uses it.

        Args:
            model: base model without ``lm_head``.
            role: name of the adapter that is merged into its weights.
            dtype: dtype of the weights.
            device: device of the weights.
        """
        self._models[dtype, device] = (weakref.ref(model), role, model.config._attn_implementation)

    def find(self, dtype: torch.dtype, device: torch.device) -> tuple[Any, str] | None:
        """Return another module over the weights of a base model that is in use, and the name of its merged adapter."""
        reference, role, attention = self._models.get((dtype, device), (None, "", ""))
        model = None if reference is None else reference()
        if model is None:
            return None
        # The modules are copied, and the parameters are the same objects.
        other = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
        # A compressor may have given its model an attention for packed passages.
        other.set_attn_implementation(attention)
        return other, role

    # A checkpoint travels to other processes, and models do not.
    def __getstate__(self) -> dict[str, Any]:
        return {"_models": {}}


def canonical_device(device: str | torch.device) -> torch.device:
    """Return a device with its index, so that ``cuda`` and ``cuda:0`` are equal."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
