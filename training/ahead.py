"""Batches made ahead of their step, so that a resumed training draws what it would have drawn undisturbed.

A data loader makes a batch while the one before it waits for its step. What its collator draws therefore comes before
what that step draws (dropout), and when a state is saved, batches have been drawn that no step has used. They are made
again after resuming; with the generator's state that they were first made with, they are the same.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import get_worker_info


class Ahead:
    """A collator that remembers torch's generator as it was before each batch that no step has used yet.

    A data loader's worker processes draw from generators of their own; there it does nothing.

    Args:
        collator: makes the batches.
    """

    def __init__(self, collator: Callable[[Any], Any]):
        self.collator = collator
        self.states: list[torch.Tensor] = []
        self._again: deque[torch.Tensor] = deque()
        self._resume: Callable[[], None] | None = None

    def repeat(self, states: Sequence[torch.Tensor], resume: Callable[[], None]) -> None:
        """Make the next batches from these states; ``resume``, called before the first, sets all generators."""
        self._again.extend(states)
        self._resume = resume if states else None

    def used(self) -> None:
        """A step uses the oldest batch."""
        del self.states[:1]

    def __call__(self, records: Any) -> Any:
        """Make a batch."""
        if get_worker_info() is not None:
            return self.collator(records)
        if self._resume is not None:
            self._resume()
            self._resume = None
        if not self._again:
            self.states.append(torch.get_rng_state())
            return self.collator(records)
        self.states.append(self._again.popleft())
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.states[-1])
            return self.collator(records)
