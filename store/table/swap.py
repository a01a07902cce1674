"""Commit by compare-and-swap: propose a table's next version from its latest one, and propose again after a conflict.

Lance's operation ``Merge`` states all fragments of the next version. Lance refuses it after any other commit of rows,
so a proposal always takes into account what was committed before. ``Append`` does not serve: it never conflicts.
``Merge`` cannot remove fragments, so a proposal that does is an ``Update``. Lance refuses an ``Update`` only if another
commit touched one of the same fragments, so every ``Update`` here touches the first fragment.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import lance
import numpy as np
from lance.fragment import FragmentMetadata
from lance.schema import LanceSchema

from ...errors import StoreError
from .addresses import MEMORY
from .datasets import fragments_of, open_table
from .failures import LANCE_FAILURES, lacking, lance_errors

# Attempts of a commit, with waits that double from the first to the longest: about 6 s in all.
MAX_ATTEMPTS = 12
_FIRST_WAIT_S = 0.01
_LONGEST_WAIT_S = 1.0


@dataclass(frozen=True)
class Proposal:
    """The next version of a table.

    Attributes:
        kept: fragments of the latest version that stay, some of them with more rows deleted.
        added: new fragments.
        metadata: new metadata of the schema, which requires that every fragment is kept; None leaves it as it is.
        schema: new schema, with another column, which requires the same; None leaves it as it is.
        rewritten: names of columns that have other values in the kept fragments. An index on them is then out of step.
    """

    kept: Sequence[FragmentMetadata]
    added: Sequence[FragmentMetadata] = ()
    metadata: Mapping[str, str] | None = None
    schema: LanceSchema | None = None
    rewritten: Sequence[str] = ()


def swap(
    uri: str, table: str, propose: Callable[[lance.LanceDataset], Proposal | None], action: str
) -> lance.LanceDataset | None:
    """Commit a proposal made from a table's latest version; after a failure, make another proposal and try again.

    A commit can succeed and still report an error, so ``propose`` must recognise its own earlier proposals.

    Args:
        uri: address of the store.
        table: name of the table.
        propose: function from the latest version to a proposal, or to None if nothing is left to do.
        action: beginning of the error message, for example "cannot delete …".

    Returns:
        The new version; None if there was nothing to do.

    Raises:
        StoreError: the machine lacks something, such as room on the disk, or all attempts failed.
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
            if lacking(error):
                break
    assert failure is not None
    with lance_errors(action):
        raise failure
    raise AssertionError


def swap_at(uri: str, version: int, propose: Callable[[lance.LanceDataset], Proposal], action: str) -> int | None:
    """Commit a proposal made from a given version of ``memory``, if that is still the latest one.

    Returns:
        Number of the new version; None if there is a later version already.

    Raises:
        StoreError: the machine lacks something, such as room on the disk, or all attempts failed.
    """
    committed = swap(uri, MEMORY, lambda latest: propose(latest) if latest.version == version else None, action)
    # Compared with None because an empty table counts as false.
    return None if committed is None else committed.version


def without_rows(dataset: lance.LanceDataset, addresses: np.ndarray) -> list[FragmentMetadata]:
    """Return the fragments of a version with some rows deleted; a fragment that loses its last row is left out.

    Args:
        dataset: the version.
        addresses: addresses of the rows, ``(k,)`` uint64.

    Raises:
        StoreError: a list of deleted rows cannot be written.
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
    if proposal.rewritten:
        fields = [field.id() for field in dataset.lance_schema.fields() if field.name() in proposal.rewritten]
        changed = [each for each in proposal.kept if each.files != fragments[each.id].metadata.files]
        return lance.LanceOperation.Update(updated_fragments=changed, fields_modified=fields)
    if fragments.keys() == kept:
        schema = proposal.schema or _schema(dataset, proposal.metadata)
        return lance.LanceOperation.Merge([*proposal.kept, *proposal.added], schema)
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
            f"the columns of {dataset.uri} were changed by another tool, so the store can be read but not written. "
            "Build a new store."
        )
    return schema
