"""Keep the segments of id maps in files, so that they need not be made again.

They are in a hidden folder of the store or else in the user's cache. A lost, stale or damaged file is made again.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from mmap import ACCESS_READ, mmap
from pathlib import Path

import lance
from filelock import FileLock, Timeout
from lance.fragment import FragmentMetadata, LanceFragment

from ...errors import StoreError
from ..derived.folders import cache_folders, delete_abandoned, replace_file, writable_folders
from ..table.addresses import MEMORY, local_folder
from ..table.deletions import open_checked
from ..table.pages import payload_pages
from .hashing import read_runs
from .idmap import IdMap, first_positions, taken_in
from .segments import DamagedMapError, KeptRows, Part, Run, Segment, write_segment

_SUFFIX = ".idmap"
_LOCK = "idmap.lock"
# Longest time to wait for another process that makes the map: several times what 25 million documents take.
_PATIENCE_S = 120
# Files that only other versions use stay while all their rows are at most this many times the rows of the version.
_OTHERS = 2


def named_fragments(table: lance.LanceDataset) -> dict[str, LanceFragment]:
    """Return the fragments of a version by names that stand for their data files, in the order of the table."""
    named: dict[str, LanceFragment] = {}
    for fragment in table.get_fragments():
        name = _name(fragment.metadata)
        # A table can contain the same data files twice, as two fragments.
        while name in named:
            name += "+"
        named[name] = fragment
    return named


def keep_map(uri: str) -> None:
    """Bring the id map of a store's latest version in step, so that the next reader need not. Writers call this last.

    In an object store this does nothing, since each machine has its own cache. If the ids cannot be read, readers will
    say so.

    Args:
        uri: resolved address of the store.
    """
    if local_folder(uri) is None:
        return
    with suppress(StoreError):
        table = open_checked(uri, MEMORY)
        fragments = named_fragments(table)
        with _alone(uri):
            found = cached_map(uri, fragments)
            if found.lacking or taken_in(found, 0):
                _extended(uri, table, fragments, found)


def cached_map(uri: str, fragments: Mapping[str, LanceFragment]) -> IdMap:
    """Return the id map of a version as far as cached segments have it; see ``IdMap.lacking``."""
    paths = (path for folder in cache_folders(uri) for path in _files_in(folder))
    return IdMap(filter(None, map(_load, paths)), fragments)


def open_map(uri: str, table: lance.LanceDataset, fragments: Mapping[str, LanceFragment]) -> IdMap:
    """Return the id map of a version. Fragments that no cached segment has become a new segment, which is cached too.

    One process makes the segment while others wait for it.

    Args:
        uri: resolved address of the store.
        table: the table ``memory``, at that version.
        fragments: fragments of that version, by name.

    Raises:
        CorruptStoreError: the ids that Lance returns do not match the rows.
        StoreError: the ids cannot be read.
    """
    found = cached_map(uri, fragments)
    if not found.lacking:
        return found
    with _alone(uri):
        # Another process may have made the segment meanwhile.
        found = cached_map(uri, fragments)
        return _extended(uri, table, fragments, found) if found.lacking else found


def remake_map(uri: str, table: lance.LanceDataset, fragments: Mapping[str, LanceFragment]) -> IdMap:
    """Return the id map of a version, made from nothing but its ids, to replace a damaged map.

    Raises:
        CorruptStoreError: the ids that Lance returns do not match the rows.
        StoreError: the ids cannot be read.
    """
    with _alone(uri):
        return _make(uri, table, fragments, IdMap((), fragments))


def _extended(uri: str, table: lance.LanceDataset, fragments: Mapping[str, LanceFragment], found: IdMap) -> IdMap:
    """Return a map with all fragments of a version."""
    try:
        return _make(uri, table, fragments, found)
    except DamagedMapError:
        return _make(uri, table, fragments, IdMap((), fragments))


def _make(uri: str, table: lance.LanceDataset, fragments: Mapping[str, LanceFragment], found: IdMap) -> IdMap:
    """Make a segment of the fragments that a map lacks, and of the segments that it takes in; return the whole map.

    Raises:
        DamagedMapError: one of these segments is damaged.
    """
    added = {name: fragment for name, fragment in fragments.items() if name in found.lacking}
    taken = taken_in(found, sum(fragment.physical_rows for fragment in added.values()))
    parts: list[Part] = []
    runs: list[Run] = []
    begin = 0
    for share in taken:
        own, firsts = first_positions(share, begin)
        runs.append(KeptRows(share.segment, firsts))
        parts += own
        begin += share.rows
    payload = next(field.id() for field in table.lance_schema.fields() if field.name() == "payload")
    for name, fragment in added.items():
        # The metadata can lack the number of rows; physical_rows of the fragment then reads it from the file.
        rows = fragment.physical_rows
        pages = payload_pages(uri, MEMORY, replace(fragment.metadata, physical_rows=rows), payload)
        parts.append(Part(name, rows, pages))
    runs += read_runs(uri, table, list(added.values()), begin)
    segment = _keep(uri, parts, runs, fragments)
    return IdMap([*(share.segment for share in found.shares if share not in taken), segment], fragments)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold the lock of the first folder that can have one, so that only one process at a time makes a store's map.

    The operating system releases the lock of a process that ends. Without a folder, or after a long wait, there is no
    lock: the map is then made more than once, which takes time and does no harm.
    """
    lock = None
    for folder in writable_folders(uri):
        try:
            lock = FileLock(folder / _LOCK, timeout=_PATIENCE_S)
            lock.acquire()
        except Timeout:
            lock = None
        except (OSError, NotImplementedError):
            lock = None
            continue
        break
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _name(fragment: FragmentMetadata) -> str:
    """Return a name for a fragment's data files and columns. Data files have random names and never change."""
    files = [(file.base_id, file.path, file.fields, file.column_indices) for file in fragment.files]
    described = repr((files, fragment.physical_rows, fragment.overlays))
    return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def _file_name(parts: Sequence[Part]) -> str:
    keys = "".join(sorted(part.key for part in parts))
    return hashlib.blake2b(keys.encode(), digest_size=16).hexdigest() + _SUFFIX


