"""Stand-ins for passages and compressor in a build that stores texts, whose memory is made with each question."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..model.memory import Memory, Stage
from ..model.passages import TokenizedDocument


class NoPassages:
    """Gives every text no passage and no memory."""

    memory_token_ids: tuple[int, ...] = ()

    def tokenize(self, texts: Sequence[str], repeated: Sequence[str] | None = None) -> Iterator[TokenizedDocument]:  # noqa: ARG002
        """Yield an empty document for each text."""
        return (TokenizedDocument((), 0, 0, 0) for _ in texts)


@dataclass(frozen=True)
class NoMemory:
    """The memory of documents without passages.

    Attributes:
        dim: width of the vectors that are made with each question.
        stage: stage of those vectors.
    """

    dim: int
    stage: Stage

    def finish(self) -> Memory:
        """Return memory of no passage."""
        return Memory(torch.empty(0, self.dim), (), self.stage, "")


@dataclass(frozen=True)
class NoCompressor:
    """Computes nothing, and takes no model's memory.

    Attributes:
        dim: width of the vectors that are made with each question.
        stage: stage of those vectors.
    """

    dim: int
    stage: Stage
    token_budget: int = 0

    def launch(self, passages: Any, **_: Any) -> NoMemory:  # noqa: ARG002
        """Return the memory of no passage."""
        return NoMemory(self.dim, self.stage)
