"""Which plan a store's rows are built to, and how the next one takes its place.

The schema of ``memory`` names the asset that holds the plan in force, so that rows and plan change in one commit.
"""

from collections.abc import Callable
from uuid import uuid4

import lance
import numpy as np

from ..errors import StoreError
from .ledger import emptied_shards, record_empty
from .store import Store
from .table.addresses import MEMORY, REJECTED
from .table.datasets import append_assets, fragments_of, open_table
from .table.failures import lance_errors
from .table.rows import read_addressed
from .table.swap import Proposal, swap, swap_at, without_rows

PLAN_PREFIX = "plan/"
"""Assets whose names begin so are plans of updates; one counts once ``memory`` names it."""

_PLAN_KEY = "pisco-index:plan"
_ALTERED_KEY = "pisco-index:altered"


def plan_in_force(dataset: lance.LanceDataset) -> str | None:
    """Name of the plan that a version of ``memory`` is built to; None for the one the store was created with."""
    return _metadata(dataset).get(_PLAN_KEY)


def is_altered(dataset: lance.LanceDataset) -> bool:
    """Whether documents were deleted by id, or dropped by a repair, since the plan in force was made."""
    return _ALTERED_KEY in _metadata(dataset)


def require_plan(uri: str, dataset: lance.LanceDataset, plan: str | None) -> None:
    """Check that a plan is in force.

    Raises:
        StoreError: another is.
    """
    if plan_in_force(dataset) != plan:
        raise StoreError(
            f"another build has begun to update the store at {uri}, so what this one did no longer fits. "
            "Run the same command again."
        )


def mark_altered(uri: str) -> None:
    """Note that documents are about to be deleted by id.

    Raises:
        StoreError: it could not be written.
    """

    def propose(dataset: lance.LanceDataset) -> Proposal | None:
        return None if is_altered(dataset) else marked(dataset)

    swap(uri, MEMORY, propose, f"cannot delete documents from the store at {uri}")


def begin_update(store: Store, plan: bytes, gone: np.ndarray) -> bool:
    """Delete the rows that a plan has no place for, and put it in force.

    A crash in between leaves a store from which documents were deleted, and the former plan.

    Args:
        store: opened at the version for which the plan was made.
        plan: what ``plan_in_force`` then names.
        gone: addresses of the rows to delete, ``(k,)`` uint64.

    Returns:
        False where somebody else has changed the store since that version: plan again.

    Raises:
        StoreError: it could not be written.
    """
    uri = store.uri
    name = f"{PLAN_PREFIX}{uuid4().hex}"
    with lance_errors(f"cannot keep the plan of an update in the store at {uri}"):
        append_assets(uri, {name: plan})

    def in_force(dataset: lance.LanceDataset) -> Proposal:
        metadata = {key: value for key, value in _metadata(dataset).items() if key != _ALTERED_KEY}
        return Proposal(fragments_of(dataset), metadata={**metadata, _PLAN_KEY: name})

    steps: list[Callable[[lance.LanceDataset], Proposal]] = [in_force]
    if gone.size:
        record_empty(uri, emptied_shards(store.table, gone))
        steps.insert(0, lambda dataset: Proposal(without_rows(dataset, gone)))
        if not is_altered(store.table):
            steps.insert(0, marked)
    version = store.version
    for step in steps:
        following = swap_at(uri, version, step, f"cannot begin the update of the store at {uri}")
        if following is None:
            # A commit can land and report an error all the same.
            return plan_in_force(open_table(uri, MEMORY)) == name
        version = following
    return True


def forget_rejected(uri: str, before: int) -> None:
    """Drop the rejected records of shards below a number: of plans that are no longer in force.

    Raises:
        StoreError: they cannot be read, or it could not be written.
    """

    def propose(dataset: lance.LanceDataset) -> Proposal | None:
        found = [rows[batch.column(0).to_numpy() < before] for rows, batch in read_addressed(dataset, ["shard"])]
        old = np.concatenate([np.empty(0, np.uint64), *found])
        return Proposal(without_rows(dataset, old)) if old.size else None

    swap(uri, REJECTED, propose, f"cannot drop former rejected records from the store at {uri}")


def marked(dataset: lance.LanceDataset) -> Proposal:
    """A version as it is, but altered."""
    return Proposal(fragments_of(dataset), metadata={**_metadata(dataset), _ALTERED_KEY: "true"})


def _metadata(dataset: lance.LanceDataset) -> dict[str, str]:
    with lance_errors(f"cannot read the schema of {dataset.uri}"):
        metadata = dataset.schema.metadata or {}
        return {key.decode(): value.decode() for key, value in metadata.items()}
