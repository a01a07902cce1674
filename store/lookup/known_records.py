"""The records that a store's plan was made of, so that an update need not clean again those that did not change.

They are an asset beside the plan. Without it, or with a damaged one, an update is slower and does the same.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import xxhash

from ...errors import StoreError
from ..assets import RECORDS_PREFIX
from ..plans import is_altered, is_repaired, plan_in_force
from ..store import Store
from ..table.addresses import REJECTED
from ..table.datasets import open_table
from ..table.failures import lance_errors

_MAGIC = b"PIRECS01"
_DIGEST_BYTES = 16

UNKNOWN = -1
"""Count of a record whose number of documents is unknown."""


class KnownRecords:
    """Records by a key of their source text, and the number of documents that each of them gives.

    Attributes:
        keys: keys, ascending, ``(n,)`` uint64.
        counts: numbers of documents, or ``UNKNOWN``, ``(n,)`` int32.
    """

    def __init__(self, keys: np.ndarray, counts: np.ndarray):
        """Take records in any order."""
        self.keys, first = np.unique(keys.astype(np.uint64), return_index=True)
        self.counts = counts.astype(np.int32)[first]

    @classmethod
    def of(cls, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Self | None:
        """Join the keys and counts of several parts; None if there are no parts."""
        return cls(*map(np.concatenate, zip(*parts, strict=True))) if parts else None

    def __len__(self) -> int:
        return len(self.keys)

    def to_bytes(self) -> bytes:
        """Return the content of the asset."""
        content = self.keys.astype("<u8").tobytes() + self.counts.astype("<i4").tobytes()
        return _MAGIC + xxhash.xxh3_128_digest(content) + content

    @classmethod
    def from_bytes(cls, data: bytes) -> Self | None:
        """Return the records of an asset; None if it is damaged or of a later version."""
        begin = len(_MAGIC) + _DIGEST_BYTES
        content = memoryview(data)[begin:]
        if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : begin] != xxhash.xxh3_128_digest(content):
            return None
        count = len(content) // 12
        return cls(np.frombuffer(content, "<u8", count), np.frombuffer(content, "<i4", count, 8 * count))


def records_asset(plan: str | None) -> str:
    """Return the name of the asset with the records of a plan, by the plan's name; None is the store's first plan."""
    return f"{RECORDS_PREFIX}{plan or 'plan.json'}"


def known_records(store: Store) -> KnownRecords | None:
    """Return the records that the plan in force was made of. All shards of the plan must be done.

    Numbers of documents that are unknown can be found in the rows of the store. Such records are left out where rows
    may be missing.

    Returns:
        None if the store was repaired, or has no such asset (earlier versions wrote none).

    Raises:
        StoreError: the store cannot be read.
    """
    name = records_asset(plan_in_force(store.table))
    # A repair counts shards as done that may never have been written.
    if is_repaired(store.table) or name not in store.asset_names():
        return None
    try:
        known = KnownRecords.from_bytes(store.asset(name))
    except StoreError:
        # Without the asset, an update only does more work.
        return None
    if known is None:
        return None
    with lance_errors(f"cannot read the rejected records of the store at {store.uri}"):
        is_whole = not is_altered(store.table) and not open_table(store.uri, REJECTED).count_rows()
    if not is_whole:
        kept = known.counts != UNKNOWN
        known = KnownRecords(known.keys[kept], known.counts[kept])
    return known if len(known) else None
