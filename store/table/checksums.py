"""Checksums of the files of a store's tables in a local folder, because Lance keeps none.

Lance never changes a file that it has written, so a checksum that was recorded once stays right. Files of the search
index have checksums of their own (``search/checksums.py``). docs/format.md describes the record.
"""

import os
import secrets
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from .addresses import TABLES, local_folder
from .datasets import find_table, fragments_of

RECORD_NAME = ".checksums"
"""Name of the record in the store's folder."""

DATA, DELETIONS, VERSIONS, TRANSACTIONS = "data", "_deletions", "_versions", "_transactions"

HINT = "latest_version_hint.json"
"""Name of the only file that Lance changes. It saves Lance a look at the folder, and a wrong one does no harm."""

# Bytes of a file that are read at a time: they stay in the processor's cache.
_PIECE = 1 << 18
# Begins the last line, which has the checksum of the lines before.
_SEAL = b"# "


@dataclass(frozen=True)
class Checksums:
    """The recorded checksums of a store's files.

    Attributes:
        folder: the store's folder; None for an object store, whose files have no record.
        recorded: XXH3-128 in hexadecimal by the file's path in the store's folder.
        is_damaged: True if the record is damaged, so that nothing can be compared with it.
    """

    folder: Path | None
    recorded: Mapping[str, str] = field(default_factory=dict)
    is_damaged: bool = False

    def has(self, path: str) -> bool:
        """Return True if the checksum of a file was recorded."""
        return path in self.recorded

    def is_wrong(self, path: str) -> bool:
        """Return True if the bytes of a file are not those that were recorded. A missing file is not wrong.

        Raises:
            OSError: the file cannot be read.
        """
        if self.folder is None or path not in self.recorded:
            return False
        try:
            return _checksum(self.folder / path) != self.recorded[path]
        except FileNotFoundError:
            return False


def read_checksums(uri: str) -> Checksums:
    """Return the recorded checksums of a store; none if there is no record.

    Raises:
        OSError: the record cannot be read.
    """
    folder = local_folder(uri)
    if folder is None:
        return Checksums(None)
    try:
        content = (folder / RECORD_NAME).read_bytes()
    except FileNotFoundError:
        return Checksums(folder)
    begin = content.rfind(_SEAL)
    lines = content[: max(begin, 0)]
    if content[begin:] != _seal(lines):
        return Checksums(folder, is_damaged=True)
    pairs = (line.split("  ", 1) for line in lines.decode().splitlines())
    return Checksums(folder, {path: checksum for checksum, path in pairs})


def stored_files(uri: str) -> set[str]:
    """Return the paths, in a store's folder, of the files of its tables; none for an object store.

    Raises:
        OSError: a folder cannot be read.
    """
    folder = local_folder(uri)
    found: set[str] = set()
    for table in TABLES if folder is not None else ():
        for kind in (DATA, DELETIONS, VERSIONS, TRANSACTIONS):
            inner = f"{table}.lance/{kind}"
            with suppress(FileNotFoundError), os.scandir(f"{folder}/{inner}") as entries:
                found.update(f"{inner}/{each.name}" for each in entries if each.is_file() and _is_whole(each.name))
    return found


def record_checksums(
    uri: str, *, data: Collection[str] | None = None, before: Collection[str] = (), changed: Collection[str] = ()
) -> int:
    """Record the checksums of files that have none yet, and forget the files that are gone. The caller holds the lock.

    Of the data files, only those of the latest versions are recorded: a worker may still be writing another one. A
    damaged record stays as it is, because making it anew would hide damage.

    Args:
        uri: resolved address of the store. Nothing is done in an object store.
        data: paths of the data files to record; None for all.
        before: paths of data files not to record, because reading them could take long.
        changed: paths of files to record once more.

    Returns:
        Number of files whose checksums were recorded.

    Raises:
        OSError: a file cannot be read, or the record cannot be written.
        StoreError: a table cannot be opened.
    """
    present, checksums = stored_files(uri), read_checksums(uri)
    if checksums.folder is None or checksums.is_damaged:
        return 0
    kept = {path: each for path, each in checksums.recorded.items() if path in present and path not in changed}
    new = {path for path in present - kept.keys() if not is_data(path)}
    if data is None:
        data = (_data_files(uri) & present) - kept.keys() - set(before)
    added = {path: _checksum(checksums.folder / path) for path in sorted(new | (set(data) - kept.keys()))}
    if added or len(kept) < len(checksums.recorded):
        _write(checksums.folder, kept | added)
    return len(added)


def is_data(path: str) -> bool:
    """Return True if a path of ``stored_files`` is that of a data file."""
    return path.split("/")[1] == DATA


def forget_checksums(uri: str) -> None:
    """Delete the record of a store, to make it anew.

    Raises:
        OSError: it cannot be deleted.
    """
    folder = local_folder(uri)
    if folder is not None:
        (folder / RECORD_NAME).unlink(missing_ok=True)


def version_of(manifest: str) -> int:
    """Return the number of the version that a manifest describes, by the name of its file; -1 for another file."""
    stem = manifest.rpartition("/")[2].removesuffix(".manifest")
    if not stem.isdecimal():
        return -1
    # Newer names count down from the largest number of 64 bits, so that the newest version is listed first.
    return (1 << 64) - 1 - int(stem) if len(stem) == 20 else int(stem)


def _data_files(uri: str) -> set[str]:
    """Return the paths of the data files of the latest versions."""
    return {
        f"{table}.lance/{DATA}/{file.path}"
        for table in TABLES
        if (dataset := find_table(uri, table)) is not None
        for fragment in fragments_of(dataset)
        for file in fragment.files
    }


def _is_whole(name: str) -> bool:
    """Return False for the file that Lance changes, and for a file that it is writing."""
    return name != HINT and "#" not in name


def _write(folder: Path, checksums: Mapping[str, str]) -> None:
    """Write a record, which appears as a whole or not at all."""
    lines = "".join(f"{checksums[path]}  {path}\n" for path in sorted(checksums)).encode()
    draft = folder / f"{RECORD_NAME}.{secrets.token_hex(8)}"
    try:
        with draft.open("xb") as file:
            file.write(lines + _seal(lines))
        draft.replace(folder / RECORD_NAME)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _seal(lines: bytes) -> bytes:
    return _SEAL + xxhash.xxh3_128_hexdigest(lines).encode() + b"\n"


def _checksum(path: Path) -> str:
    digest, piece = xxhash.xxh3_128(), memoryview(bytearray(_PIECE))
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(piece):
            digest.update(piece[:length])
    return digest.hexdigest()
