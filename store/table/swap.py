"""Commits as compare-and-swap: a table's next version is proposed from its latest, and looked at anew on any conflict.

Lance's operation ``Merge`` states all fragments of the next version, and is refused after any other commit of rows, so
whoever proposes has seen all there is. ``Append`` would not do: it never conflicts. Where a fragment goes, ``Merge``
cannot say so and ``Update`` does. It conflicts with what touched the same fragments, so each of these touches the
first one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import FragmentMetadata
from lance.schema import LanceSchema

from ...errors import StoreError
from .addresses import MEMORY
from .datasets import fragments_of, open_table
from .failures import LANCE_FAILURES, is_disk_full, lance_errors
from .rows import read_addressed

MAX_ATTEMPTS = 12
_FIRST_WAIT_S = 0.01
_LONGEST_WAIT_S = 1.0

_SEARCHED_ROWS = 1 << 20


@dataclass(frozen=True)
class Proposal:
    """The next version of a table.

    Attributes:
        kept: the fragments of the latest version that stay, some with further rows deleted.
        added: new ones.
        metadata: what the schema says from then on, where every fragment is kept; None leaves it as it is.
    """

    kept: Sequence[FragmentMetadata]
    added: Sequence[FragmentMetadata] = ()
    metadata: Mapping[str, str] | None = None


def swap(
    uri: str, table: str, propose: Callable[[lance.LanceDataset], Proposal | None], action: str
) -> lance.LanceDataset | None:
    """Commit what is proposed from a table's latest version; on any failure propose again.

    A commit can land and report an error all the same, so ``propose`` must recognise what it has proposed before.

    Args:
        uri: of the store.
        table: its name.
        propose: given the latest version; None where there is nothing left to do.
        action: what fails, for the error.

    Returns:
        The new version; None where there was nothing to do.

    Raises:
        StoreError: the disk is full, or the table could not be written in many attempts.
    """
    failure: Exception | None = None
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            time.sleep(min(_FIRST_WAIT_S * 2**attempt, _LONGEST_WAIT_S))
        dataset = open_table(uri, table)
        proposal = propose(dataset)
        if proposal is None:
            return None
        operation = _operation(dataset, proposal)
        try:
            return lance.LanceDataset.commit(dataset, operation, read_version=dataset.version, max_retries=0)
        except LANCE_FAILURES as error:
            failure = error
            if is_disk_full(error):
                break
    assert failure is not None
    with lance_errors(action):
        raise failure
    raise AssertionError


def swap_at(uri: str, version: int, propose: Callable[[lance.LanceDataset], Proposal], action: str) -> int | None:
    """Commit what is proposed from one version of ``memory`` only.

    Returns:
        The new version; None where another came first.

    Raises:
        StoreError: as ``swap`` raises it.
    """
    committed = swap(uri, MEMORY, lambda latest: propose(latest) if latest.version == version else None, action)
    # An empty table is false.
    return None if committed is None else committed.version


def find_rows(dataset: lance.LanceDataset, doc_ids: pa.Array) -> tuple[np.ndarray, list[str]]:
    """Addresses ``(k,)`` uint64 and ids of the rows that have one of these ids, in the order of the table.

    It reads the column of ids and compares every one.

    Raises:
        StoreError: it cannot be read.
    """
    addresses: list[np.ndarray] = []
    found: list[str] = []
    pending: list[pa.RecordBatch] = []
    held = 0

    def search() -> None:
        nonlocal held
        rows = pa.Table.from_batches(pending)
        is_wanted = pc.call_function("is_in", [rows.column("doc_id")], pc.SetLookupOptions(doc_ids))
        hits = rows.filter(is_wanted)
        addresses.append(hits.column("_rowaddr").to_numpy())
        found.extend(hits.column("doc_id").to_pylist())
        pending.clear()
        held = 0

    # Many batches are searched at a time: the hash table of the ids is made anew for each search.
    for own, batch in read_addressed(dataset, ["doc_id"]):
        pending.append(batch.append_column("_rowaddr", pa.array(own)))
        held += batch.num_rows
        if held >= _SEARCHED_ROWS:
            search()
    if pending:
        search()
    return np.concatenate([np.empty(0, np.uint64), *addresses]), found


def without_rows(dataset: lance.LanceDataset, addresses: np.ndarray) -> list[FragmentMetadata]:
    """All fragments of a version but for some rows, ``(k,)`` uint64; one that loses its last row is left out.

    Raises:
        StoreError: the rows' deletion cannot be written.
    """
    if not addresses.size:
        return fragments_of(dataset)
    ordered = np.sort(addresses)
    numbers, begins = np.unique(ordered >> np.uint64(32), return_index=True)
    offsets = dict(zip(numbers.tolist(), np.split(ordered & np.uint64(0xFFFFFFFF), begins[1:]), strict=True))
    fragments = []
    with lance_errors(f"cannot write which rows of {dataset.uri} are deleted"):
        for fragment in dataset.get_fragments():
            deleted = offsets.get(fragment.fragment_id)
            kept = fragment.metadata if deleted is None else fragment.delete_rows(deleted.tolist())
            if kept is not None:
                fragments.append(kept)
    return fragments


def _operation(dataset: lance.LanceDataset, proposal: Proposal) -> lance.LanceOperation.BaseOperation:
    fragments = {fragment.fragment_id: fragment for fragment in dataset.get_fragments()}
    kept = {fragment.id for fragment in proposal.kept}
    if fragments.keys() == kept:
        return lance.LanceOperation.Merge([*proposal.kept, *proposal.added], _schema(dataset, proposal.metadata))
    assert proposal.metadata is None
    before = {number: fragments[number].metadata.deletion_file for number in kept}
    touched = {each.id for each in proposal.kept if each.deletion_file != before[each.id]}
    touched.add(min(fragments))
    return lance.LanceOperation.Update(
        removed_fragment_ids=sorted(fragments.keys() - kept),
        updated_fragments=[each for each in proposal.kept if each.id in touched],
        new_fragments=list(proposal.added),
    )


def _schema(dataset: lance.LanceDataset, metadata: Mapping[str, str] | None) -> LanceSchema:
    if metadata is None:
        return dataset.lance_schema
    schema = LanceSchema.from_pyarrow(dataset.schema.with_metadata(dict(metadata)))
    if [field.id() for field in schema.fields()] != [field.id() for field in dataset.lance_schema.fields()]:
        raise StoreError(
            f"the columns of {dataset.uri} were changed by another tool, and it can only be read as it is. "
            "Build a new store."
        )
    return schema
