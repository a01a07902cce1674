"""Greedy decoding of a batch: by keys and values of our own, or by transformers for other architectures."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from ...errors import PromptError
from .answers import RunningAnswers
from .penalty import RepetitionPenalty
from .running import RunningBatch

NAN = "The decoder computes values that are not numbers for a prompt. Use another dtype, for example float32."
"""Message of the error of a prompt whose logits are not numbers."""


def decode(
    model: Any, prompts: Sequence[torch.Tensor], ends: Sequence[int], *, limit: int, penalty: float, pad: int
) -> list[list[int]]:
    """Return the greedy continuation of each prompt as token ids, up to and including the first end token.

    Args:
        model: causal LM of transformers.
        prompts: input embeddings ``(length, hidden)`` of each prompt.
        ends: ids of the tokens that end an answer.
        limit: largest number of tokens of an answer.
        penalty: repetition penalty, 1.0 for none (see ``RepetitionPenalty``).
        pad: id of the token that fills up finished answers.

    Raises:
        PromptError: the logits of a prompt are not numbers.
    """
    if RunningBatch.supports(model):
        return _decode(model, prompts, ends, limit, penalty)
    attended = [torch.ones(len(each), dtype=torch.int64, device=each.device) for each in prompts]
    output = model.generate(
        inputs_embeds=pad_sequence(list(prompts), batch_first=True, padding_side="left"),
        attention_mask=pad_sequence(attended, batch_first=True, padding_side="left"),
        generation_config=GenerationConfig(
            max_new_tokens=limit, do_sample=False, eos_token_id=list(ends) or None, pad_token_id=pad
        ),
        logits_processor=[] if penalty == 1 else [RepetitionPenalty(penalty)],
    )
    return [_until_end(ids, frozenset(ends)) for ids in output.tolist()]


def _decode(
    model: Any, prompts: Sequence[torch.Tensor], ends: Sequence[int], limit: int, penalty: float
) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]
    running: RunningAnswers[int] = RunningAnswers(model, ends, penalty)
    tokens = running.join([(number, prompt, limit) for number, prompt in enumerate(prompts)])
    while tokens:
        for number, token, ended in tokens:
            if ended == "nan":
                raise PromptError(NAN)
            answers[number].append(token)
        tokens = running.step()
    return answers


def _until_end(ids: list[int], ends: frozenset[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return ids
