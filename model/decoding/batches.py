"""Prompts that are answered together: of similar length, as many as a budget of tokens allows."""

from collections.abc import Iterator, Sequence

import torch

_BUDGETS = {"cpu": 16_384, "cuda": 32_768}


def default_token_budget(device: str | torch.device) -> int:
    """Return the largest number of tokens in a batch by default, for a type of device.

    It limits the memory of keys and values: a token of a 7B model with grouped heads takes 128 KiB in bfloat16, a batch
    thus 2 GiB on a CPU and 4 GiB on a GPU.
    """
    return _BUDGETS.get(torch.device(device).type, 16_384)


def split_into_batches(lengths: Sequence[int], new_tokens: int, token_budget: int) -> Iterator[list[int]]:
    """Yield the numbers of the prompts to answer together.

    Prompts of similar length share a batch, so that little is padded. The longest come first, so that memory that does
    not suffice is noticed at once.

    Args:
        lengths: number of tokens of each prompt.
        new_tokens: largest number of tokens of an answer.
        token_budget: largest number of prompts in a batch, times the longest of them and the new tokens. A prompt above
            it has its own batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        count = max(1, token_budget // (lengths[order[0]] + new_tokens))
        yield order[:count]
        order = order[count:]
