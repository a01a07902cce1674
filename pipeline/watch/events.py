"""The event log of a build: one JSON object per line, for programs. docs/watching.md describes it."""

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
from ...errors import BuildIncompleteError, BuildInterruptedError, ConfigError, error_summary
from ...places import local_path
from ...store import Prediction
from .progress import WorkerState
from .tally import Tally

PROGRESS_SECONDS = 60.0


class EventLog(Tally):
    """Appends the events of a build to a file as they happen.

    A resumed build may append to the same file; ``run`` identifies the run. A line that is not JSON belongs to a run
    that was killed while it wrote the line.

    Args:
        path: the file; created if it does not exist.
        clock: monotonic clock, in seconds, for durations.

    Raises:
        ConfigError: the file cannot be opened for writing.
    """

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._run = secrets.token_hex(8)
        self._first = self._last_progress = clock()
        self._known: set[str] = set()
        self._path = local_path(path, ConfigError)
        try:
            with self._path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
        except OSError as error:
            raise ConfigError(f"the events cannot be written to {path}: {error.strerror}. Name another file.") from None

    def began(self, uri: str, config: BuildConfig) -> None:
        """Log what is built, where and by which process."""
        digest = hashlib.blake2b(config.model_dump_json().encode(), digest_size=16).hexdigest()
        place = {"host": socket.gethostname(), "pid": os.getpid()}
        self._write("began", uri=uri, version=version("pisco-index"), config=digest, **place)

    def planning(self, files: int) -> None:
        """Log the start of planning."""
        self._write("planning", files=files)

    def loading(self, device: str, compiled: bool | None) -> None:
        """Log that workers load the compressor."""
        self._write("loading", device=device, compiled=compiled)

    def calibrating(self, codec: str) -> None:
        """Log that the codec is being calibrated."""
        self._write("calibrating", codec=codec)

    def calibrated(self, prediction: Prediction) -> None:
        """Log the codec's predicted size and loss."""
        error_db = None if prediction.error_db is None else round(prediction.error_db, 3)
        self._write(
            "calibrated",
            codec=prediction.codec,
            bits_per_value=round(prediction.bits_per_value, 3),
            error_db=error_db,
            fitted_to_decoder=prediction.fitted_to_decoder,
            kl=prediction.kl,
            kl_worst=prediction.kl_worst,
        )

    def indexing(self, action: str, done: int, total: int) -> None:
        """Log the start of work on the search index."""
        if not done:
            self._write("indexing", action=action, documents=total)

    def started(self, shards: int, done: int, characters: Mapping[int, int], where: str) -> None:
        """Log the size of the plan."""
        super().started(shards, done, characters, where)
        self._last_progress = self._clock()
        self._write("started", shards=shards, done=done, characters=sum(characters.values()), where=where)

    def finished_shard(self, number: int, documents: int, tokens: int, size: int) -> None:
        """Log a written shard."""
        super().finished_shard(number, documents, tokens, size)
        self._write("finished_shard", shard=number, documents=documents, tokens=tokens, bytes=size)

    def failed_shard(self, number: int, error: Exception, attempt: int, final: bool) -> None:
        """Log a failed attempt and its error."""
        super().failed_shard(number, error, attempt, final)
        self._write("failed_shard", shard=number, error=error_summary(error), attempt=attempt, final=final)

    def workers(self, states: Sequence[WorkerState]) -> None:
        """Log workers that became ready, and once a minute the progress."""
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
        """Log a lost worker and the reason."""
        super().lost_worker(name, reason)
        self._known.discard(name)
        self._write("lost_worker", worker=name, reason=reason)

    def alone(self, number: int) -> None:
        """Log that a shard is isolated."""
        self._write("alone", shard=number)

    def quarantined(self, number: int, doc_id: str, error: str) -> None:
        """Log a quarantined document and its error."""
        super().quarantined(number, doc_id, error)
        self._write("quarantined", shard=number, doc_id=doc_id, error=error)

    def waiting_for_store(self, error: Exception, seconds: float) -> None:
        """Log why the store cannot be reached."""
        super().waiting_for_store(error, seconds)
        self._write("waiting_for_store", error=error_summary(error), seconds=round(seconds, 3))

    def committed(self, shards: int) -> None:
        """Log the number of committed shards."""
        super().committed(shards)
        self._write("committed", shards=shards)

    def lost_listener(self, name: str, error: Exception) -> None:
        """Log a listener that failed."""
        self._write("lost_listener", listener=name, error=error_summary(error))

    def stopping(self, error: Exception | None = None) -> None:
        """Log that the build is stopping."""
        super().stopping(error)
        self._write("stopping", reason=None if error is None else error_summary(error))

    def concluded(self, error: BaseException | None) -> None:
        """Log how the build ended, and the totals."""
        self._write(
            "ended",
            how=_ending(error),
            error=None if error is None else error_summary(error),
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
        # Opened for each event: events are few, and log rotation may move the file away.
        with self._path.open("ab") as file:
            file.write(json.dumps(values).encode() + b"\n")


def now() -> str:
    """Return the current time, RFC 3339 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ending(error: BaseException | None) -> str:
    if error is None:
        return "done"
    if isinstance(error, BuildIncompleteError):
        return "incomplete"
    return "interrupted" if isinstance(error, BuildInterruptedError | KeyboardInterrupt) else "failed"
