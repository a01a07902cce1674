"""What deletions, small fragments and old versions take, given back."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import lance

from ...errors import StoreError
from ..info import data_bytes, disk_bytes
from ..ledger import asset_names
from ..lock import build_lock
from ..plans import PLAN_PREFIX, plan_in_force
from ..store import Store
from ..table.addresses import ASSETS, MEMORY, TABLES, local_folder
from ..table.datasets import open_table
from ..table.failures import lance_errors

FRAGMENT_BYTES = 1 << 30
FRAGMENT_ROWS = 1 << 20
"""A compacted fragment has about so many bytes, or so many rows where these are fewer."""

_FOREVER = timedelta(days=36500)


@dataclass(frozen=True)
class Compaction:
    """A store before and after a compaction.

    Attributes:
        fragments_before: of the table ``memory``.
        fragments: of it now.
        versions_before: of it.
        versions: that can still be opened.
        bytes_before: that the store took; in an object store, only its latest versions' data files.
        bytes: that it takes now.
    """

    fragments_before: int
    fragments: int
    versions_before: int
    versions: int
    bytes_before: int
    bytes: int


def compact(uri: str | Path, *, older_than_hours: float = 24, no_build_runs: bool = False) -> Compaction:
    """Merge small fragments, remove deleted rows from the files, and drop old versions.

    Every document stays as it is. Readers go on with the version that they have open while it is kept; one whose
    version was dropped gets an error that says to open the store again.

    Args:
        uri: of the store.
        older_than_hours: only versions older than this are dropped; 0 drops all but the latest.
        no_build_runs: the caller's word for a store in an object store, where there is no lock to tell.

    Raises:
        StoreLockedError: a build is writing the store.
        StoreError: there is no store, it cannot be written, or it is in an object store and ``no_build_runs`` is not
            given.
        ValueError: ``older_than_hours`` is negative.
    """
    if older_than_hours < 0:
        raise ValueError(f"older_than_hours is {older_than_hours}, and must not be negative")
    store = Store.open(uri)
    if local_folder(store.uri) is None and not no_build_runs:
        raise StoreError(
            f"whether a build is writing the store at {store.uri} cannot be seen in an object store, and compacting "
            "would take its files away. Make sure that none runs, and say so (--no-build-runs)."
        )
    with build_lock(store.uri):
        before = _measure(store.uri)
        with lance_errors(f"cannot compact the store at {store.uri}"):
            _drop_old_plans(store.uri)
            for table in TABLES:
                _rewrite(open_table(store.uri, table))
            for table in TABLES:
                _drop_versions(open_table(store.uri, table), timedelta(hours=older_than_hours))
        return Compaction(*(n for pair in zip(before, _measure(store.uri), strict=True) for n in pair))


def remove_orphans(store: Store) -> int:
    """Delete the data files that no version refers to, which dead workers left, and versions that nobody can miss.

    Those are the ones whose every file the latest version has too: a reader that has one open keeps reading. Only for
    whoever holds the lock: it deletes what workers have written and nobody has committed yet. In an object store,
    where there is no lock, it does nothing.

    Returns:
        Bytes freed.

    Raises:
        StoreError: it failed.
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
        # Without a version to drop it still deletes what no version refers to.
        older_than=None if superseded else _FOREVER,
        versions=superseded or None,
        delete_unverified=True,
        error_if_tagged_old_versions=False,
    ).bytes_removed


def _files(dataset: lance.LanceDataset) -> set[str]:
    """Data and deletion files of a version."""
    names: set[str] = set()
    for fragment in dataset.get_fragments():
        metadata = fragment.metadata
        names.update(file.path for file in metadata.files)
        if metadata.deletion_file is not None:
            names.add(metadata.deletion_file.path(fragment.fragment_id))
    return names


def _drop_old_plans(uri: str) -> None:
    current = plan_in_force(open_table(uri, MEMORY))
    assets = open_table(uri, ASSETS)
    names = asset_names(assets)
    if any(name.startswith(PLAN_PREFIX) and name != current for name in names):
        assets.delete(f"starts_with(name, '{PLAN_PREFIX}') AND name != '{current}'")


def _rewrite(dataset: lance.LanceDataset) -> None:
    rows = sum(fragment.physical_rows for fragment in dataset.get_fragments())
    size = data_bytes(dataset) / max(rows, 1)
    # A power of two, so that the size of a row, which changes a little each time, does not make every fragment one to
    # rewrite.
    target = min(FRAGMENT_ROWS, 1 << max(0, int(FRAGMENT_BYTES / max(size, 1)).bit_length() - 1))
    dataset.optimize.compact_files(
        target_rows_per_fragment=target, materialize_deletions=True, materialize_deletions_threshold=0.0
    )


def _drop_versions(dataset: lance.LanceDataset, older_than: timedelta) -> None:
    dataset.cleanup_old_versions(
        # Lance takes no time at all for no limit.
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
