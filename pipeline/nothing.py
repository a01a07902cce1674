"""Stand-in for the compressor in a build that stores texts, whose memory is made with each question."""

from dataclasses import dataclass
from typing import Any

import torch

from ..model.memory import Memory, Stage


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
