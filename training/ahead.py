"""Batches made ahead of their step, and how a resumed training makes them again.

A data loader prepares a batch while the step before it has not run yet. The collator's random draws therefore
precede that step's draws (dropout). When a state is saved, some batches have been drawn that no step has used. After
resuming they are made again, each with the state of torch's generator that it was first made with, and are therefore
the same.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import get_worker_info


class Ahead:
    """A collator that keeps the state of torch's generator before each batch that no step has used yet.

    In a data loader's worker process it keeps nothing: workers draw from generators of their own.

    Args:
        collator: collator that makes the batches.

    Attributes:
        states: generator states of the unused batches, the oldest first.
    """

    def __init__(self, collator: Callable[[Any], Any]):
        self.collator = collator
        self.states: list[torch.Tensor] = []
        self._again: deque[torch.Tensor] = deque()
        self._resume: Callable[[], None] | None = None

    def repeat(self, states: Sequence[torch.Tensor], resume: Callable[[], None]) -> None:
        """Make the next batches with the given generator states.

        Args:
            states: state before each of the batches.
            resume: function that sets all generators as they were when the states were saved; called once, before the
                first of the batches.
        """
        self._again.extend(states)
        self._resume = resume if states else None

    def used(self) -> None:
        """Forget the oldest batch, because a step uses it."""
        del self.states[:1]

    def __call__(self, records: Any) -> Any:
        """Return the batch of some records."""
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
