"""Which shards are done: the ``shard`` column itself, so that the record cannot disagree with the data."""

from collections.abc import Iterable, Iterator

import lance
import numpy as np

from .tables import ASSETS, lance_errors, open_table

EMPTY_SHARD_PREFIX = "empty-shard/"
"""A shard without a row of memory is done when ``assets`` has this name followed by its number."""


class Ledger:
    """The shards of a table, remembered by data file: files never change, so each is scanned once."""

    def __init__(self):
        self._shards_of_file: dict[str, set[int]] = {}

    def shards(self, dataset: lance.LanceDataset) -> set[int]:
        """Numbers of the shards with rows in this version of a table that has a ``shard`` column.

        Raises:
            StoreError: the column cannot be read.
        """
        file_of_fragment = {f.fragment_id: f.metadata.files[0].path for f in dataset.get_fragments()}
        unseen = [i for i, name in file_of_fragment.items() if name not in self._shards_of_file]
        if unseen:
            scanned = {name: set[int]() for name in map(file_of_fragment.__getitem__, unseen)}
            with lance_errors(f"cannot read the shards of {dataset.uri}"):
                for fragment, shard in _scan(dataset, unseen):
                    scanned[file_of_fragment[fragment]].add(shard)
            self._shards_of_file.update(scanned)
        return set().union(*(self._shards_of_file[name] for name in file_of_fragment.values()))


def empty_shards(uri: str) -> set[int]:
    """Numbers of the shards that are done and have no row.

    Raises:
        StoreError: the assets cannot be read.
    """
    dataset = open_table(uri, ASSETS)
    with lance_errors(f"cannot read the assets of the store at {uri}"):
        names = dataset.to_table(columns=["name"]).column(0).to_pylist()
    return {int(n.removeprefix(EMPTY_SHARD_PREFIX)) for n in names if n.startswith(EMPTY_SHARD_PREFIX)}


def _scan(dataset: lance.LanceDataset, fragments: Iterable[int]) -> Iterator[tuple[int, int]]:
    chosen = [dataset.get_fragment(i) for i in fragments]
    scanner = dataset.scanner(columns=["shard"], fragments=chosen, with_row_address=True)
    for batch in scanner.to_batches():
        shard = batch.column("shard").to_numpy()
        fragment = batch.column("_rowaddr").to_numpy() >> 32
        # Rows of a shard lie together, so the places where a run begins are few.
        begins = np.flatnonzero((np.diff(shard) != 0) | (np.diff(fragment) != 0)) + 1
        for row in (0, *begins.tolist()):
            yield int(fragment[row]), int(shard[row])
