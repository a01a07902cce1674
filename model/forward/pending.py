"""Memory on its way from the device: batches are copied to the CPU while the next ones are computed."""

from collections import deque
from collections.abc import Callable

import numpy as np
import torch

from ...configs.names import Stage
from ..memory import Memory


class PendingMemory:
    """Memory that the device still computes.

    Args:
        copies: copies of the batches to the CPU.
        lengths: number of memory tokens of each passage.
        stage: stage of the memory.
        connector: digest of the connector.
    """

    def __init__(self, copies: "HostCopies", lengths: np.ndarray, stage: Stage, connector: str):
        self._copies = copies
        self._lengths = lengths
        self._stage: Stage = stage
        self._connector = connector

    @torch.inference_mode()
    def finish(self) -> Memory:
        """Wait for the device and return the memory. Call it once."""
        return Memory(self._copies.finish(), tuple(self._lengths.tolist()), self._stage, self._connector)


class HostCopies:
    """Copies of batches from the device into one CPU tensor; a GPU computes the next batch during each copy.

    Args:
        rows: number of rows of all batches.
        dim: width of a row.
        dtype: dtype of the rows.
        device: device that computes them.
        on_batch: callback that is given the numbers of passages and of tokens of each batch that has arrived.
        places: place in the tensor of each row that is added, ``(rows,)`` int64; default: the order of adding.
    """

    def __init__(
        self,
        rows: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
        on_batch: Callable[[int, int], None] | None,
        places: torch.Tensor | None = None,
    ):
        self._asynchronous = device.type == "cuda"
        self._device = device
        self._values = torch.empty(rows, dim, dtype=dtype)
        self._end = 0
        self._on_batch = on_batch
        self._places = places
        # Pinned memory is taken from all processes of a machine, so that only batches in flight have it.
        self._in_flight: deque[tuple[torch.cuda.Event | None, slice, torch.Tensor, int, int]] = deque()

    def add(self, states: torch.Tensor, passages: int, tokens: int) -> None:
        """Begin to copy the states of a batch, and wait for the batch before it."""
        rows = slice(self._end, self._end + len(states))
        self._end = rows.stop
        arriving, event = states, None
        if self._asynchronous:
            arriving = torch.empty(states.shape, dtype=self._values.dtype, pin_memory=True)
            arriving.copy_(states, non_blocking=True)
            # A blocking event lets the waiting thread sleep: cores are few, and the tokenizer needs them.
            event = torch.cuda.Event(blocking=True)
            # The stream is named, since the default is that of the current device, which may be another one.
            event.record(torch.cuda.current_stream(self._device))
        self._in_flight.append((event, rows, arriving, passages, tokens))
        self._wait(1 if self._asynchronous else 0)

    def finish(self) -> torch.Tensor:
        """Wait for all batches and return their rows, on the CPU."""
        self._wait(0)
        return self._values

    def _wait(self, remaining: int) -> None:
        """Wait until no more than ``remaining`` batches are in flight."""
        while len(self._in_flight) > remaining:
            event, rows, arriving, passages, tokens = self._in_flight.popleft()
            if event is not None:
                event.synchronize()
            self._values[rows if self._places is None else self._places[rows]] = arriving.to("cpu", self._values.dtype)
            if self._on_batch is not None:
                self._on_batch(passages, tokens)
