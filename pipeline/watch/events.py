"""The log of a build's events: a JSON object a line, for programs. docs/watching.md describes it."""

import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...configs import BuildConfig
from ...errors import BuildIncompleteError, BuildInterruptedError, ConfigError
from ...store import Prediction
from .progress import WorkerState, described
from .tally import Tally

PROGRESS_SECONDS = 60.0


class EventLog(Tally):
    """Appends what happens in a build to a file, each event when it happens.

    A build that goes on may go on in the same file; ``run`` tells runs apart. A line that is no JSON belongs to a run
    that was killed while it wrote it.

    Args:
        path: the file, which is made if it is not there.
        clock: seconds, never going back, for durations.

    Raises:
        ConfigError: the file cannot be opened for writing.
    """

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._run = secrets.token_hex(8)
        self._first = self._last_progress = clock()
        self._known: set[str] = set()
        self._path = Path(path)
        try:
            with self._path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
        except OSError as error:
            raise ConfigError(f"The events cannot be written to {path}: {error.strerror}. Name another file.") from None

    def began(self, uri: str, config: BuildConfig) -> None:
        """Say what is built, where and by whom."""
        digest = hashlib.blake2b(config.model_dump_json().encode(), digest_size=16).hexdigest()
        place = {"host": socket.gethostname(), "pid": os.getpid()}
        self._write("began", uri=uri, version=version("pisco-index"), config=digest, **place)

    def planning(self, files: int) -> None:
        """Say so."""
        self._write("planning", files=files)

    def loading(self, device: str, compiled: bool | None) -> None:
        """Say so."""
        self._write("loading", device=device, compiled=compiled)

    def calibrating(self, codec: str) -> None:
        """Say so."""
        self._write("calibrating", codec=codec)

    def calibrated(self, prediction: Prediction) -> None:
        """Say what is to be expected of the codec."""
        error_db = None if prediction.error_db is None else round(prediction.error_db, 3)
        bits = round(prediction.bits_per_value, 3)
        self._write("calibrated", codec=prediction.codec, bits_per_value=bits, error_db=error_db)

    def started(self, shards: int, done: int, characters: Mapping[int, int], where: str) -> None:
        """Say how much there is to do."""
        super().started(shards, done, characters, where)
        self._last_progress = self._clock()
        self._write("started", shards=shards, done=done, characters=sum(characters.values()), where=where)

    def finished_shard(self, number: int, documents: int, tokens: int, size: int) -> None:
        """Say so."""
        super().finished_shard(number, documents, tokens, size)
        self._write("finished_shard", shard=number, documents=documents, tokens=tokens, bytes=size)

    def failed_shard(self, number: int, error: Exception, attempt: int, final: bool) -> None:
        """Say why."""
        super().failed_shard(number, error, attempt, final)
        self._write("failed_shard", shard=number, error=described(error), attempt=attempt, final=final)

    def workers(self, states: Sequence[WorkerState]) -> None:
        """Say which workers are ready now that were not, and once a minute how far the build is."""
        super().workers(states)
        for state in states:
            if state.doing != "starting" and state.name not in self._known:
                self._known.add(state.name)
                self._write("worker_ready", worker=state.name)
        if self._clock() - self._last_progress >= PROGRESS_SECONDS:
            self._last_progress = self._clock()
            left = self.pace.remaining_s
            self._write(
                "progress",
                shards=self.shards,
                done=self.done,
                documents=self.pace.documents,
                tokens=self.pace.tokens,
                tokens_per_s=round(self.tokens_per_s, 1),
                remaining_s=None if left is None else round(left, 1),
                workers=self.doing,
            )

    def lost_worker(self, name: str, reason: str) -> None:
        """Say why."""
        super().lost_worker(name, reason)
        self._known.discard(name)
        self._write("lost_worker", worker=name, reason=reason)

    def alone(self, number: int) -> None:
        """Say so."""
        self._write("alone", shard=number)

    def quarantined(self, number: int, doc_id: str, error: str) -> None:
        """Say which and why."""
        super().quarantined(number, doc_id, error)
        self._write("quarantined", shard=number, doc_id=doc_id, error=error)

    def waiting_for_store(self, error: Exception, seconds: float) -> None:
        """Say why."""
        super().waiting_for_store(error, seconds)
        self._write("waiting_for_store", error=described(error), seconds=round(seconds, 3))

    def committed(self, shards: int) -> None:
        """Say how many."""
        super().committed(shards)
        self._write("committed", shards=shards)

    def lost_listener(self, name: str, error: Exception) -> None:
        """Say which and why."""
        self._write("lost_listener", listener=name, error=described(error))

    def stopping(self) -> None:
        """Say so."""
        super().stopping()
        self._write("stopping")

    def concluded(self, error: BaseException | None) -> None:
        """Say how it ended, and the totals."""
        self._write(
            "ended",
            how=_ending(error),
            error=None if error is None else described(error),
            shards=self.shards,
            done=self.done,
            documents=self.written_documents,
            tokens=self.written_tokens,
            bytes=self.size,
            failed_tries=self.failures,
            quarantined=self.quarantined_documents,
            lost_workers=self.lost_workers,
        )

    def _write(self, event: str, **fields: Any) -> None:
        elapsed = {"elapsed_s": round(self._clock() - self._first, 3)}
        values = {"time": now(), "event": event, "run": self._run, **elapsed, **fields}
        # Opened for each: events are few, and whoever moves the file away gets a new one.
        with self._path.open("ab") as file:
            file.write(json.dumps(values).encode() + b"\n")


def now() -> str:
    """The time by the wall clock, RFC 3339 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ending(error: BaseException | None) -> str:
    if error is None:
        return "done"
    if isinstance(error, BuildIncompleteError):
        return "incomplete"
    return "interrupted" if isinstance(error, BuildInterruptedError | KeyboardInterrupt) else "failed"
