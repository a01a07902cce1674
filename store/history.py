"""When a store was committed to, and what: as far as its versions are still there."""

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
    """The last commits to a store that came one soon after the other.

    Attributes:
        first: when the one before them was, in UTC; what they committed took from then on.
        last: when the last one was, in UTC.
        shards: numbers of the shards that they committed, but for those without a document.
        documents: rows that they added, less those that they deleted.
    """

    first: datetime
    last: datetime
    shards: frozenset[int]
    documents: int

    @property
    def seconds(self) -> float:
        """That they took; 0 where no time can be told."""
        return (self.last - self.first).total_seconds()


def last_commits(store: Store, most: int = 10, pause: float = 10.0) -> Commits:
    """What the last commits to a store were, for a speed.

    Args:
        store: looked at up to the version at which it is open.
        most: how many of them.
        pause: a gap so many times as long as the median of those after it ends them: there nothing was built.

    Raises:
        StoreError: the store cannot be read.
    """
    with lance_errors(f"cannot read the versions of the store at {store.uri}"):
        # Their times are this machine's, without a time zone; Lance declares them otherwise.
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
