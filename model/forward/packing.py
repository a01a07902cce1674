"""Passages packed one after another into a batch, with no padding between them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain

import numpy as np
import torch


class Passages:
    """Passages as one array of token ids, so that packing loops over no passage.

    Attributes:
        ids: token ids of the passages, one passage after another, ``(Σ length,)`` int32.
        lengths: number of tokens of each passage, ``(passages,)`` int64.
    """

    def __init__(self, ids: np.ndarray, lengths: np.ndarray):
        if ids.ndim != 1 or lengths.ndim != 1 or len(ids) != int(lengths.sum()):
            raise ValueError(f"{len(ids)} token ids are not {len(lengths)} passages of {int(lengths.sum())} tokens.")
        self.ids = ids.astype(np.int32, copy=False)
        self.lengths = lengths.astype(np.int64, copy=False)

    @classmethod
    def of(cls, passages: "Passages | Sequence[Sequence[int]]") -> "Passages":
        """Make passages of lists of token ids."""
        if isinstance(passages, Passages):
            return passages
        lengths = np.fromiter(map(len, passages), np.int64, len(passages))
        return cls(np.fromiter(chain.from_iterable(passages), np.int32, int(lengths.sum())), lengths)

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """A batch of passages, one after another.

    The batch may be filled up with rows after the last passage, to a size that a graph was compiled for. No passage
    attends to them.

    Attributes:
        ids: token ids, ``(rows,)`` int32.
        positions: position of each token in its passage, ``(1, rows)`` int64.
        starts: row at which each passage begins, and the end of the last one, ``(passages + 1,)`` int32.
        memory: rows of the memory tokens, ``(memory tokens,)`` int64.
        memory_starts: index in ``memory`` at which each passage begins, and the end, ``(passages + 1,)`` int32.
        longest: number of tokens of the longest passage.
        most_memory: largest number of memory tokens of a passage.
        memory_last: True if the memory tokens of every passage are its last tokens.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    starts: torch.Tensor
    memory: torch.Tensor
    memory_starts: torch.Tensor
    longest: int
    most_memory: int
    memory_last: bool

    def to(self, device: torch.device) -> "PackedBatch":
        """Copy the batch to a device, without waiting for a GPU."""
        if device.type == "cpu":
            return self
        tensors = {
            name: value.pin_memory().to(device, non_blocking=True)
            for name, value in ((field.name, getattr(self, field.name)) for field in fields(self))
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)


def is_memory(ids: np.ndarray, memory_token_ids: Sequence[int]) -> np.ndarray:
    """Return which token ids are memory tokens: those given, or all if none is given."""
    if not memory_token_ids:
        return np.ones(len(ids), bool)
    low, high = min(memory_token_ids), max(memory_token_ids)
    if high - low + 1 == len(set(memory_token_ids)):
        return (ids >= low) & (ids <= high)
    return np.isin(ids, memory_token_ids)


def pack(
    passages: Passages,
    chosen: np.ndarray,
    memory_token_ids: Sequence[int],
    rows: int = 0,
    memory_position: int | None = None,
) -> PackedBatch:
    """Pack some passages into a batch, in the order in which they are chosen.

    Args:
        passages: all passages.
        chosen: indices of the passages to pack, ``(n,)``.
        memory_token_ids: ids of the memory tokens; empty if every token is one.
        rows: number of rows to fill the batch up to.
        memory_position: position of the first memory token of each passage; default: the one after its text.
    """
    lengths = passages.lengths[chosen]
    starts = offsets(lengths)
    total = int(starts[-1])
    position = np.arange(total) - np.repeat(starts[:-1], lengths)
    ids = np.zeros(max(rows, total), np.int32)
    ids[:total] = passages.ids[np.repeat(offsets(passages.lengths)[chosen], lengths) + position]
    positions = np.zeros(max(rows, total), np.int64)
    positions[:total] = position
    memory = np.flatnonzero(is_memory(ids[:total], memory_token_ids))
    memory_starts = np.searchsorted(memory, starts)
    per_passage = np.diff(memory_starts)
    if memory_position is not None:
        positions[memory] = memory_position + np.arange(len(memory)) - np.repeat(memory_starts[:-1], per_passage)
    return PackedBatch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions)[None],
        starts=torch.from_numpy(starts.astype(np.int32)),
        memory=torch.from_numpy(memory),
        memory_starts=torch.from_numpy(memory_starts.astype(np.int32)),
        longest=int(lengths.max(initial=0)),
        most_memory=int(per_passage.max(initial=0)),
        # m memory tokens are the last of their passage if the first of them is at most m rows from its end.
        memory_last=bool((np.repeat(starts[1:] - per_passage, per_passage) <= memory).all()),
    )


def offsets(lengths: np.ndarray) -> np.ndarray:
    """Return the start of each of n parts, and the end of the last one: ``(n + 1,)`` int64."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the indices of n parts one after another, given where each starts: ``(Σ length,)`` int64."""
    return np.repeat(starts - offsets(lengths)[:-1], lengths) + np.arange(lengths.sum())
