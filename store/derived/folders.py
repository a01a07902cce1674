"""The folders that hold caches of a store: a hidden one in the store, or else one in the user's cache."""

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_path

from ..table.addresses import local_folder

CACHE_FOLDER = ".pisco-index"
"""Name of the hidden folder for caches in a store."""

_TEMPORARY = ".tmp"
# Age of a temporary file whose process must have died: writing a cache takes seconds.
_ABANDONED_S = 3600


def cache_folders(uri: str) -> Iterator[Path]:
    """Yield the folders that may hold caches of a store, the preferred one first.

    Args:
        uri: resolved address of the store.
    """
    store = local_folder(uri)
    # In a store from somebody else, a link could make this package write and delete files in any folder.
    if store is not None and not (store / CACHE_FOLDER).is_symlink():
        yield store / CACHE_FOLDER
    # A user whom the system does not know, as in many containers, may have no home folder.
    with suppress(RuntimeError):
        yield user_cache_path("pisco-index") / hashlib.blake2b(uri.encode(), digest_size=16).hexdigest()


def writable_folders(uri: str) -> Iterator[Path]:
    """Yield the folders of ``cache_folders``, each made if it is missing, as far as that is possible."""
    store = local_folder(uri)
    for folder in cache_folders(uri):
        if store is not None and not store.is_dir():
            continue  # The store was deleted, and mkdir would bring its folder back.
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            yield folder


def open_file(path: str, flags: int) -> FileIO:
    """Open a file of a cache, without buffers and without following a link, as a store from somebody else may have.

    Args:
        path: path of the file.
        flags: flags of the operating system's ``open``.

    Raises:
        OSError: there is no such file, or it cannot be opened.
    """
    mode = "rb" if flags == os.O_RDONLY else "ab+"
    return FileIO(os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666), mode)


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> bool:
    """Let a function write a file, which appears as a whole or not at all; return False if the disk fails.

    Errors of the function other than OSError are raised. The file does not appear then.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            write(file)
        temporary.replace(path)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def delete_abandoned(folder: Path) -> None:
    """Delete temporary files of processes that died."""
    with suppress(OSError):
        limit = time.time() - _ABANDONED_S
        for path in folder.glob(f"*{_TEMPORARY}"):
            with suppress(OSError):  # Another process was faster.
                if path.stat().st_mtime < limit:
                    path.unlink()
