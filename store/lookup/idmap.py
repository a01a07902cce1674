"""The id map of a version, which finds rows by document id. It consists of segments, each a file for some data files.

A version with new data files adds a small segment, and does not write the others again. So that a look-up searches few
segments, a new segment takes in each segment that has at most ``GROWTH`` times the rows of the new one, the smallest
first. The sizes then grow by more than ``GROWTH`` from one segment to the next: 25 million documents have at most
9 segments, and a row is written again at most about 9 times, however many updates there are. A segment also moves into
the new one if the version has less than half of its rows.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
import xxhash

from .segments import Part, Segment

GROWTH = 8
"""Largest number of times that a segment may have the rows of a new one and still be taken into it."""

# Seed of the hash. It makes the hash independent of the one in a payload's header, so that both together distinguish
# ids by 96 bits.
_SEED = 0x706973636F


class Share(NamedTuple):
    """The share that a version has in a segment.

    Attributes:
        segment: the segment.
        has: True for each part of it that counts: the version has its fragment, and no segment before has it.
        rows: number of rows in these parts.
    """

    segment: Segment
    has: tuple[bool, ...]
    rows: int


class IdMap:
    """Positions of rows by document id, in one version. The map is read-only, so threads may share it.

    The positions of the second segment begin after those of the first, and so on.

    Args:
        segments: segments that may have rows of the version.
        keys: keys of the version's fragments.

    Attributes:
        shares: the segments that have rows of the version, those with most of them first.
        lacking: keys of the fragments that no segment has.
    """

    def __init__(self, segments: Iterable[Segment], keys: Collection[str]):
        wanted = set(keys)
        counts = [(sum(part.rows for part in each.parts if part.key in wanted), each) for each in segments]
        self.shares: list[Share] = []
        self._begins: list[int] = []
        begin = 0
        for _, segment in sorted(counts, key=lambda pair: pair[0], reverse=True):
            has = tuple(part.key in wanted for part in segment.parts)
            if not any(has):
                continue
            wanted.difference_update(part.key for part in segment.parts)
            rows = sum(part.rows for part, counts_here in zip(segment.parts, has, strict=True) if counts_here)
            self.shares.append(Share(segment, has, rows))
            self._begins.append(begin)
            begin += segment.count
        self.lacking = wanted

    def find(self, doc_ids: Iterable[str]) -> list[int | tuple[int, ...]]:
        """Find the rows that may be those of documents. Some may be in parts that do not count.

        Returns:
            For each id, the position of the row with its hash if there is exactly one; otherwise a tuple of the
            positions of all such rows, which may be empty.

        Raises:
            DamagedMapError: a segment is damaged.
        """
        digest = xxhash.xxh3_64_intdigest
        # As hash_of says, without its call.
        keys = [digest(doc_id.encode("utf-8", "surrogatepass"), _SEED) for doc_id in doc_ids]
        if not self.shares:
            return [()] * len(keys)
        found = self.shares[0].segment.find(keys)
        for share, begin in zip(self.shares[1:], self._begins[1:], strict=True):
            for place, more in enumerate(share.segment.find(keys)):
                if more != ():
                    found[place] = _joined(found[place], more, begin)
        return found


def taken_in(id_map: IdMap, new_rows: int) -> list[Share]:
    """Return the segments of a map that a new segment takes in.

    Args:
        id_map: the map.
        new_rows: number of rows that no segment has yet.
    """
    worn = [share for share in id_map.shares if 2 * share.rows < share.segment.count]
    taken, rows = worn, new_rows + sum(share.rows for share in worn)
    for share in sorted((each for each in id_map.shares if each not in worn), key=lambda each: each.rows):
        if share.rows > GROWTH * rows:
            break
        taken = [*taken, share]
        rows += share.rows
    return taken


def first_positions(share: Share, begin: int) -> tuple[list[Part], list[int | None]]:
    """Return the parts of a share that count, and the first position of each part when they are counted from one on."""
    parts: list[Part] = []
    firsts: list[int | None] = []
    for part, counts in zip(share.segment.parts, share.has, strict=True):
        firsts.append(begin if counts else None)
        if counts:
            parts.append(part)
            begin += part.rows
    return parts, firsts


def hash_of(doc_id: str) -> int:
    """Return the hash of an id in the map. A string that is not valid Unicode has a hash too, but no store holds it."""
    return xxhash.xxh3_64_intdigest(doc_id.encode("utf-8", "surrogatepass"), _SEED)


def hashes_of(doc_ids: Sequence[bytes]) -> np.ndarray:
    """Return the hashes of ids in UTF-8, ``(k,)`` uint64."""
    digests = map(xxhash.xxh3_64_intdigest, doc_ids, repeat(_SEED))
    return np.fromiter(digests, dtype=np.uint64, count=len(doc_ids))


def _joined(found: int | tuple[int, ...], more: int | tuple[int, ...], begin: int) -> int | tuple[int, ...]:
    """Join what a map found so far and what it found in a segment whose positions begin later."""
    if isinstance(more, int):
        more = (more,)
    before = (found,) if isinstance(found, int) else found
    joined = (*before, *(begin + each for each in more))
    return joined[0] if len(joined) == 1 else joined
