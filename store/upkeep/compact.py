"""Compact: give back the space that deleted rows, small fragments and old versions take."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import lance
from lance.fragment import FragmentMetadata

from ...errors import StoreError
from ..assets import INDEX_PREFIX, PLAN_PREFIX, RECORDS_PREFIX, asset_names
from ..derived.row_hashes import RowHashes
from ..derived.totals import Totals
from ..info import data_bytes, disk_bytes
from ..lock import build_lock
from ..lookup.known_records import records_asset
from ..plans import plan_in_force
from ..search.index import search_index
from ..search.keep import is_damaged, keep_index, merge_index
from ..store import Store
from ..table.addresses import ASSETS, MEMORY, TABLES, local_folder
from ..table.checksums import record_checksums
from ..table.datasets import fragments_of, open_table
from ..table.failures import lance_errors

FRAGMENT_BYTES = 1 << 30
FRAGMENT_ROWS = 1 << 20
"""Target size of a compacted fragment: about 1 GB, or a million rows if these take less. Large ones read fastest."""

MIN_DELETED = 0.1
"""Share of deleted rows from which a large fragment is rewritten by default."""

# Age that no version reaches: nothing is dropped by age.
_FOREVER = timedelta(days=36500)


@dataclass(frozen=True)
class Compaction:
    """A store before and after a compaction.

    Attributes:
        fragments_before: number of fragments of the table ``memory`` before.
        fragments: number of its fragments now.
        versions_before: number of its versions before.
        versions: number of its versions that can still be opened.
        bytes_before: size of the store before; in an object store, only of the data files of the latest versions.
        bytes: size of the store now, counted in the same way.
        left_alone: number of fragments of ``memory`` that were left as they are, because rewriting them would gain
            little.
        left_deleted: number of deleted rows that stay in the files of these fragments.
    """

    fragments_before: int
    fragments: int
    versions_before: int
    versions: int
    bytes_before: int
    bytes: int
    left_alone: int = 0
    left_deleted: int = 0


def compact(
    uri: str | Path, *, older_than_hours: float = 24, min_deleted: float = MIN_DELETED, no_build_runs: bool = False
) -> Compaction:
    """Merge small fragments, remove deleted rows from the files, and drop old versions.

    A fragment of at least half the target size is left alone if few of its rows are deleted. Every document stays as it
    is. Readers keep the version that they have open, as long as it exists. A reader whose
    version was dropped gets an error that says to open the store again.

    Args:
        uri: address of the store.
        older_than_hours: age above which versions are dropped; 0 drops all versions but the latest.
        min_deleted: share of deleted rows, 0 to 1, from which a large fragment is rewritten; with 0 any deleted row is
            enough, so that no deleted document stays on the disk.
        no_build_runs: confirmation by the caller that no build is running. It is required for an object store, which
            has no lock to find that out.

    Raises:
        StoreLockedError: a build is writing the store.
        StoreError: there is no store, it cannot be written, or it is in an object store and ``no_build_runs`` is not
            given.
        ValueError: ``older_than_hours`` is negative, or ``min_deleted`` is no share.
    """
    if older_than_hours < 0:
        raise ValueError(f"older_than_hours is {older_than_hours}, and must not be negative")
    if not 0 <= min_deleted <= 1:
        raise ValueError(f"min_deleted is {min_deleted}, and must be between 0 and 1")
    store = Store.open(uri)
    if local_folder(store.uri) is None and not no_build_runs:
        raise StoreError(
            f"whether a build is writing the store at {store.uri} cannot be seen in an object store, and compacting "
            "would delete the build's files. Make sure that no build is running, then confirm it (--no-build-runs)."
        )
    with build_lock(store.uri):
        before = _measure(store.uri)
        fragments = fragments_of(store.refresh().table)
        with lance_errors(f"cannot compact the store at {store.uri}"):
            _drop_old_assets(store.uri)
            with _index_kept(store.uri):
                for table in TABLES:
                    _rewrite(open_table(store.uri, table), min_deleted)
            for table in TABLES:
                _drop_versions(open_table(store.uri, table), timedelta(hours=older_than_hours))
            record_checksums(store.uri)
            _derive(store.uri, fragments)
        left = {each.id: each.num_deletions for each in fragments_of(open_table(store.uri, MEMORY))}
        left = {each.id: left[each.id] for each in fragments if each.id in left}
        counts = (n for pair in zip(before, _measure(store.uri), strict=True) for n in pair)
        return Compaction(*counts, left_alone=len(left), left_deleted=sum(left.values()))


def remove_orphans(store: Store) -> int:
    """Delete files that no version refers to, as dead workers leave them, and versions that no reader can miss.

    No reader can miss a version if the latest version has all its files: a reader that has it open keeps reading. Only
    the holder of the lock may call this, because it also deletes files that workers have written but nobody has
    committed yet. It does nothing in an object store, which has no lock.

    Returns:
        Number of bytes freed.

    Raises:
        StoreError: the files cannot be deleted.
    """
    if local_folder(store.uri) is None:
        return 0
    with lance_errors(f"cannot clean up the store at {store.uri}"):
        return sum(_remove_orphans(store.uri, table) for table in TABLES)


def _remove_orphans(uri: str, table: str) -> int:
    latest = open_table(uri, table)
    kept = _files(latest)
    older = (each["version"] for each in latest.versions() if each["version"] < latest.version)
    superseded = [number for number in older if _files(open_table(uri, table, number)) <= kept]
    return latest.cleanup_old_versions(
        # Without a version to drop, Lance still deletes the files that no version refers to.
        older_than=None if superseded else _FOREVER,
        versions=superseded or None,
        delete_unverified=True,
        error_if_tagged_old_versions=False,
    ).bytes_removed


@contextmanager
def _index_kept(uri: str) -> Iterator[None]:
    """Keep the search index in step while the fragments of ``memory`` are merged. Lance rewrites it for their new rows.

    Lance merges no fragments of different segments, so the segments are merged first. An index of unknown settings is
    left to Lance.
    """
    before = search_index(open_table(uri, MEMORY))
    if before is None or before.settings is None:
        yield
        return
    is_sound = not is_damaged(uri, before)
    if is_sound:
        merge_index(uri)
    yield
    # Lance copies a damaged index as it is, or drops it.
    keep_index(uri, before.settings, rebuild=not is_sound)


def _files(dataset: lance.LanceDataset) -> set[str]:
    """Return the names of a version's data and deletion files, and of the folders of its search index."""
    index = search_index(dataset)
    names: set[str] = set(index.segments if index else ())
    for fragment in dataset.get_fragments():
        metadata = fragment.metadata
        names.update(file.path for file in metadata.files)
        if metadata.deletion_file is not None:
            names.add(metadata.deletion_file.path(fragment.fragment_id))
    return names


