"""Which shards are done: the ``shard`` column itself, so that the record cannot disagree with the data."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import lance
import numpy as np
from lance.fragment import FragmentMetadata

from .table.addresses import ASSETS
from .table.datasets import append_assets, fragments_of
from .table.deletions import open_checked
from .table.failures import lance_errors
from .table.rows import read_addressed, read_rows

EMPTY_SHARD_PREFIX = "empty-shard/"
"""A shard without a row of memory is done when ``assets`` has this name followed by its number."""

FALLBACK_PREFIX = "fallback/"
"""This name followed by a shard's number counts its documents that are stored by another codec than the store's."""


class Ledger:
    """The shards of a table, remembered by data file: files never change, so each is scanned once."""

    def __init__(self):
        self._shards_of_file: dict[str, set[int]] = {}

    def shards(self, dataset: lance.LanceDataset, fragments: Sequence[FragmentMetadata] | None = None) -> set[int]:
        """Numbers of the shards with rows in this version of a table that has a ``shard`` column.

        Args:
            dataset: the version.
            fragments: all that it has, where they are known: each takes Lance some microseconds to tell.

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
    """Numbers of the shards that are done and have no row.

    Raises:
        StoreError: the assets cannot be read.
    """
    dataset = open_checked(uri, ASSETS)
    with lance_errors(f"cannot read the assets of the store at {uri}"):
        names = asset_names(dataset)
    return {int(n.removeprefix(EMPTY_SHARD_PREFIX)) for n in names if n.startswith(EMPTY_SHARD_PREFIX)}


def record_empty(uri: str, shards: set[int]) -> set[int]:
    """Note shards without rows as done; returns those that were not. Two may note the same one: it is a set.

    Raises:
        StoreError: the assets cannot be read or written.
    """
    new = shards - empty_shards(uri) if shards else shards
    note(uri, {f"{EMPTY_SHARD_PREFIX}{shard}": b"" for shard in sorted(new)})
    return new


def note(uri: str, values: Mapping[str, bytes]) -> None:
    """Add assets, but for those whose names are there.

    Raises:
        StoreError: the assets cannot be read or written.
    """
    if not values:
        return
    with lance_errors(f"cannot note shards in the assets of the store at {uri}"):
        held = set(asset_names(open_checked(uri, ASSETS)))
        if new := [name for name in values if name not in held]:
            append_assets(uri, {name: values[name] for name in new})


def emptied_shards(dataset: lance.LanceDataset, rows: np.ndarray) -> set[int]:
    """Numbers of the shards all of whose rows are among these addresses, ``(k,)`` uint64.

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
        begins = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist()]
        lengths = np.diff([*begins, len(shards)])
        for place, length in zip(begins, lengths.tolist(), strict=True):
            held[int(shards[place])] += length
    return {number for number, count in lost.items() if held[number] == count}


def fallbacks(uri: str) -> dict[str, int]:
    """Documents that builds stored by another codec than the store's, by codec.

    Raises:
        StoreError: the assets cannot be read.
    """
    dataset = open_checked(uri, ASSETS)
    # Two drivers may have noted the same shard.
    places = {name: row for row, name in enumerate(asset_names(dataset)) if name.startswith(FALLBACK_PREFIX)}
    counts: Counter[str] = Counter()
    with lance_errors(f"cannot read the assets of the store at {uri}"):
        for value in dataset.take(list(places.values()), columns=["value"]).column(0).to_pylist():
            counts.update(json.loads(value))
    return dict(counts)


def asset_names(dataset: lance.LanceDataset) -> list[str]:
    """Names of the table ``assets``, in the order of its rows.

    Raises:
        StoreError: they cannot be read.
    """
    return [name for _, batch in read_rows(dataset, ["name"]) for name in batch.column(0).to_pylist()]
