"""Deleting documents by id."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lance
import numpy as np
import pyarrow as pa

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
    """What a deletion did.

    Attributes:
        deleted: documents that it deleted.
        missing: ids that the store did not hold, in the order given.
    """

    deleted: int
    missing: tuple[str, ...]


def delete(uri: str | Path, doc_ids: Iterable[str], *, missing: Literal["error", "skip"] = "error") -> Deletion:
    """Delete documents from a store: all of them in one commit, or none.

    Readers that have the store open go on reading them. The space is given back by ``compact``. A later build of a
    corpus that holds such a document stores it again: a build makes the store equal to its corpus.

    Args:
        uri: of the store.
        doc_ids: in any order; a repeated id counts once.
        missing: whether ids that the store does not hold are an error, and nothing is deleted, or are left out.

    Raises:
        MissingDocumentsError: the store does not hold some ids.
        StoreLockedError: a build is writing the store.
        StoreError: there is no store, or it cannot be written.
    """
    if isinstance(doc_ids, str):
        raise TypeError(f"delete takes a list of ids, not the one id {doc_ids!r}")
    wanted = list(dict.fromkeys(doc_ids))
    store = Store.open(uri)
    with build_lock(store.uri):
        return _delete(store.uri, wanted, missing)


def _delete(uri: str, wanted: list[str], missing: Literal["error", "skip"]) -> Deletion:
    # An id that is no valid Unicode is in no store, and Arrow cannot hold it.
    ids = pa.array([doc_id for doc_id in wanted if doc_id.encode("utf-8", "ignore").decode() == doc_id], pa.string())
    result = Deletion(0, ())

    def look(dataset: lance.LanceDataset) -> tuple[np.ndarray, list[str], tuple[str, ...]]:
        rows, found = find_rows(dataset, ids)
        if len(set(found)) < len(found):
            raise CorruptStoreError(f"the store at {uri} holds a document twice; build it anew.")
        absent = tuple(doc_id for doc_id in wanted if doc_id not in set(found))
        if absent and missing == "error" and not (result.deleted and not found):
            raise MissingDocumentsError(
                f"the store at {uri} does not hold {len(absent)} of the documents to delete: {some(absent)}. "
                "Nothing was deleted.",
                absent,
            )
        return rows, found, absent

    def propose(dataset: lance.LanceDataset) -> Proposal | None:
        nonlocal result
        rows, found, absent = look(dataset)
        if not found:
            # Perhaps the deletion that reported an error has landed.
            return None
        result = Deletion(len(found), absent)
        # Before the rows go: a shard stays done though it loses its last one.
        record_empty(uri, emptied_shards(dataset, rows))
        return Proposal(without_rows(dataset, rows))

    _, found, absent = look(open_table(uri, MEMORY))
    if not found:
        return Deletion(0, absent)
    # Before the rows go: a build must not take the store for one that holds its corpus.
    mark_altered(uri)
    swap(uri, MEMORY, propose, f"cannot delete documents from the store at {uri}")
    return result
