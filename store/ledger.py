"""The record of finished shards: the ``shard`` column itself, so that record and data cannot disagree.

Shards without rows, and documents that are stored by another codec than the store's, are noted in the assets.
"""

import json
from collections import Counter
from collections.abc import Sequence

import lance
import numpy as np
from lance.fragment import FragmentMetadata

from ..errors import StoreError
from .assets import EMPTY_SHARD_PREFIX, FALLBACK_PREFIX, add_missing_assets, asset_names
from .derived.totals import Totals
from .table.addresses import ASSETS
from .table.datasets import fragments_of
from .table.deletions import open_checked
from .table.failures import lance_errors
from .table.rows import read_rows


class Ledger:
    """The shards that have rows in the tables of a store. Those of a data file are read once and then remembered.

    Args:
        uri: resolved address of the store.

    Attributes:
        totals: totals of ``memory``, which have its shards.
    """

    def __init__(self, uri: str):
        self.totals = Totals(uri)
        self._shards_of_file: dict[str, set[int]] = {}

    def shards(self, dataset: lance.LanceDataset, fragments: Sequence[FragmentMetadata] | None = None) -> set[int]:
        """Return the numbers of the shards that have rows in a version of ``memory``.

        Args:
            dataset: the version.
            fragments: all its fragments, if the caller has them.

        Raises:
            StoreError: the column cannot be read.
        """
        try:
            return set[int]().union(*(each.shards for each in self.totals.of(dataset, fragments).values()))
        except StoreError:
            # Damage in another column must not keep a build from finding its shards.
            return self._read(dataset, fragments_of(dataset) if fragments is None else fragments)

    def rejected_shards(self, dataset: lance.LanceDataset, fragments: Sequence[FragmentMetadata]) -> set[int]:
        """Return the numbers of the shards that have records in a version of ``rejected``, given all its fragments.

        Raises:
            StoreError: the column cannot be read.
        """
        return self._read(dataset, fragments)

    def _read(self, dataset: lance.LanceDataset, fragments: Sequence[FragmentMetadata]) -> set[int]:
        file_of_fragment = {fragment.id: fragment.files[0].path for fragment in fragments}
        unseen = [number for number, name in file_of_fragment.items() if name not in self._shards_of_file]
        read = {file_of_fragment[number]: set[int]() for number in unseen}
        with lance_errors(f"cannot read the shards of {dataset.uri}"):
            for fragment, batch in read_rows(dataset, ["shard"], fragments=unseen):
                read[file_of_fragment[fragment.fragment_id]].update(np.unique(batch.column(0).to_numpy()).tolist())
        self._shards_of_file.update(read)
        return set[int]().union(*(self._shards_of_file[name] for name in file_of_fragment.values()))


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
