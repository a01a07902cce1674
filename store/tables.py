"""The store's Lance tables: where they lie, how they are opened and made, and how Lance's errors read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import lance
import pyarrow as pa

from ..errors import StoreError
from .schema import DATA_STORAGE_VERSION

MEMORY = "memory"
REJECTED = "rejected"
ASSETS = "assets"
TABLES = (MEMORY, REJECTED, ASSETS)

# What Lance raises for a failed read or write: I/O and conflicts, missing tables and bad arguments, the rest.
LANCE_FAILURES = (OSError, ValueError, RuntimeError)

_lance_process: int | None = None


def resolve_uri(uri: str | Path) -> str:
    """The form in which the store keeps an address: an absolute local path, or an object-store URI.

    Object stores (``s3://``, ``gs://``, …) take their credentials and options from the environment.
    """
    text = str(uri)
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    if "://" in text:
        return text.rstrip("/")
    return str(Path(text).expanduser().absolute())


def local_folder(uri: str) -> Path | None:
    """The folder of a resolved address, or None in an object store."""
    return None if "://" in uri else Path(uri)


def table_uri(uri: str, table: str) -> str:
    """The address of one table: where ``lancedb.connect(uri)`` looks for it too."""
    return f"{uri}/{table}.lance"


def data_file_uri(uri: str, table: str, name: str) -> str:
    """The address of one data file of a table."""
    return f"{table_uri(uri, table)}/data/{name}"


def open_table(uri: str, table: str, version: int | None = None) -> lance.LanceDataset:
    """Open a table at a version, the latest by default.

    Raises:
        StoreError: there is no such table or version, or it cannot be read.
    """
    check_process()
    with lance_errors(f"cannot open table {table!r} of the store at {uri}"):
        return lance.dataset(table_uri(uri, table), version=version)


def table_exists(uri: str, table: str) -> bool:
    """Whether a table has been created, that is, has a first version.

    Raises:
        StoreError: it is there but cannot be read.
    """
    check_process()
    folder = local_folder(uri)
    if folder is not None and not folder.is_dir():
        return False
    with lance_errors(f"cannot open table {table!r} of the store at {uri}"):
        try:
            lance.dataset(table_uri(uri, table))
        except ValueError as error:
            if "not found" not in str(error):
                raise
            return False
        return True


def create_table(uri: str, table: str, rows: pa.Table) -> None:
    """Create a table with its first rows, in one atomic commit.

    Raises:
        StoreError: the table exists, or cannot be written.
    """
    check_process()
    with lance_errors(f"cannot create table {table!r} of the store at {uri}"):
        lance.write_dataset(rows, table_uri(uri, table), mode="create", data_storage_version=DATA_STORAGE_VERSION)


def is_disk_full(error: BaseException) -> bool:
    """Whether Lance failed for lack of space; it gives the system's message but not its errno."""
    return "No space left on device" in str(error)


@contextmanager
def lance_errors(action: str) -> Iterator[None]:
    """Turn what Lance raises into a StoreError that begins with ``action``.

    Raises:
        StoreError: Lance failed.
    """
    try:
        yield
    except LANCE_FAILURES as error:
        if is_disk_full(error):
            raise StoreError(
                f"{action}: the disk is full. What was committed before is intact; free some space "
                f"and run again. ({error})"
            ) from error
        raise StoreError(f"{action}: {error}") from error


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
