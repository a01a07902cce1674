"""The driver's side of a build: make written shards visible, each exactly once, whoever else commits.

A commit is a compare-and-swap on the version of a table. The driver reads which shards the latest version holds, and
proposes that version's fragments plus those of the shards it lacks as the whole table (Lance's operation ``Merge``).
Lance refuses when another version has appeared since; the driver then looks again. ``Append`` would not do: it never
conflicts, and two drivers would store every shard twice.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lance
import pyarrow as pa
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata

from ..errors import CorruptStoreError
from .fragment import WrittenShard
from .ledger import EMPTY_SHARD_PREFIX, empty_shards
from .schema import ASSETS_SCHEMA
from .store import Store
from .tables import (
    ASSETS,
    LANCE_FAILURES,
    MEMORY,
    REJECTED,
    TABLES,
    data_file_uri,
    is_disk_full,
    lance_errors,
    local_folder,
    open_table,
    table_uri,
)

MAX_ATTEMPTS = 12
_FIRST_WAIT_S = 0.01
_LONGEST_WAIT_S = 1.0


@dataclass(frozen=True)
class Committed:
    """What a commit did.

    Attributes:
        new: shards that it committed.
        already_done: shards that were there before, or that another driver committed meanwhile.
    """

    new: frozenset[int]
    already_done: frozenset[int]


def commit(store: Store, written: Sequence[WrittenShard]) -> Committed:
    """Make shards visible, each exactly once; shards that are done already are left alone.

    It can be called again with the same shards after any failure. An opened store does not see them: refresh it.

    Args:
        store: the store, opened at any version.
        written: the shards; of two with the same number the first counts.

    Raises:
        CorruptStoreError: a data file is missing, short or has other rows; names file and shard. Nothing of its table
            was committed.
        StoreError: the disk is full, or the store could not be written in many attempts.
    """
    shards = {each.shard: each for each in reversed(written)}
    # A shard is done once its memory is, so that comes last.
    _publish(store, REJECTED, {n: _parse(each.rejected_fragments) for n, each in shards.items()})
    new = _publish(store, MEMORY, {n: _parse(each.memory_fragments) for n, each in shards.items()})
    new |= _record_empty(store, {n for n, each in shards.items() if not each.memory_fragments})
    return Committed(frozenset(new), frozenset(shards.keys() - new))


def done_shards(store: Store) -> set[int]:
    """Numbers of all shards that are done in the latest version of the store.

    Raises:
        StoreError: the store cannot be read.
    """
    return store.ledger.shards(open_table(store.uri, MEMORY)) | empty_shards(store.uri)


def verify_written(store: Store, written: WrittenShard) -> None:
    """Check that a shard's files are whole, as commit does before it refers to them.

    Raises:
        CorruptStoreError: a data file is missing, short or has other rows; names file and shard.
    """
    _verify(store.uri, REJECTED, written.shard, _parse(written.rejected_fragments))
    _verify(store.uri, MEMORY, written.shard, _parse(written.memory_fragments))


def remove_orphans(store: Store) -> int:
    """Delete the data files that no version refers to, which dead workers left, and all versions but the latest.

    Only for when no build runs: it deletes what workers have written and nobody has committed yet. Whoever has the
    store open at an older version keeps reading, but cannot open that version again.

    Returns:
        Bytes freed.

    Raises:
        StoreError: it failed.
    """
    with lance_errors(f"cannot clean up the store at {store.uri}"):
        tables = [open_table(store.uri, table) for table in TABLES]
        stats = [
            each.cleanup_old_versions(retain_versions=1, delete_unverified=True, error_if_tagged_old_versions=False)
            for each in tables
        ]
    return sum(each.bytes_removed for each in stats)


def _publish(store: Store, table: str, fragments: Mapping[int, list[FragmentMetadata]]) -> set[int]:
    """Commit the shards that have fragments; returns those whose rows are the ones given here and now."""
    fragments = {shard: own for shard, own in fragments.items() if own}
    tried: set[int] = set()
    failure: Exception | None = None
    for attempt in range(MAX_ATTEMPTS if fragments else 0):
        if attempt:
            time.sleep(min(_FIRST_WAIT_S * 2**attempt, _LONGEST_WAIT_S))
        dataset = open_table(store.uri, table)
        todo = fragments.keys() - store.ledger.shards(dataset)
        existing = [each.metadata for each in dataset.get_fragments()]
        # A commit that failed may have landed all the same.
        landed = {shard for shard in tried - todo if _is_among(fragments[shard], existing)}
        if not todo:
            return landed
        for shard in sorted(todo):
            _verify(store.uri, table, shard, fragments[shard])
        tried |= todo
        added = [each for shard in sorted(todo) for each in fragments[shard]]
        try:
            lance.LanceDataset.commit(
                dataset,
                lance.LanceOperation.Merge([*existing, *added], dataset.lance_schema),
                read_version=dataset.version,
                max_retries=0,
            )
        except LANCE_FAILURES as error:
            failure = error
            if is_disk_full(error):
                break
        else:
            return landed | todo
    if failure is None:
        return set()
    with lance_errors(f"cannot commit shards {sorted(tried)} to the store at {store.uri}"):
        raise failure


def _verify(uri: str, table: str, shard: int, fragments: Sequence[FragmentMetadata]) -> None:
    for fragment in fragments:
        for file in fragment.files:
            address = data_file_uri(uri, table, file.path)
            problem = _problem(address, file.file_size_bytes, fragment.physical_rows)
            if problem:
                raise CorruptStoreError(
                    f"shard {shard} cannot be committed: its data file {address} {problem}. Write the shard again."
                )


def _problem(address: str, size: int | None, rows: int) -> str | None:
    path = local_folder(address)
    if path is not None:
        if not path.is_file():
            return "is missing"
        if path.stat().st_size != size:
            return f"has {path.stat().st_size} bytes and not {size}"
    try:
        found = LanceFileReader(address).num_rows()
    except LANCE_FAILURES as error:
        return f"cannot be read ({error})"
    return None if found == rows else f"has {found} rows and not {rows}"


def _record_empty(store: Store, shards: set[int]) -> set[int]:
    """Note shards without rows as done. Two drivers may note the same one, which does no harm: it is a set."""
    new = shards - empty_shards(store.uri) if shards else shards
    if new:
        names = [f"{EMPTY_SHARD_PREFIX}{shard}" for shard in sorted(new)]
        with lance_errors(f"cannot note empty shards in the store at {store.uri}"):
            lance.write_dataset(
                pa.table([names, [b""] * len(names)], schema=ASSETS_SCHEMA),
                table_uri(store.uri, ASSETS),
                mode="append",
            )
    return new


def _parse(fragments: Sequence[str]) -> list[FragmentMetadata]:
    return [FragmentMetadata.from_json(text) for text in fragments]


def _is_among(fragments: Sequence[FragmentMetadata], existing: Sequence[FragmentMetadata]) -> bool:
    names = {file.path for each in existing for file in each.files}
    return all(file.path in names for each in fragments for file in each.files)
