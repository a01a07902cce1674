"""Lance's errors as errors of this package, and what they say about their cause."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import StoreError, StoreUnreachableError

# What Lance raises for a failed read or write: I/O and conflicts, missing tables and bad arguments, the rest.
LANCE_FAILURES = (OSError, ValueError, RuntimeError)

_lance_process: int | None = None

# Of a local file too it says "Generic … error", where the disk cannot read it.
_NOT_OF_THE_FILE = re.compile(
    r"Generic (?!LocalFileSystem)\S+ error: |lacked the necessary privileges|lacked valid authentication credentials"
)


def is_disk_full(error: BaseException) -> bool:
    """Whether Lance failed for lack of space; it gives the system's message but not its errno."""
    return "No space left on device" in str(error)


def is_object_store(error: BaseException) -> bool:
    """Whether the client of an object store gave up or was refused; Lance says so in words only."""
    return _NOT_OF_THE_FILE.search(str(error)) is not None


# An object store that answers "no", and a disk or network folder that is away.
_REFUSED = re.compile(
    "lacked the necessary privileges|lacked valid authentication credentials|NoSuchBucket|"
    r"status(?: code)?:? 4(?!08|29)\d\d"
)

_AWAY = re.compile(
    "Stale file handle|Input/output error|Transport endpoint is not connected|Connection timed out|Host is down"
)


def is_unreachable(error: BaseException) -> bool:
    """Whether a store could not be reached, for a reason that may pass by waiting."""
    if is_object_store(error):
        return _REFUSED.search(str(error)) is None
    return _AWAY.search(str(error)) is not None


def is_not_of_the_file(error: BaseException) -> bool:
    """Whether a file could not be read for a reason that lies elsewhere and may pass."""
    return is_object_store(error) or re.search("Too many open files|Permission denied", str(error)) is not None


def is_version_gone(error: BaseException) -> bool:
    """Whether Lance missed a data or deletion file, as it does in a version that was dropped."""
    return "Not found: " in str(error) and ("/data/" in str(error) or "/_deletions/" in str(error))


@contextmanager
def lance_errors(action: str) -> Iterator[None]:
    """Turn what Lance raises into a StoreError that begins with ``action``.

    Raises:
        StoreError: Lance failed, or panicked over bytes that it did not expect.
    """
    try:
        yield
    except LANCE_FAILURES as error:
        if is_disk_full(error):
            raise StoreError(
                f"{action}: the disk is full. What was committed before is intact; free some space "
                f"and run again. ({error})"
            ) from error
        if is_version_gone(error):
            raise StoreError(
                f"{action}: a file of the version that is open is gone. If the store was compacted meanwhile, open it "
                f"again. ({error})"
            ) from error
        failure = StoreUnreachableError if is_unreachable(error) else StoreError
        if is_object_store(error):
            raise failure(
                f"{action}: the object store does not answer, or refuses. Check the address, the network, and the "
                f"credentials, region and endpoint in the environment (docs/object-stores.md). ({error})"
            ) from error
        raise failure(f"{action}: {error}") from error
    except BaseException as error:
        # A panic in Rust is no Exception, and its class has no module to import it from.
        if type(error).__name__ != "PanicException":
            raise
        raise StoreError(f"{action}: Lance broke off, perhaps because a file is damaged. ({error})") from error


def check_process() -> None:
    """Refuse to use Lance in a process forked from one that used it.

    Lance keeps threads that a fork does not copy, and a child that reads crashes now and then.

    Raises:
        StoreError: this process is such a child.
    """
    global _lance_process
    process = os.getpid()
    if _lance_process is None:
        _lance_process = process
    if _lance_process != process:
        raise StoreError(
            f"process {process} was forked from process {_lance_process}, which has used a store, and Lance does "
            "not survive a fork. Start workers with the 'spawn' or 'forkserver' method: a store can be pickled."
        )
