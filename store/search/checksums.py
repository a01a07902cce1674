"""Checksums of the index's files: Lance writes none, and answers from a damaged file without an error.

Each segment has a note in the assets, ``index/<UUID>``: a JSON object that gives each file's size in bytes and XXH3-64.
"""

import json
from collections.abc import Iterator, Mapping, Sequence

import lance
import xxhash
from lance.file import LanceFileSession

from ..assets import INDEX_PREFIX, add_missing_assets, asset_names
from ..table.addresses import ASSETS, MEMORY, storage_options, table_uri
from ..table.datasets import open_table
from ..table.deletions import open_checked
from ..table.failures import lance_errors
from .index import INDEX_FOLDER, SearchIndex

# Bytes of a file that are read at a time.
_PIECE = 8 << 20

Notes = Mapping[str, Mapping[str, tuple[int, str]]]
"""Size and checksum of each file, by the UUID of its segment."""


def record_checksums(uri: str, index: SearchIndex) -> None:
    """Note the sizes and checksums of the files of new segments.

    Raises:
        StoreError: a file cannot be read, or the notes cannot be written.
    """
    with lance_errors(f"cannot read the search index of the store at {uri}"):
        noted = set(asset_names(open_checked(uri, ASSETS)))
        new = [segment for segment in index.segments if f"{INDEX_PREFIX}{segment}" not in noted]
        files = _files(uri, new) if new else {}
        checksums = {
            segment: {name: (size, _checksum(_session(uri, segment), name, size)) for name, size in own.items()}
            for segment, own in files.items()
        }
    add_missing_assets(uri, {f"{INDEX_PREFIX}{each}": json.dumps(own).encode() for each, own in checksums.items()})


def recorded_checksums(assets: Mapping[str, bytes]) -> Notes:
    """Return the notes among a store's assets.

    Raises:
        ValueError: a note is damaged.
    """
    notes = {name.removeprefix(INDEX_PREFIX): json.loads(value) for name, value in assets.items() if _is_note(name)}
    return {
        segment: {file: (int(size), str(checksum)) for file, (size, checksum) in files.items()}
        for segment, files in notes.items()
    }


def read_notes(uri: str) -> Notes:
    """Return the notes of a store.

    Raises:
        StoreError: the notes cannot be read.
    """
    dataset: lance.LanceDataset = open_checked(uri, ASSETS)
    with lance_errors(f"cannot read the assets of the store at {uri}"):
        places = {name: row for row, name in enumerate(asset_names(dataset)) if _is_note(name)}
        values = dataset.take(list(places.values()), columns=["value"]).column(0).to_pylist()
        return recorded_checksums(dict(zip(places, values, strict=True)))


def damaged_files(uri: str, index: SearchIndex, notes: Notes) -> Iterator[tuple[str, str]]:
    """Read all files of an index, and yield those that are not as they were written.

    Of a segment without a note only the loss of all files is found.

    Yields:
        Path of the file in the folder of the table, and a description of the problem as a sentence without a subject.

    Raises:
        StoreError: a file cannot be read.
    """
    with lance_errors(f"cannot list the files of the search index of the store at {uri}"):
        present = _files(uri, index.segments)
    for segment in index.segments:
        if not present[segment]:
            yield f"{INDEX_FOLDER}/{segment}", "is missing."
            continue
        for name, (size, checksum) in notes.get(segment, {}).items():
            if problem := _problem(uri, segment, name, present[segment].get(name), size, checksum):
                yield f"{INDEX_FOLDER}/{segment}/{name}", problem


def _problem(uri: str, segment: str, name: str, found_size: int | None, size: int, checksum: str) -> str | None:
    if found_size is None:
        return "is missing."
    if found_size != size:
        return f"has {found_size:,} bytes and not {size:,}."
    with lance_errors(f"cannot read {name} of segment {segment} of the search index of the store at {uri}"):
        return None if _checksum(_session(uri, segment), name, size) == checksum else "fails its checksum."


def _is_note(name: str) -> bool:
    return name.startswith(INDEX_PREFIX)


def _files(uri: str, segments: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the names and sizes of the files of segments."""
    files: dict[str, dict[str, int]] = {segment: {} for segment in segments}
    for file in open_table(uri, MEMORY).all_files().read_all().select(["path", "size_bytes"]).to_pylist():
        folder, _, place = file["path"].partition("/")
        segment, _, name = place.partition("/")
        if folder == INDEX_FOLDER and segment in files:
            files[segment][name] = file["size_bytes"]
    return files


def _session(uri: str, segment: str) -> LanceFileSession:
    return LanceFileSession(f"{table_uri(uri, MEMORY)}/{INDEX_FOLDER}/{segment}", storage_options=storage_options(uri))


def _checksum(session: LanceFileSession, name: str, size: int) -> str:
    """Return the checksum of a file's first ``size`` bytes."""
    digest = xxhash.xxh3_64()
    for start in range(0, size, _PIECE):
        digest.update(session.read_range(name, start, min(_PIECE, size - start)))
    return digest.hexdigest()
