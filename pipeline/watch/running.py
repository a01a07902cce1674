"""The progress of a build as seen from elsewhere: from its store and, for a local one, from the status file in it."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from ...configs import BuildConfig
from ...store import Holder, Store, count_failures, done_shards, last_commits, local_folder, lock_holder
from ..planning.plan import Changes
from ..planning.stored import current_plan
from .events import now
from .progress import WorkerState
from .tally import Tally

_T = TypeVar("_T")

STATUS_NAME = ".build.status"
STATUS_SECONDS = 3.0

# Age in seconds above which a status file is ignored: its build hangs, or waits for its disk.
FRESH_S = 60.0


@dataclass(frozen=True)
class DriverStatus:
    """Status that a running build writes into the folder of its store.

    Attributes:
        time: time of writing, RFC 3339 in UTC.
        pid: process id of the build, which holds the lock.
        began: start of its workers, RFC 3339 in UTC.
        where: description of its pool.
        stopping: True after a signal: only assigned shards are finished.
        documents: number of documents compressed in this run.
        tokens: number of tokens compressed in this run.
        tokens_per_s: recent tokens per second of all workers together.
        failed_tries: number of failed attempts at shards.
        remaining_s: seconds left; None while the speed is unknown.
        workers: state of each worker.
    """

    time: str
    pid: int
    began: str
    where: str
    stopping: bool
    documents: int
    tokens: int
    tokens_per_s: float
    failed_tries: int
    remaining_s: float | None
    workers: tuple[WorkerState, ...]

    @classmethod
    def read(cls, folder: Path) -> "DriverStatus | None":
        """Return the last status in a store's folder; None if there is none that can be read."""
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            values = json.loads((folder / STATUS_NAME).read_text("utf-8"))
            workers = tuple(_of(WorkerState, each) for each in values["workers"])
            return _of(cls, {**values, "workers": workers})
        return None

    @property
    def age_s(self) -> float:
        """Seconds since the status was written, by this machine's clock."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.time)).total_seconds()


def _of(kind: type[_T], values: Mapping[str, Any]) -> _T:
    """Return an object of the values that its class knows; later versions may write more."""
    return kind(**{each.name: values[each.name] for each in fields(cast(Any, kind)) if each.name in values})


class StatusFile(Tally):
    """Keeps ``.build.status`` in the folder of a local store while workers run.

    The file is replaced, never written in place, so that no reader sees half of it. It is valid only while the process
    that it names holds the store's lock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._folder: Path | None = None
        self._where = self._since = ""
        self._written_at: float | None = None
        self._is_stopping = False

    def began(self, uri: str, config: BuildConfig) -> None:  # noqa: ARG002
        """Remember the store's folder."""
        self._folder = local_folder(uri)

    def started(self, shards: int, done: int, characters: Mapping[int, int], where: str) -> None:
        """Start writing: from now on the lock is held."""
        super().started(shards, done, characters, where)
        self._where, self._since = where, now()
        self._write()

    def workers(self, states: Sequence[WorkerState]) -> None:
        """Write the workers' states every few seconds."""
        super().workers(states)
        if self._written_at is not None and self._clock() - self._written_at >= STATUS_SECONDS:
            self._write()

    def stopping(self, error: Exception | None = None) -> None:
        """Write that the build is stopping."""
        super().stopping(error)
        self._is_stopping = True
        self._write()

    def ended(self) -> None:
        """Delete the file."""
        if self._folder is not None and self._written_at is not None:
            (self._folder / STATUS_NAME).unlink(missing_ok=True)

    def _write(self) -> None:
        if self._folder is None:
            return
        self._written_at = self._clock()
        status = DriverStatus(
            time=now(),
            pid=os.getpid(),
            began=self._since,
            where=self._where,
            stopping=self._is_stopping,
            documents=self.pace.documents,
            tokens=self.pace.tokens,
            tokens_per_s=round(self.tokens_per_s, 1),
            failed_tries=self.failures,
            remaining_s=self.pace.remaining_s,
            workers=self.states,
        )
        new = self._folder / f"{STATUS_NAME}.new"
        # Another person's store may have a link there, whose target must not be overwritten.
        new.unlink(missing_ok=True)
        with new.open("x", encoding="utf-8") as file:
            json.dump(asdict(status), file)
        new.replace(self._folder / STATUS_NAME)


@dataclass(frozen=True)
class RunStatus:
    """Progress of a store's build.

    Attributes:
        uri: address of the store.
        shards: number of shards of the plan in force.
        missing: number of those that are not done yet.
        records: number of records in the plan.
        documents: number of documents in the store, failed ones included.
        failed_documents: number of rows with an error in place of memory.
        rejected_records: number of records of the corpus that gave no document.
        last_commit: time of the last commit, RFC 3339 in UTC.
        documents_per_s: documents per second over the last commits in quick succession; None if there are too few.
        remaining_s: seconds until all shards are done, from the running build or else from the last commits; 0 when
            all are done; None where it is unknown and where no build is running.
        running: True if a process holds the store's lock; None in an object store, which has no lock.
        holder: process that holds the lock.
        driver: status of the running build; None in an object store, and before its workers started.
        changes: changes that the plan makes, if it is an update's. One that deletes documents only has no shards.
    """

    uri: str
    shards: int
    missing: int
    records: int
    documents: int
    failed_documents: int
    rejected_records: int
    last_commit: str
    documents_per_s: float | None
    remaining_s: float | None
    running: bool | None
    holder: Holder | None = None
    driver: DriverStatus | None = None
    changes: Changes | None = None

    @property
    def is_complete(self) -> bool:
        """True if every shard is done."""
        return not self.missing

    def to_dict(self) -> dict[str, Any]:
        """Return the status as JSON-able values."""
        return asdict(self) | {"complete": self.is_complete}


def run_status(uri: str | Path) -> RunStatus:
    """Return the progress of a store's build, from any machine that reaches the store, while it runs or afterwards.

    This only reads, and never keeps a build from starting.

    Raises:
        StoreError: there is no store (a first build has not planned yet), or it cannot be read.
    """
    store = Store.open(uri)
    folder = local_folder(store.uri)
    holder = lock_holder(store.uri)
    driver = DriverStatus.read(folder) if folder is not None and holder is not None else None
    if driver is not None and holder is not None and driver.pid != holder.pid:
        # The file was left by a build that was killed.
        driver = None
    plan = current_plan(store)
    missing = plan.missing(done_shards(store))
    commits = last_commits(store)
    seconds = commits.seconds
    failed, rejected = count_failures(store)
    remaining: float | None = None
    if not missing:
        remaining = 0.0
    elif driver is not None and driver.age_s < FRESH_S:
        remaining = driver.remaining_s
    elif folder is None or holder is not None:
        done = sum(shard.characters for shard in plan.shards if shard.number in commits.shards)
        if done and seconds:
            since = (datetime.now(UTC) - commits.last).total_seconds()
            remaining = max(sum(shard.characters for shard in missing) * seconds / done - since, 0.0)
    return RunStatus(
        uri=store.uri,
        shards=len(plan.shards),
        missing=len(missing),
        records=plan.records,
        documents=store.count,
        failed_documents=failed,
        rejected_records=rejected,
        last_commit=commits.last.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        documents_per_s=commits.documents / seconds if commits.shards and seconds else None,
        remaining_s=remaining,
        running=None if folder is None else holder is not None,
        holder=holder,
        driver=driver,
        changes=plan.changes,
    )
