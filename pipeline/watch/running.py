"""How a build is going, asked from elsewhere: of the store, and where it is local, of what the build leaves there."""

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
from .events import now
from .progress import WorkerState
from .tally import Tally
from .totals import current_plan

_T = TypeVar("_T")

STATUS_NAME = ".build.status"
STATUS_SECONDS = 3.0

# What a build wrote longer ago says nothing of now: it hangs, or waits for its disk.
FRESH_S = 60.0


@dataclass(frozen=True)
class DriverStatus:
    """What a running build says of itself in the folder of its store.

    Attributes:
        time: when it said so, RFC 3339 in UTC.
        pid: of its process, the lock's holder.
        began: when its workers began, RFC 3339 in UTC.
        where: they run.
        stopping: whether a signal came, so that only what is in hand is finished.
        documents: compressed in this run.
        tokens: compressed in this run.
        tokens_per_s: of late, all workers together.
        failed_tries: of shards.
        remaining_s: seconds left; None before there is a speed.
        workers: what each does.
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
        """What a build said last in the folder of its store; None if there is nothing, or nothing that can be read."""
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            values = json.loads((folder / STATUS_NAME).read_text("utf-8"))
            workers = tuple(_of(WorkerState, each) for each in values["workers"])
            return _of(cls, {**values, "workers": workers})
        return None

    @property
    def age_s(self) -> float:
        """Seconds since it was said, by this machine's clock."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.time)).total_seconds()


def _of(kind: type[_T], values: Mapping[str, Any]) -> _T:
    """An object of the values that its class knows; a later version may write more."""
    return kind(**{each.name: values[each.name] for each in fields(cast(Any, kind)) if each.name in values})


class StatusFile(Tally):
    """Keeps ``.build.status`` in the folder of a local store while workers are at work, for whoever asks.

    The file is replaced, never written to, so that nobody reads half of it. It counts only while the store's lock is
    held by the process that it names.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._folder: Path | None = None
        self._where = self._since = ""
        self._written_at: float | None = None
        self._is_stopping = False

    def began(self, uri: str, config: BuildConfig) -> None:  # noqa: ARG002
        """Take note of the folder."""
        self._folder = local_folder(uri)

    def started(self, shards: int, done: int, characters: Mapping[int, int], where: str) -> None:
        """Begin to write: from here on the lock is held."""
        super().started(shards, done, characters, where)
        self._where, self._since = where, now()
        self._write()

    def workers(self, states: Sequence[WorkerState]) -> None:
        """Write what they do, every few seconds."""
        super().workers(states)
        if self._written_at is not None and self._clock() - self._written_at >= STATUS_SECONDS:
            self._write()

    def stopping(self) -> None:
        """Write that nothing new is begun."""
        super().stopping()
        self._is_stopping = True
        self._write()

    def ended(self) -> None:
        """Take the file away."""
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
        # Somebody else's store may have a link there, and what it leads to is not to be written over.
        new.unlink(missing_ok=True)
        with new.open("x", encoding="utf-8") as file:
            json.dump(asdict(status), file)
        new.replace(self._folder / STATUS_NAME)


@dataclass(frozen=True)
class RunStatus:
    """How the build of a store is going.

    Attributes:
        uri: of the store.
        shards: of the plan in force.
        missing: of them, not done yet.
        records: of the plan.
        documents: in the store, failed ones included.
        failed_documents: rows that have an error and no memory.
        rejected_records: records of the corpus that gave no document.
        last_commit: when the store was last committed to, RFC 3339 in UTC.
        documents_per_s: over the last commits that came one soon after the other; None where there are too few.
        remaining_s: seconds until all shards are done: as the build itself says, else by the last commits; 0 when all
            are; None where it cannot be told, and where no build is running.
        running: whether a process holds the store's lock; None in an object store, which has none.
        holder: who does.
        driver: what the running build says of itself; None in an object store, and before its workers began.
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

    @property
    def is_complete(self) -> bool:
        """Whether every shard is done."""
        return not self.missing

    def to_dict(self) -> dict[str, Any]:
        """All of it as values that JSON knows."""
        return asdict(self) | {"complete": self.is_complete}


def run_status(uri: str | Path) -> RunStatus:
    """How the build of a store is going, from any machine that reaches the store, while it runs or afterwards.

    It only reads, and keeps no build from starting.

    Raises:
        StoreError: if there is no store, as before a first build has planned, or it cannot be read.
    """
    store = Store.open(uri)
    folder = local_folder(store.uri)
    holder = lock_holder(store.uri)
    driver = DriverStatus.read(folder) if folder is not None and holder is not None else None
    if driver is not None and holder is not None and driver.pid != holder.pid:
        # Left by a build that was killed.
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
    )
