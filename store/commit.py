"""The driver's side of a build: make written shards visible, each exactly once, whoever else commits.

The driver reads which shards the latest version of a table holds, and proposes that version's fragments plus those of
the shards it lacks, less the rows that these replace, as the whole table. Should another version appear meanwhile, it
looks again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lance
import pyarrow as pa
from lance.fragment import FragmentMetadata

from ..errors import CorruptStoreError, StoreError
from .ledger import FALLBACK_PREFIX, empty_shards, note, record_empty
from .plans import require_plan
from .store import Store
from .table.addresses import MEMORY, REJECTED, data_file_uri, local_folder
from .table.datasets import fragments_of, open_data_file, open_table
from .table.failures import is_object_store, lance_errors
from .table.fragment import WrittenShard
from .table.swap import Proposal, find_rows, swap, without_rows


@dataclass(frozen=True)
class Committed:
    """What a commit did.

    Attributes:
        new: shards that it committed.
        already_done: shards that were there before, or that another driver committed meanwhile.
    """

    new: frozenset[int]
    already_done: frozenset[int]


def commit(store: Store, written: Sequence[WrittenShard], plan: str | None = None) -> Committed:
    """Make shards visible, each exactly once; shards that are done already are left alone.

    Shards of an update replace the rows that their documents had before: the new rows and the deletion of the old ones
    are one commit. It can be called again with the same shards after any failure. An opened store does not see them:
    refresh it.

    Args:
        store: the store, opened at any version.
        written: the shards; of two with the same number the first counts.
        plan: name of the update's plan that they are of; None for the plan that the store was created with.

    Raises:
        CorruptStoreError: a data file is missing, short or has other rows; names file and shard. Nothing of its table
            was committed.
        StoreError: the disk is full, the store could not be written in many attempts, or another plan is in force.
    """
    shards = {each.shard: each for each in reversed(written)}
    # A shard is done once its memory is, so that comes last.
    _publish(store, REJECTED, {n: _parse(each.rejected_fragments) for n, each in shards.items()})
    others = {n: {c: k for c, k in each.codecs.items() if c != store.meta.codec} for n, each in shards.items()}
    note(store.uri, {f"{FALLBACK_PREFIX}{n}": json.dumps(counts).encode() for n, counts in others.items() if counts})
    new = _publish(store, MEMORY, {n: _parse(each.memory_fragments) for n, each in shards.items()}, plan)
    new |= record_empty(store.uri, {n for n, each in shards.items() if not each.memory_fragments})
    return Committed(frozenset(new), frozenset(shards.keys() - new))


def done_shards(store: Store) -> set[int]:
    """Numbers of all shards that are done in the latest version of the store.

    Raises:
        StoreError: the store cannot be read.
    """
    return store.ledger.shards(open_table(store.uri, MEMORY)) | empty_shards(store.uri)


def verify_written(store: Store, written: WrittenShard) -> None:
    """Check that a shard's files are whole, as commit does before it refers to them.

    Raises:
        CorruptStoreError: a data file is missing, short or has other rows; names file and shard.
    """
    _verify(store.uri, REJECTED, written.shard, _parse(written.rejected_fragments))
    _verify(store.uri, MEMORY, written.shard, _parse(written.memory_fragments))


def _publish(
    store: Store, table: str, fragments: Mapping[int, list[FragmentMetadata]], plan: str | None = None
) -> set[int]:
    """Commit the shards that have fragments; returns those whose rows are the ones given here and now."""
    fragments = {shard: own for shard, own in fragments.items() if own}
    tried: set[int] = set()
    new: set[int] = set()

    def propose(dataset: lance.LanceDataset) -> Proposal | None:
        if table == MEMORY:
            require_plan(store.uri, dataset, plan)
        existing = fragments_of(dataset)
        todo = fragments.keys() - store.ledger.shards(dataset, existing)
        # A commit that failed may have landed all the same.
        new.clear()
        new.update({shard for shard in tried - todo if _is_among(fragments[shard], existing)} | todo)
        if not todo:
            return None
        for shard in sorted(todo):
            _verify(store.uri, table, shard, fragments[shard])
        tried.update(todo)
        added = [each for shard in sorted(todo) for each in fragments[shard]]
        if table == MEMORY and plan is not None:
            replaced, _ = find_rows(dataset, _ids_of(store.uri, added))
            existing = without_rows(dataset, replaced)
        return Proposal(existing, added)

    if fragments:
        swap(store.uri, table, propose, f"cannot commit shards {sorted(fragments)} to the store at {store.uri}")
    return new


def _ids_of(uri: str, fragments: Sequence[FragmentMetadata]) -> pa.Array:
    """Ids of the documents in data files that no version refers to yet."""
    names = [file.path for each in fragments for file in each.files]
    with lance_errors(f"cannot read the document ids of what was written to the store at {uri}"):
        tables = [open_data_file(data_file_uri(uri, MEMORY, name), ["doc_id"]).read_all().to_table() for name in names]
    return pa.concat_tables(tables).column(0).combine_chunks()


def _verify(uri: str, table: str, shard: int, fragments: Sequence[FragmentMetadata]) -> None:
    for fragment in fragments:
        for file in fragment.files:
            address = data_file_uri(uri, table, file.path)
            problem = _problem(address, file.file_size_bytes, fragment.physical_rows)
            if problem:
                raise CorruptStoreError(
                    f"shard {shard} cannot be committed: its data file {address} {problem}. Write the shard again."
                )


def _problem(address: str, size: int | None, rows: int) -> str | None:
    path = local_folder(address)
    if path is not None:
        if not path.is_file():
            return "is missing"
        if path.stat().st_size != size:
            return f"has {path.stat().st_size} bytes and not {size}"
    try:
        with lance_errors(f"cannot check {address}"):
            found = open_data_file(address).num_rows()
    except StoreError as error:
        if is_object_store(error):
            raise
        return f"cannot be read ({error.__cause__ or error})"
    return None if found == rows else f"has {found} rows and not {rows}"


def _parse(fragments: Sequence[str]) -> list[FragmentMetadata]:
    return [FragmentMetadata.from_json(text) for text in fragments]


def _is_among(fragments: Sequence[FragmentMetadata], existing: Sequence[FragmentMetadata]) -> bool:
    names = {file.path for each in existing for file in each.files}
    return all(file.path in names for each in fragments for file in each.files)
