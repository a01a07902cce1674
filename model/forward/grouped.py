"""The forward pass of a bidirectional encoder whose states are grouped: several tokens make one vector of memory."""

from typing import Any

import torch
from torch import nn

from .attention import Spans
from .packing import PackedBatch


class GroupedEncoder(nn.Module):
    """An encoder, and a linear map of the last states of ``rate`` consecutive tokens.

    Passages are padded on the right to a multiple of the rate. No token attends to this padding, but its own states
    enter the last group.

    Args:
        encoder: encoder of transformers.
        projection: ``(rate * hidden)`` to the decoder's width.
        rate: number of tokens in a group.
        pad_token_id: id of the padding.
    """

    pads = True

    def __init__(self, encoder: Any, projection: nn.Linear, rate: int, pad_token_id: int):
        super().__init__()
        self.encoder = encoder
        self.projection = projection
        self.rate = rate
        self.pad_token_id = pad_token_id
        self.config = encoder.config

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Return the memory of all passages, in order: ``(Σ tokens / rate, width)``."""
        return self.projection(self.grouped(batch))

    def grouped(self, batch: PackedBatch) -> torch.Tensor:
        """Return the states that enter the projection: ``(Σ tokens / rate, rate * hidden)``."""
        spans = Spans.of(batch.starts, batch.longest)
        position = torch.arange(batch.longest, device=spans.starts.device)
        ids = batch.ids.long()[spans.padded()].view(-1, batch.longest)
        # A text may hold the pad token too. Only those after the last other token of a passage are padding.
        is_text = (ids != self.pad_token_id) & (position < spans.starts.diff()[:, None])
        length = (is_text * (position + 1)).amax(1, keepdim=True)
        states = self.encoder(input_ids=ids, attention_mask=(position < length).long()).last_hidden_state
        rows = states.flatten(0, 1)[spans.unpadded(len(batch.ids))[batch.memory]]
        return rows.view(-1, self.rate * rows.shape[-1])
