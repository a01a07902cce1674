"""The record of finished shards: the ``shard`` column itself, so that record and data cannot disagree.

Shards without rows, and documents that are stored by another codec than the store's, are noted in the assets.
"""

import json
from collections import Counter
from collections.abc import Sequence

import lance
import numpy as np
from lance.fragment import FragmentMetadata

from .assets import EMPTY_SHARD_PREFIX, FALLBACK_PREFIX, add_missing_assets, asset_names
from .table.addresses import ASSETS
from .table.datasets import fragments_of
from .table.deletions import open_checked
from .table.failures import lance_errors
from .table.rows import read_addressed, read_rows


class Ledger:
    """The shards of a table, remembered per data file. Data files never change, so each is scanned only once."""

    def __init__(self):
        self._shards_of_file: dict[str, set[int]] = {}

    def shards(self, dataset: lance.LanceDataset, fragments: Sequence[FragmentMetadata] | None = None) -> set[int]:
        """Return the numbers of the shards that have rows in one version of a table.

        Args:
            dataset: the version of ``memory`` or ``rejected``.
            fragments: all its fragments, if the caller has them: Lance takes some microseconds to list each.

        Raises:
            StoreError: the column cannot be read.
        """
        known = fragments_of(dataset) if fragments is None else fragments
        file_of_fragment = {fragment.id: fragment.files[0].path for fragment in known}
        unseen = [i for i, name in file_of_fragment.items() if name not in self._shards_of_file]
        if unseen:
            scanned = {name: set[int]() for name in map(file_of_fragment.__getitem__, unseen)}
            with lance_errors(f"cannot read the shards of {dataset.uri}"):
                for fragment, batch in read_rows(dataset, ["shard"], fragments=unseen):
                    shards = np.unique(batch.column(0).to_numpy()).tolist()
                    scanned[file_of_fragment[fragment.fragment_id]].update(shards)
            self._shards_of_file.update(scanned)
        return set().union(*(self._shards_of_file[name] for name in file_of_fragment.values()))


def empty_shards(uri: str) -> set[int]:
    """Return the numbers of the shards that are done but have no row in ``memory``.

    Raises:
        StoreError: the assets cannot be read.
    """
    dataset = open_checked(uri, ASSETS)
    with lance_errors(f"cannot read the assets of the store at {uri}"):
        names = asset_names(dataset)
    return {int(n.removeprefix(EMPTY_SHARD_PREFIX)) for n in names if n.startswith(EMPTY_SHARD_PREFIX)}


def record_empty(uri: str, shards: set[int]) -> set[int]:
    """Record shards without rows as done.

    Two drivers may record the same shard: the records are a set.

    Returns:
        The shards that were not recorded before.

    Raises:
        StoreError: the assets cannot be read or written.
    """
    new = shards - empty_shards(uri) if shards else shards
    add_missing_assets(uri, {f"{EMPTY_SHARD_PREFIX}{shard}": b"" for shard in sorted(new)})
    return new


def emptied_shards(dataset: lance.LanceDataset, rows: np.ndarray) -> set[int]:
    """Return the numbers of the shards that would lose their last row with these rows.

    Args:
        dataset: a version of ``memory``.
        rows: addresses of the rows, ``(k,)`` uint64.

    Raises:
        StoreError: the column cannot be read.
    """
    ordered = np.sort(rows)
    held: Counter[int] = Counter()
    lost: Counter[int] = Counter()
    for addresses, batch in read_addressed(dataset, ["shard"]):
        shards = batch.column("shard").to_numpy()
        begin, end = np.searchsorted(ordered, [addresses[0], addresses[-1] + np.uint64(1)])
        places = np.searchsorted(addresses, ordered[begin:end])
        numbers, counts = np.unique(shards[places], return_counts=True)
        lost.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
        # Rows of a shard lie together, so counting runs is faster than sorting the whole column.
        begins = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist()]
        lengths = np.diff([*begins, len(shards)])
        for place, length in zip(begins, lengths.tolist(), strict=True):
            held[int(shards[place])] += length
    return {number for number, count in lost.items() if held[number] == count}


def record_fallbacks(uri: str, counts: dict[int, dict[str, int]]) -> None:
    """Record the documents that are stored by another codec than the store's.

    Args:
        uri: resolved address of the store.
        counts: for each shard, number of documents by the name of the other codec.

    Raises:
        StoreError: the assets cannot be read or written.
    """
    add_missing_assets(uri, {f"{FALLBACK_PREFIX}{shard}": json.dumps(each).encode() for shard, each in counts.items()})


def fallbacks(uri: str) -> dict[str, int]:
    """Return the number of documents that builds stored by another codec than the store's, by codec.

    Raises:
        StoreError: the assets cannot be read.
    """
    dataset = open_checked(uri, ASSETS)
    # Two drivers may have recorded the same shard, with the same counts: the last one is taken.
    places = {name: row for row, name in enumerate(asset_names(dataset)) if name.startswith(FALLBACK_PREFIX)}
    counts: Counter[str] = Counter()
    with lance_errors(f"cannot read the assets of the store at {uri}"):
        for value in dataset.take(list(places.values()), columns=["value"]).column(0).to_pylist():
            counts.update(json.loads(value))
    return dict(counts)
