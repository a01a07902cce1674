"""Checksums of the files of a store's tables in a local folder, because Lance keeps none.

Lance never changes a file that it has written, so a checksum that was recorded once stays right. The record grows by
blocks at its end, so that a commit costs no more in a large store. Files of the search index have checksums of their
own (``search/checksums.py``). docs/format.md describes the record.
"""

import errno
import os
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from .addresses import MEMORY, TABLES, local_folder
from .datasets import find_table, fragments_of

RECORD_NAME = ".checksums"
"""Name of the record in the store's folder."""

DATA, DELETIONS, VERSIONS, TRANSACTIONS = "data", "_deletions", "_versions", "_transactions"

HINT = "latest_version_hint.json"
"""Name of the only file that Lance changes. It saves Lance a look at the folder, and a wrong one does no harm."""

# Bytes of a file that are read at a time: they stay in the processor's cache.
_PIECE = 1 << 18
# Last line of a block, with the checksum of the block's other lines.
_SEAL = re.compile(rb"^# ([0-9a-f]{32})\n", re.MULTILINE)
_SEAL_BYTES = 35
# Beginning of a block, which a crash leaves.
_TORN = re.compile(
    rb"(?:[0-9a-f]{32}  \S+\n)*(?:[0-9a-f]{0,32}|[0-9a-f]{32} {1,2}\S*|#|# [0-9a-f]{0,32})",
)


@dataclass(frozen=True)
class Checksums:
    """The recorded checksums of a store's files.

    Attributes:
        folder: the store's folder; None for an object store, whose files have no record.
        recorded: XXH3-128 in hexadecimal by the file's path in the store's folder.
        is_damaged: True if the record is damaged, so that nothing can be compared with it.
        is_torn: True if the record ends in the middle of a block, as after a crash. ``recorded`` lacks that block.
    """

    folder: Path | None
    recorded: Mapping[str, str] = field(default_factory=dict)
    is_damaged: bool = False
    is_torn: bool = False

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
    recorded: dict[str, str] = {}
    begin = 0
    for seal in _SEAL.finditer(content):
        lines = content[begin : seal.start()]
        if _seal(lines) != seal[0]:
            return Checksums(folder, is_damaged=True)
        pairs = (line.split("  ", 1) for line in lines.decode().splitlines())
        recorded.update({path: checksum for checksum, path in pairs})
        begin = seal.end()
    if not _TORN.fullmatch(content, begin):
        return Checksums(folder, is_damaged=True)
    return Checksums(folder, recorded, is_torn=begin < len(content) or not content)


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


def record_written(uri: str, paths: Iterable[str]) -> None:
    """Record the checksums of data files that were just written, at a cost that only depends on these.

    Args:
        uri: resolved address of the store. Nothing is done in an object store.
        paths: paths of the files in the store's folder. Missing ones are skipped.

    Raises:
        OSError: a file cannot be read, or the record cannot be written.
    """
    folder = local_folder(uri)
    if folder is None:
        return
    checksums = {}
    for path in sorted(paths):
        with suppress(FileNotFoundError):
            checksums[path] = _checksum(folder / path)
    _append(folder, checksums)


def record_checksums(uri: str, *, before: Collection[str] = (), changed: Collection[str] = ()) -> int:
    """Record the checksums of files that have none yet, and forget the files that are gone. The caller holds the lock.

    Of the data files, only those of the latest versions are recorded: a worker may still be writing another one. A
    damaged record stays as it is, because making it anew would hide damage.

    Args:
        uri: resolved address of the store. Nothing is done in an object store.
        before: paths of files whose memory is not to be recorded, because reading all of it could take long.
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
    long = {path for path in before if path.startswith(f"{MEMORY}.lance/{DATA}/")}
    new = present - kept.keys() - long
    if any(map(is_data, new)):
        data = _data_files(uri)
        new = {path for path in new if not is_data(path) or path in data}
    added = {path: _checksum(checksums.folder / path) for path in sorted(new)}
    if checksums.is_torn or len(kept) < len(checksums.recorded) or not _append(checksums.folder, added):
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


def _append(folder: Path, checksums: Mapping[str, str]) -> bool:
    """Add a block to the record; return False if that is not possible because a crash has torn its end."""
    if not checksums:
        return True
    # In one piece, so that a crash or a full disk leaves the beginning of a block at most.
    with (folder / RECORD_NAME).open("ab+", buffering=0) as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(length - _SEAL_BYTES, 0))
        if length and not _SEAL.fullmatch(file.read(_SEAL_BYTES)):
            return False
        block = _block(checksums)
        if file.write(block) < len(block):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
    return True


def _write(folder: Path, checksums: Mapping[str, str]) -> None:
    """Write a record anew. It appears as a whole or not at all."""
    draft = folder / f"{RECORD_NAME}.{secrets.token_hex(8)}"
    try:
        draft.write_bytes(_block(checksums))
        draft.replace(folder / RECORD_NAME)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _block(checksums: Mapping[str, str]) -> bytes:
    lines = "".join(f"{checksums[path]}  {path}\n" for path in sorted(checksums)).encode()
    return lines + _seal(lines)


def _seal(lines: bytes) -> bytes:
    return f"# {xxhash.xxh3_128_hexdigest(lines)}\n".encode()


def _checksum(path: Path) -> str:
    digest, piece = xxhash.xxh3_128(), memoryview(bytearray(_PIECE))
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(piece):
            digest.update(piece[:length])
    return digest.hexdigest()
