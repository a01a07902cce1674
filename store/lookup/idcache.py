"""Keep id maps in files, so that they need not be made again.

There is one file for each set of data files, in a hidden folder of the store or else in the user's cache.
"""

import hashlib
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import FragmentMetadata, LanceFragment
from platformdirs import user_cache_path

from ...errors import CorruptStoreError
from ..table.addresses import MEMORY, local_folder
from ..table.failures import lance_errors
from ..table.pages import payload_pages
from ..table.rows import read_rows
from .idmap import Bytes, DamagedMapError, IdMap, Segment, encode_map, extend, hashes_of

CACHE_FOLDER = ".pisco-index"
"""Name of the hidden folder for id maps in a store."""

_SUFFIX = ".idmap"
_TEMPORARY = ".tmp"
# Maps that stay in a folder: the newest, and the one before it for readers that still have the older version open.
_KEPT = 2
# Age of a temporary file whose process must have died: writing a map takes seconds.
_ABANDONED_S = 3600


def named_fragments(table: lance.LanceDataset) -> dict[str, LanceFragment]:
    """Return the fragments of a version by names that stand for their data files."""
    named: dict[str, LanceFragment] = {}
    for fragment in table.get_fragments():
        name = _name(fragment.metadata)
        # A table can contain the same data files twice, as two fragments.
        while name in named:
            name += "+"
        named[name] = fragment
    return named


def open_map(uri: str, table: lance.LanceDataset, fragments: Mapping[str, LanceFragment]) -> IdMap:
    """Return the id map of a version: the cached one, or a new one that extends the best cached one and is cached too.

    Args:
        uri: resolved address of the store.
        table: the table ``memory``, at that version.
        fragments: fragments of that version, by name.

    Raises:
        CorruptStoreError: the ids that Lance returns do not match the rows.
        StoreError: the ids cannot be read.
    """
    file_name = _file_name(fragments)
    for folder in _folders(uri):
        kept = _load(folder / file_name)
        if kept is not None and {segment.key for segment in kept.segments} == fragments.keys():
            return kept
    others = (_load(path) for folder in _folders(uri) for path in _maps_in(folder))
    base = max((each for each in others if each), key=lambda each: _shared_rows(each, fragments), default=None)
    try:
        pieces = _make(uri, table, fragments, base)
    except DamagedMapError:
        pieces = _make(uri, table, fragments, None)
    return _keep(uri, file_name, pieces) or IdMap(b"".join(pieces))


def remake_map(uri: str, table: lance.LanceDataset, fragments: Mapping[str, LanceFragment]) -> IdMap:
    """Return the id map of a version, made from nothing but its ids and held in memory, to replace a damaged map.

    Raises:
        CorruptStoreError: the ids that Lance returns do not match the rows.
        StoreError: the ids cannot be read.
    """
    pieces = _make(uri, table, fragments, None)
    _keep(uri, _file_name(fragments), pieces)
    return IdMap(b"".join(pieces))


def _make(
    uri: str, table: lance.LanceDataset, fragments: Mapping[str, LanceFragment], base: IdMap | None
) -> list[Bytes]:
    """Return the bytes of a map that takes known fragments from a base, and reads the rows of the other fragments."""
    known = set() if base is None else {segment.key for segment in base.segments}
    added = {name: fragment for name, fragment in fragments.items() if name not in known}
    payload = next(field.id() for field in table.lance_schema.fields() if field.name() == "payload")
    segments = [
        # The metadata can lack the number of rows; physical_rows of the fragment then reads it from the file.
        Segment(name, rows, payload_pages(uri, MEMORY, replace(fragment.metadata, physical_rows=rows), payload))
        for name, fragment in added.items()
        for rows in [fragment.physical_rows]
    ]
    return encode_map(*extend(base, fragments.keys(), segments, _hashes(uri, table, list(added.values()))))


def _hashes(uri: str, table: lance.LanceDataset, fragments: list[LanceFragment]) -> np.ndarray:
    """Return the hashes of the ids in all rows of fragments, deleted rows included, in the order of the rows."""
    begins = list(accumulate((each.physical_rows for each in fragments), initial=0))
    hashes = np.empty(begins[-1], dtype=np.uint64)
    ends = {each.fragment_id: begin for each, begin in zip(fragments, begins, strict=False)}
    for fragment, batch in read_rows(table, ["doc_id"], fragments=list(ends)):
        # Only a scan returns the ids of deleted rows, and damage ends the process in a scan. A fragment with deleted
        # rows is read here first, so that damage raises an error.
        if fragment.metadata.deletion_file is None:
            start = ends[fragment.fragment_id]
            ends[fragment.fragment_id] = end = start + batch.num_rows
            hashes[start:end] = _hashes_of(batch)
    for fragment, begin in zip(fragments, begins, strict=False):
        if fragment.metadata.deletion_file is not None:
            _scan(uri, table, fragment, hashes[begin : begin + fragment.physical_rows])
    return hashes


