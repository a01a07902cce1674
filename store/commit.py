"""The driver's side of a build: make written shards visible, each exactly once, even if other drivers commit too.

The driver reads which of its shards the latest version of a table lacks. It then proposes the table's next version: the
fragments of the latest version, without the rows that are replaced, and the fragments of the lacking shards. If another
version appears meanwhile, it begins again.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass

import lance
import pyarrow as pa
from lance.fragment import FragmentMetadata

from ..errors import CorruptStoreError, StoreError
from .derived.row_hashes import RowHashes
from .ledger import empty_shards, record_empty, record_fallbacks
from .lookup.finding import find_rows
from .plans import require_plan
from .store import Store
from .table.addresses import MEMORY, REJECTED, data_file_uri, local_folder
from .table.checksums import record_written
from .table.datasets import fragments_of, open_data_file, open_table
from .table.failures import lance_errors
from .table.files import data_file_problem
from .table.fragment import WrittenShard
from .table.swap import Proposal, swap, without_rows


@dataclass(frozen=True)
class Committed:
    """The result of a commit.

    Attributes:
        new: numbers of the shards that it committed.
        already_done: numbers of the shards that were done before, or that another driver committed meanwhile.
    """

    new: frozenset[int]
    already_done: frozenset[int]


def commit(store: Store, written: Sequence[WrittenShard], plan: str | None = None) -> Committed:
    """Make shards visible, each exactly once. Shards that are done already are skipped.

    The shards of an update replace the former rows of their documents: the new rows come and the old ones go in one
    commit. After any failure, the call can be repeated with the same shards. An opened store does not see the new rows
    until it is refreshed.

    Args:
        store: the store, opened at any version.
        written: the shards; if two have the same number, the first one counts.
        plan: asset name of the update's plan that the shards belong to; None for the store's first plan.

    Raises:
        CorruptStoreError: a data file is missing, short or has other rows. The message names file and shard; nothing of
            the file's table was committed.
        StoreError: the disk is full, the store could not be written in many attempts, or another plan is in force.
    """
    shards = {each.shard: each for each in reversed(written)}
    # Before the commit, so that no crash leaves a committed file without a checksum. The system still caches the files.
    # The end of the build records those that fail here.
    with suppress(OSError):
        record_written(store.uri, _data_paths(shards.values()))
    # Rows in memory make a shard done, so memory comes last.
    _publish(store, REJECTED, {n: _parse(each.rejected_fragments) for n, each in shards.items()})
    others = {n: {c: k for c, k in each.codecs.items() if c != store.meta.codec} for n, each in shards.items()}
    record_fallbacks(store.uri, {n: counts for n, counts in others.items() if counts})
    new = _publish(store, MEMORY, {n: _parse(each.memory_fragments) for n, each in shards.items()}, plan)
    new |= record_empty(store.uri, {n for n, each in shards.items() if not each.memory_fragments})
    return Committed(frozenset(new), frozenset(shards.keys() - new))


def done_shards(store: Store) -> set[int]:
    """Return the numbers of all shards that are done in the latest version of a store.

    Raises:
        StoreError: the store cannot be read.
    """
    return store.ledger.shards(open_table(store.uri, MEMORY)) | empty_shards(store.uri)


def verify_written(store: Store, written: WrittenShard) -> None:
    """Check that the files of a shard are whole, as ``commit`` does before it refers to them.

    Raises:
        CorruptStoreError: a data file is missing, short or has other rows. The message names file and shard.
    """
    _verify(store.uri, REJECTED, written.shard, _parse(written.rejected_fragments))
    _verify(store.uri, MEMORY, written.shard, _parse(written.memory_fragments))


def _publish(
    store: Store, table: str, fragments: Mapping[int, list[FragmentMetadata]], plan: str | None = None
) -> set[int]:
    """Commit the shards that have fragments. Return those whose rows in the table are the ones given here."""
    fragments = {shard: own for shard, own in fragments.items() if own}
    tried: set[int] = set()
    new: set[int] = set()

    def propose(dataset: lance.LanceDataset) -> Proposal | None:
        if table == MEMORY:
            require_plan(store.uri, dataset, plan)
        existing = fragments_of(dataset)
        ledger = store.ledger
        done = ledger.shards(dataset, existing) if table == MEMORY else ledger.rejected_shards(dataset, existing)
        todo = fragments.keys() - done
        # A commit can succeed and still report an error, so shards of a failed attempt may be there already.
        new.clear()
        new.update({shard for shard in tried - todo if _is_among(fragments[shard], existing)} | todo)
        if not todo:
            return None
        for shard in sorted(todo):
            _verify(store.uri, table, shard, fragments[shard])
        tried.update(todo)
        added = [each for shard in sorted(todo) for each in fragments[shard]]
        if table == MEMORY and plan is not None:
            replaced, _ = find_rows(store.uri, dataset, _ids_of(store.uri, added))
            existing = without_rows(dataset, replaced)
            # Totals that cannot be computed now are counted where they are needed.
            with suppress(StoreError):
                ledger.totals.keep_rest(dataset, ledger.totals.lost(dataset, replaced), existing)
        return Proposal(existing, added)

    if fragments:
        action = f"cannot commit shards {sorted(fragments)} to the store at {store.uri}"
        committed = swap(store.uri, table, propose, action)
        # Compared with None because an empty table counts as false.
        if table == MEMORY and committed is not None:
            _derive(store, committed, {file.path for own in fragments.values() for each in own for file in each.files})
    return new


def _derive(store: Store, committed: lance.LanceDataset, names: Set[str]) -> None:
    """Keep the totals and hashes of new data files, while the system still caches these files.

    An object store would have to send the files back, so there only the totals are kept.
    """
    # They are derived again where they are needed.
    with suppress(StoreError):
        store.ledger.totals.of(committed)
        hashes = RowHashes(store.uri, committed)
        # New fragments come last.
        last = committed.get_fragments()[-len(names) :] if local_folder(store.uri) is not None else ()
        for fragment in last:
            if fragment.metadata.files[0].path in names:
                hashes.make(fragment)


def _ids_of(uri: str, fragments: Sequence[FragmentMetadata]) -> list[str]:
    """Read the document ids in fragments that no version refers to yet."""
    names = [file.path for each in fragments for file in each.files]
    with lance_errors(f"cannot read the document ids in the new data files of the store at {uri}"):
        tables = [open_data_file(data_file_uri(uri, MEMORY, name), ["doc_id"]).read_all().to_table() for name in names]
    return pa.concat_tables(tables).column(0).to_pylist()


def _verify(uri: str, table: str, shard: int, fragments: Sequence[FragmentMetadata]) -> None:
    for fragment in fragments:
        for file in fragment.files:
            address = data_file_uri(uri, table, file.path)
            if problem := data_file_problem(address, file.file_size_bytes, fragment.physical_rows):
                raise CorruptStoreError(
                    f"shard {shard} cannot be committed: its data file {address} {problem}. Write the shard again."
                )


def _data_paths(written: Iterable[WrittenShard]) -> set[str]:
    """Return the paths of the shards' data files in the store's folder."""
    return {
        data_file_uri("", table, file.path).removeprefix("/")
        for each in written
        for table, fragments in ((MEMORY, each.memory_fragments), (REJECTED, each.rejected_fragments))
        for fragment in _parse(fragments)
        for file in fragment.files
    }


def _parse(fragments: Sequence[str]) -> list[FragmentMetadata]:
    return [FragmentMetadata.from_json(text) for text in fragments]


def _is_among(fragments: Sequence[FragmentMetadata], existing: Sequence[FragmentMetadata]) -> bool:
    names = {file.path for each in existing for file in each.files}
    return all(file.path in names for each in fragments for file in each.files)
