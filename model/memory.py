"""Memory of several documents: a ragged matrix, never padded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from ..configs.names import Stage


class DocumentSize(NamedTuple):
    """The size of a document.

    Attributes:
        memory: number of its memory vectors.
        text: number of tokens of text that the compressor has read for them.
    """

    memory: int
    text: int


@dataclass(frozen=True, eq=False)
class Memory:
    """The memory of ``k`` documents, in order.

    Iterating yields one ``(n_mem, dim)`` tensor per document.

    Attributes:
        values: the documents' vectors one after another, ``(Σ n_mem, dim)``.
        lengths: number of vectors of each document.
        stage: ``"hidden"`` before the connector (compressor width), ``"embedding"`` after it (decoder width).
        connector: digest of the connector that belongs to these vectors; a decoder refuses memory of another one.
        doc_ids: ids of the documents if they came from a store, else empty.
    """

    values: torch.Tensor
    lengths: tuple[int, ...]
    stage: Stage
    connector: str
    doc_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[0] != sum(self.lengths):
            raise ValueError(f"a matrix {tuple(self.values.shape)} does not hold documents of {self.lengths} vectors.")

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.values.split(list(self.lengths)))

    def __getitem__(self, document: int) -> torch.Tensor:
        return self.values.split(list(self.lengths))[document]

    @property
    def dim(self) -> int:
        """Number of values in a vector."""
        return self.values.shape[1]

    @property
    def numbers(self) -> np.ndarray:
        """The vectors as float32, or as the bits of bfloat16 in uint16, ``(Σ n_mem, dim)``; not a copy, if possible."""
        return (self.values.view(torch.uint16) if self.values.dtype == torch.bfloat16 else self.values.float()).numpy()

    def select(self, documents: Sequence[int]) -> "Memory":
        """Return the memory of some of the documents, in the given order."""
        parts = self.values.split(list(self.lengths))
        return replace(
            self,
            values=torch.cat([parts[i] for i in documents]) if documents else self.values[:0],
            lengths=tuple(self.lengths[i] for i in documents),
            doc_ids=tuple(self.doc_ids[i] for i in documents) if self.doc_ids else (),
        )

    def split(self, counts: Sequence[int]) -> "list[Memory]":
        """Return the memory of groups of consecutive documents. The tensors share this one's bytes.

        Args:
            counts: number of documents of each group; their sum is the number of all documents.
        """
        groups, first = [], 0
        ends = list(accumulate(counts))
        sizes = [sum(self.lengths[end - count : end]) for end, count in zip(ends, counts, strict=True)]
        for values, end in zip(self.values.split(sizes), ends, strict=True):
            groups.append(
                replace(self, values=values, lengths=self.lengths[first:end], doc_ids=self.doc_ids[first:end])
            )
            first = end
        return groups
