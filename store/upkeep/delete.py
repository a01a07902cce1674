"""Delete: remove documents from a store by id."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

from ...configs.names import MissingIds
from ...errors import CorruptStoreError, MissingDocumentsError, some
from ..ledger import emptied_shards, record_empty
from ..lock import build_lock
from ..plans import mark_altered
from ..store import Store
from ..table.addresses import MEMORY
from ..table.datasets import open_table
from ..table.swap import Proposal, find_rows, swap, without_rows


@dataclass(frozen=True)
class Deletion:
    """The result of a deletion.

    Attributes:
        deleted: number of deleted documents.
        missing: ids that the store did not hold, in the order given.
    """

    deleted: int
    missing: tuple[str, ...]


def delete(uri: str | Path, doc_ids: Iterable[str], *, missing: MissingIds = "error") -> Deletion:
    """Delete documents from a store: all of them in one commit, or none.

    Readers that have the store open can still read them, and their space is in use until ``compact``. A later build of
    a corpus that has such a document stores it again, because a build makes the store equal to its corpus.

    Args:
        uri: address of the store.
        doc_ids: ids in any order; a repeated id counts once.
        missing: treatment of ids that the store does not hold; with ``"error"`` nothing is deleted.

    Raises:
        MissingDocumentsError: the store does not hold some of the ids.
        StoreLockedError: a build is writing the store.
        StoreError: there is no store, or it cannot be written.
    """
    if isinstance(doc_ids, str):
        raise TypeError(f"delete takes a list of ids, not the one id {doc_ids!r}")
    wanted = list(dict.fromkeys(doc_ids))
    store = Store.open(uri)
    with build_lock(store.uri):
        return _delete(store.uri, wanted, missing)


def _delete(uri: str, wanted: list[str], missing: MissingIds) -> Deletion:
    # No store has an id with invalid Unicode, and Arrow cannot hold it.
    ids = pa.array([doc_id for doc_id in wanted if doc_id.encode("utf-8", "ignore").decode() == doc_id], pa.string())
    result = Deletion(0, ())

    def find(dataset: lance.LanceDataset) -> tuple[np.ndarray, list[str], tuple[str, ...]]:
        rows, found = find_rows(dataset, ids)
        if len(set(found)) < len(found):
            raise CorruptStoreError(f"the store at {uri} holds a document twice. Build it again.")
        absent = tuple(doc_id for doc_id in wanted if doc_id not in set(found))
        if absent and missing == "error" and not (result.deleted and not found):
            raise MissingDocumentsError(
                f"the store at {uri} does not hold {len(absent)} of the documents to delete: {some(absent)}. "
                'Nothing was deleted. Check the ids, or skip them (--skip-missing, missing="skip").',
                absent,
            )
        return rows, found, absent

    def propose(dataset: lance.LanceDataset) -> Proposal | None:
        nonlocal result
        rows, found, absent = find(dataset)
        if not found:
            # A commit can succeed and still report an error, so a retry may find the rows already gone.
            return None
        result = Deletion(len(found), absent)
        # Recorded before the rows go: a shard stays done when it loses its last row.
        record_empty(uri, emptied_shards(dataset, rows))
        return Proposal(without_rows(dataset, rows))

    _, found, absent = find(open_table(uri, MEMORY))
    if not found:
        return Deletion(0, absent)
    # Marked before the rows go: a build must not conclude that the store still has its whole corpus.
    mark_altered(uri)
    swap(uri, MEMORY, propose, f"cannot delete documents from the store at {uri}")
    return result
