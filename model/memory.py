"""Memory embeddings of several documents: ragged, never padded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

Stage = Literal["hidden", "embedding"]


@dataclass(frozen=True, eq=False)
class Memory:
    """The memory embeddings of ``k`` documents, in order.

    Iterating gives one ``(n_mem, dim)`` tensor a document.

    Attributes:
        values: ``(Σ n_mem, dim)``, the documents' vectors one after the other.
        lengths: ``n_mem`` of each document.
        stage: ``"hidden"`` before the connector (compressor width), ``"embedding"`` after it (decoder width).
        connector: digest of the connector that belongs to these vectors; a decoder refuses another one's.
        doc_ids: the documents, where they came from a store.
    """

    values: torch.Tensor
    lengths: tuple[int, ...]
    stage: Stage
    connector: str
    doc_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[0] != sum(self.lengths):
            raise ValueError(f"{tuple(self.values.shape)} does not hold documents of {self.lengths} vectors.")

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.values.split(list(self.lengths)))

    def __getitem__(self, document: int) -> torch.Tensor:
        return self.values.split(list(self.lengths))[document]

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.values.shape[1]

    def select(self, documents: Sequence[int]) -> "Memory":
        """The memory of some of the documents, in the order asked for."""
        parts = self.values.split(list(self.lengths))
        return replace(
            self,
            values=torch.cat([parts[i] for i in documents]) if documents else self.values[:0],
            lengths=tuple(self.lengths[i] for i in documents),
            doc_ids=tuple(self.doc_ids[i] for i in documents) if self.doc_ids else (),
        )
