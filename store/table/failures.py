"""Turn Lance's errors into errors of this package, and tell their causes apart."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import MachineError, StoreError, StoreUnreachableError

# Lance raises OSError for I/O and conflicts, ValueError for missing tables and bad arguments, otherwise RuntimeError.
LANCE_FAILURES = (OSError, ValueError, RuntimeError)

# Lance passes causes on only as text, so they are recognised by the words of the operating system and of its clients.
_NO_ACCESS = "lacked the necessary privileges|lacked valid authentication credentials"
# A disk that cannot read a local file is a "Generic LocalFileSystem error". Small files of an index that are cut short
# are a "Generic memory error", because Lance holds them in memory.
_OBJECT_STORE = re.compile(rf"Generic (?!LocalFileSystem|memory)\S+ error: |{_NO_ACCESS}")
# Answers with a status of 4xx are final, except 408 (timeout) and 429 (too many requests).
_REFUSED = re.compile(rf"{_NO_ACCESS}|NoSuchBucket|status(?: code)?:? 4(?!08|29)\d\d")
_DISK_AWAY = re.compile(
    "Stale file handle|Input/output error|Transport endpoint is not connected|Connection timed out|Host is down"
)
_PROCESS_LIMITS = re.compile("Too many open files|Permission denied")

# Message for each thing that a machine may lack, by the words of the operating system.
_LACKS = {
    "No space left on device": ("the disk is full", "Free some space"),
    "Disk quota exceeded": ("the disk quota is used up", "Free some space"),
    "Read-only file system": ("the file system is read-only", "Mount it for writing"),
    "Too many open files": ("this process has too many open files", "Raise its limit (ulimit -n)"),
}

_lance_process: int | None = None


def lacking(error: BaseException) -> tuple[str, str] | None:
    """Return what the machine lacks, so that Lance failed, and what to do about it; None for other failures."""
    return next((found for words, found in _LACKS.items() if words in str(error)), None)


def is_from_object_store(error: BaseException) -> bool:
    """Return True if the client of an object store gave up or was refused."""
    return _OBJECT_STORE.search(str(error)) is not None


def is_unreachable(error: BaseException) -> bool:
    """Return True if a store could not be reached, for a reason that may pass."""
    if is_from_object_store(error):
        return _REFUSED.search(str(error)) is None
    return _DISK_AWAY.search(str(error)) is not None


def is_caused_elsewhere(error: BaseException) -> bool:
    """Return True if a file could not be read for a reason outside the file, so that nothing is known of the file."""
    return is_from_object_store(error) or _PROCESS_LIMITS.search(str(error)) is not None


def is_version_gone(error: BaseException) -> bool:
    """Return True if a file of data, deletions or an index was missing, as it is in a version that was dropped."""
    message = str(error)
    is_missing = isinstance(error, FileNotFoundError) or "Not found: " in message
    return is_missing and any(f"/{each}/" in message for each in ("data", "_deletions", "_indices"))


@contextmanager
def lance_errors(action: str) -> Iterator[None]:
    """Raise Lance's errors as a StoreError whose message begins with ``action``, for example "cannot open …".

    Raises:
        StoreError: Lance failed, or panicked over unexpected bytes.
        MachineError: a disk is full, or the machine lacks something else.
        StoreUnreachableError: the store could not be reached, for a reason that may pass.
    """
    try:
        yield
    except LANCE_FAILURES as error:
        if (found := lacking(error)) is not None:
            what, remedy = found
            raise MachineError(
                f"{action}: {what}. Everything that was committed before is intact. {remedy} and run the same command "
                f"again. ({error})"
            ) from error
        if is_version_gone(error):
            raise StoreError(
                f"{action}: a file of the open version is gone. If the store was compacted after it was opened, open "
                f"it again. ({error})"
            ) from error
        failure = StoreUnreachableError if is_unreachable(error) else StoreError
        if is_from_object_store(error):
            raise failure(
                f"{action}: the object store does not answer, or refuses. Check the address, the network, and the "
                f"credentials, region and endpoint in the environment (docs/object-stores.md). ({error})"
            ) from error
        raise failure(f"{action}: {error}") from error
    except BaseException as error:
        # A panic in Rust is not an Exception, and its class cannot be imported from any module.
        if type(error).__name__ != "PanicException":
            raise
        raise StoreError(f"{action}: Lance panicked, perhaps because a file is damaged. ({error})") from error


def check_process() -> None:
    """Check that this process was not forked from one that has used Lance.

    A fork does not copy Lance's threads, so a forked child that reads may crash.

    Raises:
        StoreError: the process was forked after Lance was used.
    """
    global _lance_process
    process = os.getpid()
    if _lance_process is None:
        _lance_process = process
    if _lance_process != process:
        raise StoreError(
            f"process {process} was forked from process {_lance_process}, which has used a store, and Lance does "
            "not survive a fork. Start workers with the method 'spawn' or 'forkserver', and pass the store to them: it "
            "can be pickled."
        )