def _files_in(folder: Path) -> list[Path]:
    """Return the files of segments in a folder, the newest first."""
    try:
        return sorted(folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    except OSError:
        return []


def _load(path: Path) -> Segment | None:
    """Return the segment in a file; None if the file does not hold a whole segment."""
    try:
        with path.open("rb") as file:
            mapped = mmap(file.fileno(), 0, access=ACCESS_READ)
        return Segment(mapped)
    except (OSError, ValueError, DamagedMapError):  # ValueError: mmap of an empty file
        return None


def _keep(uri: str, parts: Sequence[Part], runs: Sequence[Run], fragments: Mapping[str, LanceFragment]) -> Segment:
    """Write a segment to the first folder where that is possible, or else to memory, and return it from there.

    The file appears as a whole or not at all.
    """
    name = _file_name(parts)
    for folder in writable_folders(uri):
        is_written = replace_file(folder / name, lambda file: write_segment(file, parts, runs))
        if is_written and (segment := _load(folder / name)) is not None:
            _tidy(folder, fragments)
            return segment
    buffer = io.BytesIO()
    write_segment(buffer, parts, runs)
    return Segment(buffer.getbuffer())


def _tidy(folder: Path, fragments: Mapping[str, LanceFragment]) -> None:
    """Delete files of segments that others replace, of old versions, and temporary files of processes that died."""
    loaded = {path: segment for path in _files_in(folder) if (segment := _load(path)) is not None}
    id_map = IdMap(loaded.values(), fragments)
    used = {id(share.segment) for share in id_map.shares}
    room = _OTHERS * sum(share.rows for share in id_map.shares)
    kept: set[Path] = set()
    for path, segment in loaded.items():
        # Readers of another version may have use for fragments that this one lacks.
        is_other = any(part.key not in fragments for part in segment.parts)
        if id(segment) in used:
            kept.add(path)
        elif is_other and segment.count <= room:
            room -= segment.count
            kept.add(path)
    for path in _files_in(folder):
        if path not in kept:
            with suppress(OSError):  # Another process was faster.
                path.unlink()
    delete_abandoned(folder)
