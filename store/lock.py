"""One build at a time for a store in a folder."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import StoreError, StoreLockedError
from .tables import TABLES, local_folder, resolve_uri, table_uri

LOCK_NAME = ".build.lock"
HOLDER_NAME = ".build.holder"


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
        lock = FileLock(folder / LOCK_NAME).acquire(blocking=False)
    except OSError as error:
        if not isinstance(error, Timeout):
            raise StoreError(f"cannot lock the store at {folder}: {error.strerror}. Is it writable?") from error
        raise StoreLockedError(f"the store at {folder} is being built by {_describe(holder)}.") from None
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


def _describe(holder: Path) -> str:
    try:
        found = json.loads(holder.read_text())
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        # It is taking the lock, or letting go of it, right now.
        return "another process"
