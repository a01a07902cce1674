"""Repair: drop the damaged rows and files of a store, and mark the store so that the next build refills it."""

from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lance
import numpy as np

from ...errors import StoreError
from ..ledger import record_empty
from ..plans import as_repaired, is_repaired
from ..store import Store
from ..table.addresses import MEMORY, REJECTED
from ..table.checksums import forget_checksums, record_checksums
from ..table.datasets import fragments_of, open_table
from ..table.rows import live_rows
from ..table.swap import Proposal, swap, swap_at, without_rows
from .compact import remove_orphans
from .findings import Damage, Findings


@dataclass(frozen=True)
class Dropped:
    """The rows and files that a repair drops from a store.

    Attributes:
        rows: number of damaged rows in files that stay.
        files: names of the damaged files, each with its table.
        bytes_freed: size of the files that no version refers to any more; None before they are deleted.
        recorded: number of files whose checksums were recorded.
    """

    rows: int
    files: tuple[str, ...]
    bytes_freed: int | None = None
    recorded: int = 0


def damage_to_drop(damage: Damage) -> Dropped:
    """Return the rows and files that a repair of this damage will drop."""
    return Dropped(
        rows=sum(map(len, damage.rows.values())),
        files=(
            *(f"{MEMORY}/{name}" for _, name in sorted(damage.lost.items())),
            *(f"{REJECTED}/{name}" for _, name in sorted(damage.lost_rejected.items())),
            *(path.replace(".lance/", "/", 1) for path in damage.stale),
        ),
    )


def drop_damage(findings: Findings, planned: Collection[int]) -> Dropped:
    """Drop the damaged rows and files of a store, and delete the files that no version refers to any more.

    The caller holds the build lock. As after a deletion by id, the store is then altered: the next build compares all
    of it with the corpus and writes the missing documents. An object store has no lock, so another commit may come in
    between; it is noticed, and nothing of ``memory`` is dropped.

    Args:
        findings: result of a check of the store.
        planned: numbers of the shards of the plan in force.

    Raises:
        StoreError: ``memory`` has changed since it was checked, or a table cannot be written.
    """
    damage, uri = findings.damage, findings.uri
    _delete_stale(uri, damage.stale)
    _drop_rejected(uri, damage.lost_rejected)
    version = findings.version
    if (damage.lost or damage.rows or damage.is_incomplete) and not is_repaired(open_table(uri, MEMORY)):
        version = _step(uri, version, as_repaired)
    if damage.lost or damage.rows:
        record_empty(uri, _emptied(damage, planned))
        _step(uri, version, lambda dataset: _without_damage(dataset, damage))
    freed = remove_orphans(Store.open(uri))
    return replace(damage_to_drop(damage), bytes_freed=freed, recorded=_record(findings))


def _delete_stale(uri: str, paths: Sequence[str]) -> None:
    try:
        for path in paths:
            Path(uri, path).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot delete a damaged file of the store at {uri}: {error}.") from error


def _record(findings: Findings) -> int:
    """Record the checksums of all files that have none, now that they were checked in all other ways."""
    try:
        if findings.checksums.is_damaged:
            forget_checksums(findings.uri)
        return record_checksums(findings.uri, changed=findings.damage.changed)
    except OSError as error:
        raise StoreError(f"cannot record the checksums of the store at {findings.uri}: {error}.") from error


def _emptied(damage: Damage, planned: Collection[int]) -> set[int]:
    """Return the shards to record as empty, because they lose their last row.

    That is safe: the next build compares all documents, even those of finished shards. If files are unreadable, a shard
    without any row counts too, because its rows may have been in those files.
    """
    dropped = damage.dropped + damage.held_lost
    candidates = planned if damage.lost else dropped.keys() & planned
    return {shard for shard in candidates if damage.held[shard] == dropped[shard]}


def _step(uri: str, version: int | None, propose: Callable[[lance.LanceDataset], Proposal]) -> int:
    assert version is not None
    following = swap_at(uri, version, propose, f"cannot drop the damaged rows and files of the store at {uri}")
    if following is None:
        raise StoreError(f"the store at {uri} was changed while it was checked. Run the repair again.")
    return following


def _without_damage(dataset: lance.LanceDataset, damage: Damage) -> Proposal:
    addresses = [
        live_rows(fragment)[damage.rows[fragment.fragment_id]] | np.uint64(fragment.fragment_id << 32)
        for fragment in dataset.get_fragments()
        if fragment.fragment_id in damage.rows
    ]
    kept = without_rows(dataset, np.concatenate([np.empty(0, np.uint64), *addresses]))
    return Proposal([fragment for fragment in kept if fragment.id not in damage.lost])


def _drop_rejected(uri: str, lost: Container[int]) -> None:
    def propose(dataset: lance.LanceDataset) -> Proposal | None:
        fragments = fragments_of(dataset)
        kept = [fragment for fragment in fragments if fragment.id not in lost]
        return None if len(kept) == len(fragments) else Proposal(kept)

    swap(uri, REJECTED, propose, f"cannot drop the damaged rows and files of the store at {uri}")
