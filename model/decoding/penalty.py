"""The repetition penalty of answers."""

from typing import cast

import torch
from transformers import LogitsProcessor


class RepetitionPenalty(LogitsProcessor):
    """Makes tokens that the answer already has less likely.

    The prompt does not count, since it is given as embeddings. transformers' own processor would leave out as many of
    an answer's first tokens as its prompt has padding.

    Args:
        penalty: divisor of positive logits and factor of negative ones; 1.0 changes nothing.
    """

    def __init__(self, penalty: float):
        self._penalty = penalty

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.FloatTensor:
        """Return the logits ``(answers, vocabulary)`` after the generated ``input_ids`` ``(answers, tokens)``."""
        if self._penalty == 1:
            return cast(torch.FloatTensor, scores)
        seen = scores.gather(1, input_ids)
        penalised = torch.where(seen < 0, seen * self._penalty, seen / self._penalty)
        return cast(torch.FloatTensor, scores.scatter(1, input_ids, penalised))
