"""The plan in force: which plan the rows of a store are built to, and how an update puts the next one in its place.

The schema of ``memory`` names the asset with the plan in force, so rows and plan change in the same commit. It also
records whether the store was altered since, that is, whether rows of the plan were deleted.
"""

from collections.abc import Callable
from uuid import uuid4

import lance
import numpy as np

from ..errors import StoreError
from .assets import PLAN_PREFIX, RECORDS_PREFIX
from .ledger import record_empty
from .store import Store
from .table.addresses import MEMORY, REJECTED
from .table.datasets import append_assets, fragments_of, open_table
from .table.failures import lance_errors
from .table.rows import read_addressed
from .table.swap import Proposal, swap, swap_at, without_rows

_PLAN_KEY = "pisco-index:plan"
_ALTERED_KEY = "pisco-index:altered"
_BY_REPAIR = "repair"


def plan_in_force(dataset: lance.LanceDataset) -> str | None:
    """Return the asset name of the plan that a version of ``memory`` is built to; None for the store's first plan."""
    return _metadata(dataset).get(_PLAN_KEY)


def is_altered(dataset: lance.LanceDataset) -> bool:
    """Return True if a deletion or a repair has removed rows since the plan in force was made."""
    return _ALTERED_KEY in _metadata(dataset)


def is_repaired(dataset: lance.LanceDataset) -> bool:
    """Return True if a repair has removed rows since the plan in force was made. Some of its shards may be undone."""
    return _metadata(dataset).get(_ALTERED_KEY) == _BY_REPAIR


def require_plan(uri: str, dataset: lance.LanceDataset, plan: str | None) -> None:
    """Check that a plan is the one in force.

    Raises:
        StoreError: another plan is in force.
    """
    if plan_in_force(dataset) != plan:
        raise StoreError(
            f"another build has begun to update the store at {uri}, so the shards of this build no longer fit it. "
            "Run the same command again."
        )


def mark_altered(uri: str) -> None:
    """Mark a store as altered, before documents are deleted by id.

    Raises:
        StoreError: the store cannot be written.
    """

    def propose(dataset: lance.LanceDataset) -> Proposal | None:
        return None if is_altered(dataset) else as_altered(dataset)

    swap(uri, MEMORY, propose, f"cannot delete documents from the store at {uri}")


def as_altered(dataset: lance.LanceDataset) -> Proposal:
    """Return a proposal that keeps all rows of a version and marks it as altered."""
    return Proposal(fragments_of(dataset), metadata={**_metadata(dataset), _ALTERED_KEY: "true"})


def as_repaired(dataset: lance.LanceDataset) -> Proposal:
    """Return a proposal that keeps all rows of a version and marks it as altered by a repair."""
    return Proposal(fragments_of(dataset), metadata={**_metadata(dataset), _ALTERED_KEY: _BY_REPAIR})


def begin_update(store: Store, plan: bytes, gone: np.ndarray, records: bytes | None = None) -> bool:
    """Delete the rows of pruned documents, and put the plan of an update in force.

    A crash in between leaves an altered store with the former plan in force.

    Args:
        store: the store, opened at the version for which the plan was made.
        plan: content of the plan, stored as the asset that ``plan_in_force`` then names.
        gone: addresses of the rows to delete, ``(k,)`` uint64.
        records: records that the plan was made of, as ``KnownRecords.to_bytes`` returns them; None keeps none.

    Returns:
        False if somebody else has changed the store since that version: plan again.

    Raises:
        StoreError: the store cannot be written.
    """
    uri, version = store.uri, store.version
    name = f"{PLAN_PREFIX}{uuid4().hex}"
    with lance_errors(f"cannot keep the plan of an update in the store at {uri}"):
        append_assets(uri, {name: plan} | ({f"{RECORDS_PREFIX}{name}": records} if records else {}))
    for step in _update_steps(store, name, gone):
        following = swap_at(uri, version, step, f"cannot begin the update of the store at {uri}")
        if following is None:
            # A commit can succeed and still report an error, so a retry may find its own commit.
            return plan_in_force(open_table(uri, MEMORY)) == name
        version = following
    return True


def _update_steps(store: Store, plan: str, gone: np.ndarray) -> list[Callable[[lance.LanceDataset], Proposal]]:
    """Return the commits of an update's beginning, each to be made from exactly the version that the last one made."""

    def in_force(dataset: lance.LanceDataset) -> Proposal:
        metadata = {key: value for key, value in _metadata(dataset).items() if key != _ALTERED_KEY}
        return Proposal(fragments_of(dataset), metadata={**metadata, _PLAN_KEY: plan})

    if not gone.size:
        return [in_force]
    # Recorded before the rows go: a shard stays done when it loses its last row.
    totals = store.ledger.totals
    lost = totals.lost(store.table, gone)
    record_empty(store.uri, totals.emptied_shards(store.table, lost))

    def without_gone(dataset: lance.LanceDataset) -> Proposal:
        kept = without_rows(dataset, gone)
        totals.keep_rest(dataset, lost, kept)
        return Proposal(kept)

    marked = [] if is_altered(store.table) else [as_altered]
    return [*marked, without_gone, in_force]


def forget_rejected(uri: str, before: int) -> None:
    """Delete the rejected records of former plans, that is, of the shards below a number.

    Raises:
        StoreError: the records cannot be read or written.
    """

    def propose(dataset: lance.LanceDataset) -> Proposal | None:
        found = [rows[batch.column(0).to_numpy() < before] for rows, batch in read_addressed(dataset, ["shard"])]
        old = np.concatenate([np.empty(0, np.uint64), *found])
        return Proposal(without_rows(dataset, old)) if old.size else None

    swap(uri, REJECTED, propose, f"cannot delete former rejected records from the store at {uri}")


def _metadata(dataset: lance.LanceDataset) -> dict[str, str]:
    with lance_errors(f"cannot read the schema of {dataset.uri}"):
        metadata = dataset.schema.metadata or {}
        return {key.decode(): value.decode() for key, value in metadata.items()}
