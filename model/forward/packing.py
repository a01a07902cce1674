"""Passages one behind the other, with no padding between them: what the compressor computes on."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain

import numpy as np
import torch


class Passages:
    """Passages as one array of token ids, so that nothing is done passage by passage.

    Attributes:
        ids: ``(Σ length,)`` int32, the passages' token ids one behind the other.
        lengths: ``(passages,)`` int64, tokens of each.
    """

    def __init__(self, ids: np.ndarray, lengths: np.ndarray):
        if ids.ndim != 1 or lengths.ndim != 1 or len(ids) != int(lengths.sum()):
            raise ValueError(f"{len(ids)} token ids are not {len(lengths)} passages of {int(lengths.sum())} tokens.")
        self.ids = ids.astype(np.int32, copy=False)
        self.lengths = lengths.astype(np.int64, copy=False)

    @classmethod
    def of(cls, passages: "Passages | Sequence[Sequence[int]]") -> "Passages":
        """Make an array of lists of token ids."""
        if isinstance(passages, Passages):
            return passages
        lengths = np.fromiter(map(len, passages), np.int64, len(passages))
        return cls(np.fromiter(chain.from_iterable(passages), np.int32, int(lengths.sum())), lengths)

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, eq=False)
class Packed:
    """Some passages on a device, one behind the other.

    Rows behind the last passage are filling, up to a size that a graph was compiled for; no passage sees them.

    Attributes:
        ids: ``(rows,)`` int32, token ids.
        positions: ``(1, rows)`` int64, each token's place in its passage.
        starts: ``(passages + 1,)`` int32, the row where each passage begins, and the end.
        memory: ``(memory tokens,)`` int64, their rows.
        memory_starts: ``(passages + 1,)`` int32, where in ``memory`` each passage begins, and the end.
        longest: no passage has more tokens.
        most_memory: no passage has more memory tokens.
        memory_last: whether memory tokens stand behind the text in every passage.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    starts: torch.Tensor
    memory: torch.Tensor
    memory_starts: torch.Tensor
    longest: int
    most_memory: int
    memory_last: bool

    def to(self, device: torch.device) -> "Packed":
        """Copy to a device; to a GPU without waiting for it."""
        if device.type == "cpu":
            return self
        tensors = {
            name: value.pin_memory().to(device, non_blocking=True)
            for name, value in ((field.name, getattr(self, field.name)) for field in fields(self))
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)


def pack(passages: Passages, chosen: np.ndarray, memory_token_id: int, rows: int = 0) -> Packed:
    """Pack some passages, in the order in which they are chosen.

    Args:
        passages: all of them.
        chosen: ``(n,)``, the numbers of those that are packed.
        memory_token_id: the id whose rows are looked for.
        rows: fill up to so many.
    """
    lengths = passages.lengths[chosen]
    starts = offsets(lengths)
    total = int(starts[-1])
    position = np.arange(total) - np.repeat(starts[:-1], lengths)
    ids = np.zeros(max(rows, total), np.int32)
    ids[:total] = passages.ids[np.repeat(offsets(passages.lengths)[chosen], lengths) + position]
    positions = np.zeros(max(rows, total), np.int64)
    positions[:total] = position
    memory = np.flatnonzero(ids[:total] == memory_token_id)
    memory_starts = np.searchsorted(memory, starts)
    per_passage = np.diff(memory_starts)
    return Packed(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions)[None],
        starts=torch.from_numpy(starts.astype(np.int32)),
        memory=torch.from_numpy(memory),
        memory_starts=torch.from_numpy(memory_starts.astype(np.int32)),
        longest=int(lengths.max(initial=0)),
        most_memory=int(per_passage.max(initial=0)),
        # The last ones of a passage, if there is no other token behind the first of them.
        memory_last=bool((np.repeat(starts[1:] - per_passage, per_passage) <= memory).all()),
    )


def offsets(lengths: np.ndarray) -> np.ndarray:
    """``(n + 1,)`` int64: where each of n parts begins, and the end."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
