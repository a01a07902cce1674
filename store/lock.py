"""One build at a time for a store in a folder."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

from ..errors import StoreError, StoreLockedError
from .table.addresses import TABLES, local_folder, resolve_uri, table_uri

LOCK_NAME = ".build.lock"
HOLDER_NAME = ".build.holder"

# Whoever looks who holds the lock shares it for some microseconds, which must not keep a build out.
GRACE_S = 0.5


@dataclass(frozen=True)
class Holder:
    """Who is writing a local store: a build, or another command that changes it.

    Attributes:
        pid: of the process; None right after it took the lock.
        host: that it runs on.
        since: when it took the lock, RFC 3339 in UTC.
    """

    pid: int | None = None
    host: str | None = None
    since: str | None = None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}" if self.pid else "another process"


@contextmanager
def build_lock(uri: str | Path) -> Iterator[None]:
    """Hold the right to build the store at ``uri``; its folder is made if need be.

    The lock is the operating system's and ends with the process that holds it, however that dies, so none is ever
    stale. The lock file itself stays. In an object store there is no lock: two builds of one store waste each other's
    work, but each commit is a compare-and-swap, so every shard is still stored exactly once.

    Raises:
        StoreLockedError: another build holds it; names the process, host and time.
        StoreError: the folder cannot be made.
    """
    folder = local_folder(resolve_uri(uri))
    if folder is None:
        yield
        return
    _require_own_folders(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the store's folder {folder}: {error}.") from error
    # The holder is described in a file of its own, since some versions of filelock empty the lock file.
    holder = folder / HOLDER_NAME
    try:
        lock = FileLock(folder / LOCK_NAME).acquire(timeout=GRACE_S)
    except OSError as error:
        if not isinstance(error, Timeout):
            raise StoreError(f"cannot lock the store at {folder}: {error.strerror}. Is it writable?") from error
        raise StoreLockedError(f"the store at {folder} is being built by {_described(holder)}.") from None
    with lock:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        # It only words a message: a disk that is full must not keep a build from looking at its store.
        with suppress(OSError):
            # Somebody else's store may have a link there, and what it leads to is not to be written over.
            holder.unlink(missing_ok=True)
            with holder.open("x") as file:
                json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, file)
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


def _require_own_folders(folder: Path) -> None:
    """Check that a store's tables lie in its folder: who has the lock writes into them, and deletes what is there.

    Raises:
        StoreError: a link leads out of it.
    """
    for table in TABLES:
        place = Path(table_uri(str(folder), table))
        inner = list(place.iterdir()) if place.is_dir() else []
        if linked := [path for path in (place, *inner) if path.is_symlink()]:
            raise StoreError(
                f"{linked[0]} is a link, through which files outside of the store would be written and deleted. Put "
                "the folder itself there; to keep a store on another disk, link the whole of it."
            )


def lock_holder(uri: str | Path) -> Holder | None:
    """Who holds the lock of the store at ``uri``, or None if nobody does; always None in an object store.

    It takes the lock from nobody: it asks for a shared one, which it gives back at once if it is there to be had.
    """
    folder = local_folder(resolve_uri(uri))
    if folder is None:
        return None
    holder = folder / HOLDER_NAME
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except OSError as error:
        # It may be somebody else's, who alone can read it.
        return _described(holder) if isinstance(error, PermissionError) and holder.exists() else None
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _described(holder)
    except OSError:
        # The file system knows no locks; then what is written there is all there is to know.
        return _described(holder) if holder.exists() else None
    finally:
        os.close(descriptor)
    return None if fcntl is not None or not holder.exists() else _described(holder)


def _described(holder: Path) -> Holder:
    try:
        found = json.loads(holder.read_text())
        return Holder(int(found["pid"]), str(found["host"]), str(found["since"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        # It is taking the lock, or letting go of it, right now.
        return Holder()
