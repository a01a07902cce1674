"""Count the steps of a worker's threads, so that others can see what it does and whether it hangs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from .planning.plan import Shard

Busy = Literal["compressing", "reading", "writing"]
"""Activities of a worker's threads, the one to report first."""


@dataclass(frozen=True)
class Pulse:
    """A worker's activity and the number of steps it has taken. A worker that hangs takes none.

    Attributes:
        doing: activity of the worker; compressing if one of its threads compresses, then reading, then writing.
        shard: number of the shard that it works on; None while it waits.
        documents: number of documents compressed since the worker started.
        tokens: number of tokens compressed since the worker started.
        steps: number of batches computed, chunks read and encoded, and files written.
        part: compressed part of the shard, 0 to 1; None while the worker waits.
        readers: number of processes that read for the worker; 0 if its threads read.
    """

    doing: Literal["waiting"] | Busy
    shard: int | None
    documents: int
    tokens: int
    steps: int
    part: float | None = None
    readers: int = 0


class Steps:
    """Counts the steps of one worker. All threads of the worker share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # For each activity, the compressed part of each shard that is in it.
        self._busy: dict[Busy, dict[int, float]] = {name: {} for name in get_args(Busy)}
        self._documents = 0.0
        self._tokens = self._count = 0

    @contextmanager
    def doing(self, what: Busy, shard: Shard) -> Iterator[None]:
        """Mark the shard as being read, compressed or written inside the ``with`` block."""
        with self._lock:
            self._busy[what][shard.number] = 1.0 if what == "writing" else 0.0
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy[what].pop(shard.number, None)
                self._count += 1

    def take(self) -> None:
        """Count a step."""
        with self._lock:
            self._count += 1

    def computed(self, shard: Shard, documents: float, tokens: int, part: float) -> None:
        """Count a computed batch.

        Args:
            shard: shard that the batch belongs to.
            documents: number of documents in the batch, which may hold parts of documents.
            tokens: number of tokens in the batch.
            part: part of the shard that is computed now, 0 to 1.
        """
        with self._lock:
            if shard.number in self._busy["compressing"]:
                self._busy["compressing"][shard.number] = part
            self._documents += documents
            self._tokens += tokens
            self._count += 1

    def pulse(self) -> Pulse:
        """Return the present activity and the counts."""
        with self._lock:
            doing = next((name for name, shards in self._busy.items() if shards), None)
            shard, part = next(iter(self._busy[doing].items())) if doing else (None, None)
            return Pulse(doing or "waiting", shard, round(self._documents), self._tokens, self._count, part)
