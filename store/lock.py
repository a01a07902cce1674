"""The lock of a local store: one process at a time may build or change it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from ..errors import StoreError, StoreLockedError
from .lookup.idcache import keep_map
from .table.addresses import TABLES, local_folder, resolve_uri, table_uri
from .table.checksums import record_checksums, stored_files

LOCK_NAME = ".build.lock"
HOLDER_NAME = ".build.holder"

# Longest time to wait for the lock. ``lock_holder`` shares it for some microseconds, which must not make a build fail.
GRACE_S = 0.5


@dataclass(frozen=True)
class Holder:
    """The process that is writing a local store: a build, or another command that changes it.

    Attributes:
        pid: id of the process; None just after it took the lock.
        host: name of the machine that it runs on.
        since: time at which it took the lock, RFC 3339 in UTC.
    """

    pid: int | None = None
    host: str | None = None
    since: str | None = None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}" if self.pid else "another process"


@contextmanager
def build_lock(uri: str | Path) -> Iterator[None]:
    """Hold the lock of a store; its folder is created if it does not exist, and removed if an error left it unused.

    At the end, record the checksums of new files. If no error came, also bring the id map in step for the next reader.

    The operating system releases the lock when its process ends, however that ends, so no lock is ever stale. The lock
    file of a store stays. An object store has no lock: two builds of one store waste each other's work there, but each
    commit is a compare-and-swap, so every shard is still stored exactly once.

    Raises:
        StoreLockedError: another process holds the lock; the message names it, its host and the time.
        StoreError: the folder cannot be created or locked.
    """
    folder = local_folder(resolve_uri(uri))
    if folder is None:
        yield
        return
    _require_own_folders(folder)
    is_new = not folder.exists()
    with _acquire(folder), _removed_if_unused(folder) if is_new else nullcontext():
        # The holder is described in a separate file, because some versions of filelock empty the lock file.
        holder = folder / HOLDER_NAME
        _describe_this_process(holder)
        before = stored_files(str(folder))
        try:
            yield
            keep_map(str(folder))
        finally:
            # A file without a checksum is named by `verify`. It must not make a build fail.
            with suppress(OSError, StoreError):
                record_checksums(str(folder), before=before)
            holder.unlink(missing_ok=True)


def lock_holder(uri: str | Path) -> Holder | None:
    """Return the holder of a store's lock; None if nobody holds it, and always None in an object store.

    To find out, this takes a shared lock and releases it at once, so it never keeps a build waiting for long.
    """
    folder = local_folder(resolve_uri(uri))
    if folder is None:
        return None
    holder = folder / HOLDER_NAME
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except OSError as error:
        # The lock file may belong to another user who alone may read it.
        return _read_holder(holder) if isinstance(error, PermissionError) and holder.exists() else None
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(holder)
    except OSError:
        # The file system has no locks, so the description is trusted.
        return _read_holder(holder) if holder.exists() else None
    finally:
        os.close(descriptor)
    return None if fcntl is not None or not holder.exists() else _read_holder(holder)


def _require_own_folders(folder: Path) -> None:
    """Check that a store's tables lie in its own folder: the holder of the lock writes and deletes files in them.

    Raises:
        StoreError: a link leads out of the folder.
    """
    for table in TABLES:
        place = Path(table_uri(str(folder), table))
        inner = list(place.iterdir()) if place.is_dir() else []
        if linked := [path for path in (place, *inner) if path.is_symlink()]:
            raise StoreError(
                f"{linked[0]} is a link, through which files outside of the store would be written and deleted. Put "
                "the folder itself there; to keep a store on another disk, link the whole of it."
            )


def _acquire(folder: Path) -> AbstractContextManager[object]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot create the store's folder {folder}: {error}.") from error
    try:
        return FileLock(folder / LOCK_NAME).acquire(timeout=GRACE_S)
    except FileNotFoundError:
        # The process that held the lock has removed the folder, which it had made.
        return _acquire(folder)
    except Timeout:
        holder = _read_holder(folder / HOLDER_NAME)
        raise StoreLockedError(
            f"the store at {folder} is being changed by {holder}. Wait for it, or stop it."
        ) from None
    except OSError as error:
        raise StoreError(f"cannot lock the store at {folder}: {error.strerror}. Is it writable?") from error


@contextmanager
def _removed_if_unused(folder: Path) -> Iterator[None]:
    """After an error or a signal, remove a folder that holds nothing but the lock: it would look like a store.

    The caller holds the lock. A process that waits for it notices that its file is gone, and makes the folder again.
    """
    try:
        yield
    except BaseException:
        with suppress(OSError):
            found = {path: path.is_dir() and not path.is_symlink() for path in folder.rglob("*")}
            if [path for path, is_folder in found.items() if not is_folder] == [folder / LOCK_NAME]:
                (folder / LOCK_NAME).unlink()
                for inner in sorted(path for path, is_folder in found.items() if is_folder)[::-1]:
                    inner.rmdir()
                folder.rmdir()
        raise


def _describe_this_process(holder: Path) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    # The description only improves a message, so a full disk must not stop a build from reading its store.
    with suppress(OSError):
        # A store from somebody else may have a link here, whose target must not be overwritten.
        holder.unlink(missing_ok=True)
        with holder.open("x") as file:
            json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, file)


def _read_holder(holder: Path) -> Holder:
    try:
        found = json.loads(holder.read_text())
        return Holder(int(found["pid"]), str(found["host"]), str(found["since"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        # The process is taking or releasing the lock right now, or somebody else wrote the file.
        return Holder()
