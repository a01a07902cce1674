"""Delete: remove documents from a store by id."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import lance
import numpy as np

from ...configs.names import MissingIds
from ...errors import CorruptStoreError, MissingDocumentsError, some
from ..derived.names import state_of
from ..derived.totals import FragmentTotals, Totals
from ..ledger import record_empty
from ..lock import build_lock
from ..lookup.finding import find_rows
from ..plans import mark_altered
from ..store import Store
from ..table.addresses import MEMORY
from ..table.datasets import open_table
from ..table.swap import Proposal, swap, without_rows
from .kept_out import kept_out, note_kept_out, note_let_in


@dataclass(frozen=True)
class Deletion:
    """The result of a deletion.

    Attributes:
        deleted: number of deleted documents.
        missing: ids that the store did not hold, in the order given.
        kept_out: number of documents that the store keeps out from now on.
    """

    deleted: int
    missing: tuple[str, ...]
    kept_out: int = 0


def delete(
    uri: str | Path, doc_ids: Iterable[str], *, missing: MissingIds = "error", keep_out: bool = False
) -> Deletion:
    """Delete documents from a store: all of them in one commit, or none.

    Readers that have the store open can still read them, and their space is in use until ``compact``. A later build of
    a corpus that has such a document stores it again, unless the store keeps it out.

    Args:
        uri: address of the store.
        doc_ids: ids in any order; a repeated id counts once.
        missing: treatment of ids that the store does not hold; with ``"error"`` nothing is deleted.
        keep_out: True to keep the documents out: later builds do not store them, even those that the store does not
            hold now, until ``let_in``. An id that is kept out already is not missing.

    Raises:
        MissingDocumentsError: the store does not hold some of the ids.
        StoreLockedError: a build is writing the store.
        StoreError: there is no store, or it cannot be written.
    """
    wanted = _wanted(doc_ids)
    store = Store.open(uri)
    with build_lock(store.uri):
        return _delete(store.uri, wanted, missing, keep_out=keep_out)


def let_in(uri: str | Path, doc_ids: Iterable[str], *, missing: MissingIds = "error") -> tuple[str, ...]:
    """Keep documents out no longer: the next build of a corpus that has them stores them.

    Args:
        uri: address of the store.
        doc_ids: ids in any order.
        missing: treatment of ids that are not kept out; with ``"error"`` nothing changes.

    Returns:
        The ids that are not kept out any more, in the order given.

    Raises:
        MissingDocumentsError: some of the ids are not kept out.
        StoreLockedError: a build is writing the store.
        StoreError: there is no store, or it cannot be written.
    """
    wanted = _wanted(doc_ids)
    store = Store.open(uri)
    with build_lock(store.uri):
        out = kept_out(store.uri)
        absent = [doc_id for doc_id in wanted if doc_id not in out]
        if absent and missing == "error":
            raise MissingDocumentsError(
                f"the store at {store.uri} does not keep out {len(absent)} of the documents: {some(absent)}. Nothing "
                "was changed. Check the ids, or skip them (--skip-missing).",
                absent,
            )
        changed = tuple(doc_id for doc_id in wanted if doc_id in out)
        if changed:
            # Marked first: a build must not conclude that the store has its whole corpus.
            mark_altered(store.uri)
            note_let_in(store.uri, changed)
        return changed


def _wanted(doc_ids: Iterable[str]) -> list[str]:
    if isinstance(doc_ids, str):
        raise TypeError(f"a list of ids is needed, not the one id {doc_ids!r}")
    return list(dict.fromkeys(doc_ids))


def _delete(uri: str, wanted: list[str], missing: MissingIds, *, keep_out: bool) -> Deletion:
    # No store has an id with invalid Unicode, and Arrow cannot hold it.
    usable = [doc_id for doc_id in wanted if doc_id.encode("utf-8", "ignore").decode() == doc_id]
    totals = Totals(uri)
    out = kept_out(uri) if keep_out else frozenset[str]()
    result = Deletion(0, ())

    searched: list[str] | None = None
    rows, found, lost = np.empty(0, np.uint64), list[str](), dict[int, FragmentTotals]()

    def absent_of(dataset: lance.LanceDataset) -> tuple[str, ...]:
        """Find the rows, and return the ids that have none."""
        nonlocal searched, rows, found, lost
        # Marking the store as altered makes a version with the same rows.
        if (state := state_of(dataset, ["doc_id"])) != searched:
            rows, found = find_rows(uri, dataset, usable)
            lost = totals.lost(dataset, rows)
            searched = state
        if len(set(found)) < len(found):
            raise CorruptStoreError(f"the store at {uri} holds a document twice. Build it again.")
        held = set(found) | out
        absent = tuple(doc_id for doc_id in wanted if doc_id not in held)
        if absent and missing == "error" and not (result.deleted and not found):
            raise MissingDocumentsError(
                f"the store at {uri} does not hold {len(absent)} of the documents to delete: {some(absent)}. "
                "Nothing was deleted. Check the ids, or skip them (--skip-missing).",
                absent,
            )
        return absent

    def propose(dataset: lance.LanceDataset) -> Proposal | None:
        nonlocal result
        absent = absent_of(dataset)
        if not found:
            # A commit can succeed and still report an error, so a retry may find the rows already gone.
            return None
        result = Deletion(len(found), absent)
        # Recorded before the rows go: a shard stays done when it loses its last row.
        record_empty(uri, totals.emptied_shards(dataset, lost))
        kept = without_rows(dataset, rows)
        totals.keep_rest(dataset, lost, kept)
        return Proposal(kept)

    absent = absent_of(open_table(uri, MEMORY))
    new = [doc_id for doc_id in usable if doc_id not in out] if keep_out else []
    if not found and not new:
        return Deletion(0, absent)
    # Marked before the rows go: a build must not conclude that the store still has its whole corpus. It compares the
    # store with what is kept out even if no row goes, because shards that are not done may hold such documents.
    mark_altered(uri)
    note_kept_out(uri, new)
    if found:
        swap(uri, MEMORY, propose, f"cannot delete documents from the store at {uri}")
    return replace(result, missing=absent, kept_out=len(new))