def _drop_old_assets(uri: str) -> None:
    """Delete former plans with their records, and the checksums of former segments of the search index."""
    memory, assets = open_table(uri, MEMORY), open_table(uri, ASSETS)
    index = search_index(memory)
    plan = plan_in_force(memory)
    used = {plan, records_asset(plan), *(f"{INDEX_PREFIX}{segment}" for segment in (index.segments if index else ()))}
    prefixes = (PLAN_PREFIX, RECORDS_PREFIX, INDEX_PREFIX)
    old = [each for each in asset_names(assets) if each.startswith(prefixes) and each not in used]
    if old:
        quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in old)
        assets.delete(f"name IN ({quoted})")


def _rewrite(dataset: lance.LanceDataset, min_deleted: float) -> None:
    fragments = fragments_of(dataset)
    rows = sum(each.physical_rows for each in fragments)
    size = data_bytes(dataset) / max(rows, 1)
    # A power of two: the size of a row changes a little each time, and a target that followed it would have every
    # fragment rewritten.
    target = min(FRAGMENT_ROWS, 1 << max(0, int(FRAGMENT_BYTES / max(size, 1)).bit_length() - 1))
    dataset.optimize.compact_files(
        target_rows_per_fragment=target,
        materialize_deletions=True,
        materialize_deletions_threshold=0.0,
        excluded_fragment_ids=[each.id for each in fragments if _gains_little(each, target, min_deleted)],
    )


def _gains_little(fragment: FragmentMetadata, target: int, min_deleted: float) -> bool:
    """Return True if a fragment is large, and only a small share of its rows is deleted."""
    deleted = fragment.num_deletions or 0
    is_large = fragment.physical_rows - deleted >= target / 2
    return is_large and (not deleted or deleted < min_deleted * fragment.physical_rows)


def _derive(uri: str, before: Sequence[FragmentMetadata]) -> None:
    """Keep the totals of new fragments, and their hashes if those of the former ones were kept; forget the former ones.

    Values that cannot be computed now are computed where they are needed.
    """
    with suppress(StoreError):
        memory = open_table(uri, MEMORY)
        totals, hashes = Totals(uri), RowHashes(uri, memory)
        totals.of(memory)
        totals.tidy(memory)
        former = {each.id for each in before}
        if any(map(hashes.has, before)):
            for fragment in memory.get_fragments():
                if fragment.fragment_id not in former:
                    hashes.make(fragment)
        hashes.tidy()


def _drop_versions(dataset: lance.LanceDataset, older_than: timedelta) -> None:
    dataset.cleanup_old_versions(
        # For Lance an age of zero means no limit, so None is needed to drop every version but the latest.
        older_than=older_than or None,
        retain_versions=None if older_than else 1,
        delete_unverified=True,
        error_if_tagged_old_versions=False,
    )


def _measure(uri: str) -> tuple[int, int, int]:
    memory = open_table(uri, MEMORY)
    size = disk_bytes(uri)
    if size is None:
        size = sum(data_bytes(open_table(uri, table)) for table in TABLES)
    return len(memory.get_fragments()), len(memory.versions()), size
