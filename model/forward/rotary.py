"""Rotary positions that transformers rescales by the longest passage of a batch, and by the batches before it.

A passage's memory must not depend on its neighbours. Passages above the length that decides are computed alone, and
the scaling starts anew with every batch, so that each passage gets the scaling of its own length.
"""

import sys
from typing import Any

from torch import nn


class ScaledRotary:
    """The rotary embeddings of a model whose scaling depends on lengths ("dynamic" and "longrope").

    Args:
        model: the base model, or a part that has its rotary embeddings.

    Attributes:
        limit: largest number of tokens of a passage that may share a batch; no limit for other models.
    """

    def __init__(self, model: Any):
        config = getattr(model, "config", None)
        self._modules = [each for each in _submodules(model) if _kinds(each) & {"dynamic", "longrope"}]
        self.limit = sys.maxsize
        if self._modules:
            rope = getattr(config, "rope_parameters", None) or {}
            nested = [each for each in rope.values() if isinstance(each, dict)]
            lengths = [each.get("original_max_position_embeddings") for each in (rope, *nested)]
            lengths += [getattr(module, "original_max_seq_len", None) for module in self._modules]
            self.limit = min(int(length) for length in lengths if length)

    def restart(self) -> None:
        """Forget the lengths of earlier batches."""
        for module in self._modules:
            for name, values in list(vars(module).items()):
                if name.endswith("max_seq_len_cached"):
                    setattr(module, name, module.original_max_seq_len)
                elif name.endswith("original_inv_freq"):
                    name = name.replace("original_inv_freq", "inv_freq")
                    module.register_buffer(name, values.to(getattr(module, name).device, copy=True), persistent=False)
            for name, values in list(module.named_buffers(recurse=False)):
                if name.endswith("original_inv_freq"):
                    module.register_buffer(name.replace("original_", ""), values.clone(), persistent=False)


def _submodules(model: Any) -> list[nn.Module]:
    return list(model.modules()) if isinstance(model, nn.Module) else []


def _kinds(module: nn.Module) -> set[str]:
    kind = getattr(module, "rope_type", None)
    return set(kind.values()) if isinstance(kind, dict) else {kind} if isinstance(kind, str) else set()