def _scan(uri: str, table: lance.LanceDataset, fragment: LanceFragment, hashes: np.ndarray) -> None:
    """Hash the ids in all rows of a fragment, deleted rows included, in the order of the rows."""
    expected = np.arange(len(hashes), dtype=np.uint64) + np.uint64(fragment.fragment_id << 32)
    end = 0
    with lance_errors(f"cannot read the document ids of the store at {uri}"):
        batches = table.scanner(
            columns=["doc_id"],
            fragments=[fragment],
            with_row_id=True,
            with_row_address=True,
            include_deleted_rows=True,
            scan_in_order=True,
        ).to_batches()
        for batch in batches:
            start, end = end, end + batch.num_rows
            if not _are_at(batch.column("_rowaddr"), expected[start:end]):
                raise CorruptStoreError(f"the store at {uri} returns its document ids in another order than its rows.")
            hashes[start:end] = _hashes_of(batch)
    if end != len(hashes):
        raise CorruptStoreError(f"the store at {uri} returns {end:,} document ids for {len(hashes):,} rows.")


def _hashes_of(batch: pa.RecordBatch) -> np.ndarray:
    return hashes_of(batch.column("doc_id").cast(pa.binary()).to_pylist())


def _are_at(addresses: pa.Array, expected: np.ndarray) -> bool:
    """Return True if the rows that are not deleted have these addresses; deleted rows have no address."""
    live = addresses.is_valid().to_numpy(zero_copy_only=False)
    return len(live) == len(expected) and bool((addresses.fill_null(0).to_numpy() == expected)[live].all())


def _folders(uri: str) -> Iterator[Path]:
    """Yield the folders that may hold maps of a store, the preferred one first."""
    store = local_folder(uri)
    # In a store from somebody else, a link could make this package write and delete files in any folder.
    if store is not None and not (store / CACHE_FOLDER).is_symlink():
        yield store / CACHE_FOLDER
    # A user whom the system does not know, as in many containers, may have no home folder.
    with suppress(RuntimeError):
        yield user_cache_path("pisco-index") / hashlib.blake2b(uri.encode(), digest_size=16).hexdigest()


def _name(fragment: FragmentMetadata) -> str:
    """Return a name for a fragment's data files and columns. Data files have random names and never change."""
    files = [(file.base_id, file.path, file.fields, file.column_indices) for file in fragment.files]
    described = repr((files, fragment.physical_rows, fragment.overlays))
    return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def _file_name(fragments: Mapping[str, LanceFragment]) -> str:
    return hashlib.blake2b("".join(sorted(fragments)).encode(), digest_size=16).hexdigest() + _SUFFIX


def _shared_rows(kept: IdMap, fragments: Mapping[str, Any]) -> int:
    return sum(segment.rows for segment in kept.segments if segment.key in fragments)


def _maps_in(folder: Path) -> list[Path]:
    """Return the maps in a folder, the newest first."""
    try:
        return sorted(folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    except OSError:
        return []


def _load(path: Path) -> IdMap | None:
    """Return the map in a file; None if the file does not hold a whole map."""
    try:
        with path.open("rb") as file:
            mapped = mmap(file.fileno(), 0, access=ACCESS_READ)
        return IdMap(mapped)
    except (OSError, ValueError, DamagedMapError):  # ValueError: mmap of an empty file
        return None


def _keep(uri: str, file_name: str, pieces: list[Bytes]) -> IdMap | None:
    """Write a map to the first folder where that is possible, and return it from there; None if no folder works.

    The file appears as a whole or not at all.
    """
    store = local_folder(uri)
    for folder in _folders(uri):
        if store is not None and not store.is_dir():
            continue  # The store was deleted, and mkdir would bring its folder back.
        temporary = folder / f"{file_name}.{secrets.token_hex(8)}{_TEMPORARY}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.writelines(pieces)
            temporary.replace(folder / file_name)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            continue
        _tidy(folder)
        return _load(folder / file_name)
    return None


def _tidy(folder: Path) -> None:
    """Delete maps of older versions, and temporary files of processes that died."""
    with suppress(OSError):
        abandoned = time.time() - _ABANDONED_S
        old = [path for path in folder.glob(f"*{_TEMPORARY}") if path.stat().st_mtime < abandoned]
        for path in [*_maps_in(folder)[_KEPT:], *old]:
            with suppress(OSError):  # Another process was faster.
                path.unlink()
