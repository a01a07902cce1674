"""A decoder that only makes prompts and their embeddings, for an engine elsewhere that generates."""

from typing import Any

import torch
from torch import nn

from ..decoder import Decoder
from ..families import Checkpoint


class _Embeddings(nn.Module):
    """The input embeddings of a causal LM, without its layers."""

    def __init__(self, model: Any):
        super().__init__()
        self._table = model.get_input_embeddings()
        self.config = model.config
        self.generation_config = model.generation_config

    def get_input_embeddings(self) -> Any:
        return self._table


def load_embedder(checkpoint: Checkpoint, *, dtype: torch.dtype, repetition_penalty: float | None = None) -> Decoder:
    """Return the decoder of a checkpoint without its layers, on the CPU: it embeds prompts, and generates nothing.

    All weights are read once, because adapters may change the embeddings.

    Args:
        checkpoint: the opened checkpoint.
        dtype: dtype of the embeddings, that of the engine.
        repetition_penalty: see ``Decoder.load``.
    """
    decoder = Decoder.load(checkpoint, dtype=dtype, repetition_penalty=repetition_penalty)
    decoder.model = _Embeddings(decoder.model)
    return decoder
