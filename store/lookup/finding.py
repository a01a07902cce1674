"""Find the rows of documents by their ids, for commits that delete or replace them."""

from collections.abc import Collection, Iterator, Sequence

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import LanceFragment

from ..derived.row_hashes import RowHashes
from ..hashes import id_hashes
from ..table.rows import read_addressed, take_live
from .idcache import cached_map, named_fragments
from .segments import DamagedMapError

# Ids that are looked up in the id map, one by one. For more, it takes less time to go through the hashes of all rows.
_LOOKED_UP = 1 << 17

# Size of the table that excludes most rows at once: bits for the number of ids and 7 more, so that 1 % of the other
# rows pass, within limits that keep the table in the processor's cache.
_SPARE_BITS, _FEWEST_BITS, _MOST_BITS = 7, 12, 22
# Ids that are searched at a time. Arrow builds the hash table of the wanted ids again for each search.
_SEARCHED_ROWS = 1 << 20


def find_rows(uri: str, dataset: lance.LanceDataset, doc_ids: Collection[str]) -> tuple[np.ndarray, list[str]]:
    """Return addresses ``(k,)`` uint64 and ids of the rows that have one of these ids, in the order of addresses.

    The cached id map, or hashes in the cache, find candidates, whose ids are then read and compared. Of fragments that
    neither has, all ids are read.

    Args:
        uri: resolved address of the store.
        dataset: a version of ``memory``.
        doc_ids: the ids.

    Raises:
        StoreError: the ids in the table cannot be read.
    """
    wanted = pa.array(doc_ids, pa.string())
    places, ids = [np.empty(0, np.uint64)], [pa.array([], pa.string())]
    for addresses, found in _candidates(uri, dataset, doc_ids) if doc_ids else ():
        is_wanted = pc.call_function("is_in", [found], pc.SetLookupOptions(wanted))
        places.append(addresses[is_wanted.to_numpy(zero_copy_only=False)])
        ids.append(found.filter(is_wanted))
    addresses = np.concatenate(places)
    order = np.argsort(addresses)
    return addresses[order], pa.concat_arrays(ids).take(pa.array(order)).to_pylist()


def _candidates(
    uri: str, dataset: lance.LanceDataset, doc_ids: Collection[str]
) -> Iterator[tuple[np.ndarray, pa.Array]]:
    """Yield addresses ``(k,)`` and ids of rows that may have one of these ids, ``_SEARCHED_ROWS`` at a time."""
    looked_up, lacking = _looked_up(uri, dataset, doc_ids)
    hashes, unknown = RowHashes(uri, dataset), list[int]()
    filtered = _Filter(id_hashes(doc_ids)[:, 0])
    likely = [looked_up]
    for fragment in lacking:
        kept = hashes.kept(fragment)
        if kept is None:
            unknown.append(fragment.fragment_id)
        elif (rows := filtered.rows(kept.first)).size:
            likely.append(rows | np.uint64(fragment.fragment_id << 32))
    addresses = np.concatenate(likely)
    for start in range(0, len(addresses), _SEARCHED_ROWS):
        live, ids = take_live(dataset, addresses[start : start + _SEARCHED_ROWS], ["doc_id"])
        yield live, ids.column(0).combine_chunks()
    yield from _read(dataset, unknown)


def _looked_up(
    uri: str, dataset: lance.LanceDataset, doc_ids: Collection[str]
) -> tuple[np.ndarray, Sequence[LanceFragment]]:
    """Look ids up in the cached id map.

    Returns:
        Addresses of the rows with their hashes, ``(k,)`` uint64, and the fragments that were not searched.
    """
    nothing = np.empty(0, np.uint64)
    if len(doc_ids) > _LOOKED_UP:
        return nothing, dataset.get_fragments()
    fragments = named_fragments(dataset)
    id_map = cached_map(uri, fragments)
    try:
        found = id_map.find(doc_ids)
    except DamagedMapError:
        return nothing, list(fragments.values())
    # Each part has the first position after it, and the number of its fragment, or -1 if the part does not count.
    parts = [pair for share in id_map.shares for pair in zip(share.segment.parts, share.has, strict=True)]
    sizes = np.array([part.rows for part, _ in parts], np.int64)
    ends = np.cumsum(sizes)
    numbers = np.array([fragments[part.key].fragment_id if counts else -1 for part, counts in parts], np.int64)
    positions = np.array([p for each in found for p in ((each,) if isinstance(each, int) else each)], np.int64)
    owners = np.searchsorted(ends, positions, side="right")
    counts = numbers[owners] >= 0
    positions, owners = positions[counts], owners[counts]
    addresses = (numbers[owners] << 32) | (positions - (ends - sizes)[owners])
    return addresses.astype(np.uint64), [fragments[name] for name in fragments if name in id_map.lacking]


def _read(dataset: lance.LanceDataset, fragments: Sequence[int]) -> Iterator[tuple[np.ndarray, pa.Array]]:
    """Yield addresses and ids of all rows of some fragments."""
    pending: list[tuple[np.ndarray, pa.Array]] = []
    held = 0
    for addresses, batch in read_addressed(dataset, ["doc_id"], fragments=fragments) if fragments else ():
        pending.append((addresses, batch.column(0)))
        held += batch.num_rows
        if held >= _SEARCHED_ROWS:
            yield _joined(pending)
            pending, held = [], 0
    if pending:
        yield _joined(pending)


def _joined(parts: Sequence[tuple[np.ndarray, pa.Array]]) -> tuple[np.ndarray, pa.Array]:
    return np.concatenate([each for each, _ in parts]), pa.concat_arrays([each for _, each in parts])


class _Filter:
    """Finds the rows whose hash is one of some wanted hashes.

    Args:
        wanted: the wanted hashes, at least one, ``(k,)`` uint64.
    """

    def __init__(self, wanted: np.ndarray):
        self._ordered = np.unique(wanted)
        bits = int(np.clip(len(self._ordered).bit_length() + _SPARE_BITS, _FEWEST_BITS, _MOST_BITS))
        self._shift = np.uint64(64 - bits)
        self._is_possible = np.zeros(1 << bits, bool)
        self._is_possible[self._ordered >> self._shift] = True

    def rows(self, hashes: np.ndarray) -> np.ndarray:
        """Return the numbers of the rows with a wanted hash, ``(m,)`` uint64, ascending."""
        # NumPy would first convert unsigned numbers.
        rows = np.flatnonzero(self._is_possible[(hashes >> self._shift).view(np.int64)])
        places = np.searchsorted(self._ordered, hashes[rows])
        places[places == len(self._ordered)] = 0
        return rows[self._ordered[places] == hashes[rows]].astype(np.uint64)
