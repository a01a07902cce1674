"""The versions of a store, and the times and sizes of its last commits."""

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import lance

from .store import Store
from .table.addresses import MEMORY
from .table.datasets import open_table
from .table.failures import lance_errors


@dataclass(frozen=True)
class Commits:
    """The last commits to a store that followed each other without a long pause.

    Attributes:
        first: time of the commit before them, in UTC: the work that they committed began then.
        last: time of the last of them, in UTC.
        shards: numbers of the shards that they committed, except shards without documents.
        documents: number of rows that they added, minus the rows that they deleted.
    """

    first: datetime
    last: datetime
    shards: frozenset[int]
    documents: int

    @property
    def seconds(self) -> float:
        """Time that the commits took; 0 if there are too few commits to tell."""
        return (self.last - self.first).total_seconds()


@dataclass(frozen=True)
class Version:
    """A version of a store.

    Attributes:
        number: number of the version.
        time: time of its commit, in UTC.
        documents: number of its documents.
        bytes: size of its data files.
    """

    number: int
    time: datetime
    documents: int
    bytes: int


def versions(store: Store, most: int = 50) -> list[Version]:
    """Return the last versions of a store up to the opened one, the latest first. ``compact`` removes old ones.

    Raises:
        StoreError: the store cannot be read.
    """
    with lance_errors(f"cannot read the versions of the store at {store.uri}"):
        listed: Any = store.table.versions()
    found = [
        Version(
            number=each["version"],
            time=each["timestamp"].astimezone(UTC),
            documents=int(each["metadata"]["total_rows"]),
            bytes=int(each["metadata"]["total_files_size"]),
        )
        for each in listed
        if each["version"] <= store.version
    ]
    return sorted(found, key=lambda version: -version.number)[:most]


def last_commits(store: Store, most: int = 10, pause: float = 10.0) -> Commits:
    """Return the last commits to a store, from which its build's speed can be computed.

    Args:
        store: the store; later versions than the opened one are ignored.
        most: largest number of commits to return.
        pause: length of a gap that ends them, as a multiple of the median of the gaps after it: no build was running in
            a gap that long.

    Raises:
        StoreError: the store cannot be read.
    """
    with lance_errors(f"cannot read the versions of the store at {store.uri}"):
        # Lance's times are in this machine's time zone, without saying so; its type declarations say something else.
        listed: Any = store.table.versions()
        versions = sorted(((each["version"], each["timestamp"].astimezone(UTC)) for each in listed), reverse=True)
    versions = [each for each in versions if each[0] <= store.version][: most + 1]
    gaps: list[float] = []
    for (_, later), (_, earlier) in pairwise(versions):
        gap = (later - earlier).total_seconds()
        if gaps and gap > pause * sorted(gaps)[len(gaps) // 2]:
            break
        gaps.append(gap)
    (_, last), (number, first) = versions[0], versions[len(gaps)]
    before = open_table(store.uri, MEMORY, number) if gaps else store.table
    new = store.ledger.shards(store.table) - store.ledger.shards(before)
    return Commits(first, last, frozenset(new), _rows(store.table) - _rows(before))


def _rows(table: lance.LanceDataset) -> int:
    with lance_errors(f"cannot count the rows of {table.uri}"):
        return table.count_rows()
