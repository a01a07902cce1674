"""Greedy decoding of a batch: by keys and values of our own, or by transformers for other architectures."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from .penalty import RepetitionPenalty
from .running import RunningBatch

# A batch drops its finished rows when they are at least this share of it. Copying the keys and values of the other rows
# takes about as long as computing one token for the finished ones.
_FINISHED_SHARE = 0.25


def decode(
    model: Any, prompts: Sequence[torch.Tensor], ends: Sequence[int], *, limit: int, penalty: float, pad: int
) -> list[list[int]]:
    """Return the greedy continuation of each prompt as token ids, up to and including the first end token.

    Args:
        model: causal LM of transformers.
        prompts: input embeddings ``(length, hidden)`` of each prompt, from the shortest to the longest.
        ends: ids of the tokens that end an answer.
        limit: largest number of tokens of an answer.
        penalty: repetition penalty, 1.0 for none (see ``RepetitionPenalty``).
        pad: id of the token that fills up finished answers.
    """
    if RunningBatch.supports(model):
        return _decode(RunningBatch(model, prompts), len(prompts), frozenset(ends), limit, RepetitionPenalty(penalty))
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
    batch: RunningBatch, count: int, ends: frozenset[int], limit: int, penalty: RepetitionPenalty
) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in range(count)]
    # The answers in the batch, among them finished ones that it has not dropped yet.
    rows, finished = list(range(count)), set()
    logits = batch.read()
    appended = logits.new_empty(count, 0, dtype=torch.int64)
    for step in range(1, limit + 1):
        ids = penalty(appended, logits.float()).argmax(-1)
        # The only wait for a GPU in a step.
        for row, token in zip(rows, ids.tolist(), strict=True):
            if row not in finished:
                answers[row].append(token)
                if token in ends:
                    finished.add(row)
        running = [index for index, row in enumerate(rows) if row not in finished]
        if not running or step == limit:
            break
        appended = torch.cat([appended, ids[:, None]], 1)
        if len(running) <= (1 - _FINISHED_SHARE) * len(rows):
            kept = torch.tensor(running, device=ids.device)
            batch.keep(kept)
            rows, ids, appended = [rows[index] for index in running], ids[kept], appended[kept]
        logits = batch.append(ids)
    return answers


def _until_end(ids: list[int], ends: frozenset[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return ids
