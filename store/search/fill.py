"""Fill the column ``contents`` of a store from texts in any order, in one commit, with bounded memory.

The texts are first spread over temporary files, one for a group of fragments. Each group then fits in memory. A crash
leaves the store as it was.
"""

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import xxhash
from lance.fragment import FragmentMetadata
from lance.schema import LanceSchema

from ...errors import StoreError
from ..hashes import text_hash
from ..schema import CONTENTS, OPTIONAL_COLUMNS
from ..store import Store
from ..table.addresses import MEMORY, local_folder
from ..table.datasets import fragments_of, open_table
from ..table.deletions import open_checked
from ..table.failures import lance_errors
from ..table.rows import read_rows
from ..table.swap import Proposal, swap_at
from .index import has_contents

# Smallest number of rows in a group of fragments, and largest number of groups, each of which keeps a file open.
_GROUP_ROWS = 1 << 17
_GROUPS = 256
# Number of texts that are spread over the groups at a time.
_TEXTS_AT_ONCE = 4096
# Largest number of ids that a report lists; a corpus of another store would have millions.
_LISTED = 1000

_TEMPORARY_PREFIX = "contents-"
_SPILLED = pa.schema([("doc_id", pa.string()), ("text_hash", pa.binary(16)), (CONTENTS, pa.large_string())])


def kept_texts(store: Store) -> Iterator[tuple[str, str, str | None]]:
    """Yield id, text and title of the documents of a store that keeps texts.

    Raises:
        StoreError: the store cannot be read.
    """
    titles = ("title",) if "title" in store.meta.optional_columns else ()
    for _, batch in read_rows(store.table, ["doc_id", "text", *titles], batch_rows=_TEXTS_AT_ONCE):
        for row in batch.to_pylist():
            if row["text"] is not None:
                yield row["doc_id"], row["text"], row.get("title")


@dataclass
class Filled:
    """The result of filling the column ``contents``. Ids are listed up to the thousandth.

    Attributes:
        documents: number of documents without contents before.
        filled: number of those that have contents now.
        missing: number of those that no text was given for.
        changed: number of those whose text is not the one that was compressed.
        missing_ids: ids of missing documents.
        changed_ids: ids of changed documents.
    """

    documents: int = 0
    filled: int = 0
    missing: int = 0
    changed: int = 0
    missing_ids: list[str] = field(default_factory=list)
    changed_ids: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as values for JSON."""
        return asdict(self)

    def add(self, wanted: Sequence[str], found: Collection[str], given: Collection[str]) -> None:
        """Count documents of a group: those without contents, those that get them, and those that a text came for."""
        changed = [doc_id for doc_id in wanted if doc_id in given and doc_id not in found]
        missing = [doc_id for doc_id in wanted if doc_id not in given]
        self.documents += len(wanted)
        self.filled += len(found)
        self.missing += len(missing)
        self.changed += len(changed)
        self.missing_ids += missing[: _LISTED - len(self.missing_ids)]
        self.changed_ids += changed[: _LISTED - len(self.changed_ids)]


def fill_contents(
    uri: str, texts: Iterable[tuple[str, str]], progress: Callable[[int, int], object] | None = None
) -> Filled:
    """Give the documents without contents their texts. A store without the column gets it. The caller holds the lock.

    Args:
        uri: resolved address of the store.
        texts: id and compressed text of documents, in any order. Those that the store lacks are ignored. None is read
            if every document has contents.
        progress: callback that is given the number of texts that were read, and the number of documents of the store.

    Raises:
        StoreError: the store cannot be read or written, or somebody else changed it meanwhile.
    """
    table = open_checked(uri, MEMORY)
    if has_contents(table):
        with lance_errors(f"cannot read the contents of documents of the store at {uri}"):
            if not table.count_rows(f"{CONTENTS} IS NULL"):
                return Filled()
    elif not table.get_fragments():
        with lance_errors(f"cannot add a column to the store at {uri}"):
            table.add_columns(OPTIONAL_COLUMNS[CONTENTS])
        return Filled()
    filled = Filled()
    groups = _Groups(table)
    with _temporary_folder(uri) as folder:
        groups.spread(texts, folder, progress)
        changed: dict[int, FragmentMetadata] = {}
        schema: LanceSchema | None = None
        for number, fragments in enumerate(groups.fragments):
            spilled = _read_spilled(folder / str(number))
            for fragment, metadata, new in _fill_group(uri, table, fragments, spilled, filled):
                changed[fragment], schema = metadata, new
    if changed:
        _commit(uri, table, changed, schema)
    return filled


class _Groups:
    """The fragments of a table in groups, and the hashes by which a document's group is found: 10 bytes per document.

    Attributes:
        fragments: numbers of the fragments of each group.
    """

    def __init__(self, table: lance.LanceDataset):
        total = table.count_rows()
        size = max(_GROUP_ROWS, -(-total // _GROUPS))
        self.fragments: list[list[int]] = []
        self._total = total
        hashes, groups = np.empty(total, np.uint64), np.empty(total, np.uint16)
        end = held = 0
        for fragment in table.get_fragments():
            if not self.fragments or held >= size:
                self.fragments.append([])
                held = 0
            self.fragments[-1].append(fragment.fragment_id)
            for _, batch in read_rows(table, ["doc_id"], fragments=[fragment.fragment_id]):
                start, end = end, end + batch.num_rows
                hashes[start:end] = _hashes(batch.column(0).to_pylist())
                groups[start:end] = len(self.fragments) - 1
                held += batch.num_rows
        order = np.argsort(hashes)
        self._hashes, self._groups = hashes[order], groups[order]

    def spread(
        self, texts: Iterable[tuple[str, str]], folder: Path, progress: Callable[[int, int], object] | None
    ) -> None:
        """Write the texts of the table's documents to one Arrow file per group."""
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        read = 0
        with ExitStack() as stack:
            writers: dict[int, Any] = {}
            for batch in _batches(texts):
                read += len(batch)
                for group, chosen in self._groups_of([doc_id for doc_id, _ in batch]):
                    if group not in writers:
                        path = str(folder / str(group))
                        writers[group] = stack.enter_context(pa.ipc.new_stream(path, _SPILLED, options=options))
                    ids, contents = zip(*(batch[place] for place in chosen), strict=True)
                    columns = [ids, list(map(text_hash, contents)), contents]
                    writers[group].write_table(pa.table(columns, schema=_SPILLED))
                if progress is not None:
                    progress(min(read, self._total), self._total)

    def _groups_of(self, doc_ids: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
        """Yield the groups that may hold some of these documents, each with the places of those documents."""
        wanted = _hashes(doc_ids)
        begin = np.searchsorted(self._hashes, wanted, "left")
        end = np.searchsorted(self._hashes, wanted, "right")
        chosen: dict[int, list[int]] = {}
        for place in np.flatnonzero(end > begin).tolist():
            # Documents that share a hash may be in several groups; ids are compared later.
            for group in set(self._groups[begin[place] : end[place]].tolist()):
                chosen.setdefault(group, []).append(place)
        yield from chosen.items()


def _batches(texts: Iterable[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], ...]]:
    """Yield texts in batches."""
    iterator = iter(texts)
    while batch := tuple(islice(iterator, _TEXTS_AT_ONCE)):
        yield batch


def _hashes(doc_ids: Sequence[str]) -> np.ndarray:
    encoded = (doc_id.encode() for doc_id in doc_ids)
    return np.fromiter(map(xxhash.xxh3_64_intdigest, encoded), dtype=np.uint64, count=len(doc_ids))


def _read_spilled(path: Path) -> pa.Table:
    if not path.exists():
        return _SPILLED.empty_table()
    with pa.ipc.open_stream(str(path)) as reader:
        return reader.read_all()


def _fill_group(
    uri: str, table: lance.LanceDataset, fragments: list[int], spilled: pa.Table, filled: Filled
) -> Iterator[tuple[int, FragmentMetadata, LanceSchema | None]]:
    """Write the contents of a group's fragments to new files.

    Yields:
        The number of a changed fragment, its new metadata, and the schema with the column if that is new.
    """
    given = zip(spilled.column("doc_id").to_pylist(), spilled.column("text_hash").to_pylist(), strict=True)
    places = {pair: place for place, pair in enumerate(given)}
    given_ids = {doc_id for doc_id, _ in places}
    all_fragments = {each.fragment_id: each for each in table.get_fragments()}
    is_new = not has_contents(table)
    columns = ["doc_id", "text_hash", *(() if is_new else (CONTENTS,))]
    for number in fragments:
        wanted: dict[str, bytes] = {}
        for _, batch in read_rows(table, columns, fragments=[number]):
            rows = batch if is_new else batch.filter(batch.column(2).is_null())
            wanted.update(zip(rows.column(0).to_pylist(), rows.column(1).to_pylist(), strict=True))
        found = {pair[0]: places[pair] for pair in wanted.items() if pair in places}
        filled.add(list(wanted), found.keys(), given_ids)
        if not found:
            # Lance reads a column that the files of a fragment lack as null.
            continue
        own = spilled.take(pa.array(found.values(), pa.int64())).select(["doc_id", CONTENTS])
        with lance_errors(f"cannot write the contents of documents of the store at {uri}"):
            if is_new:
                yield (number, *all_fragments[number].merge(own, "doc_id"))
            else:
                yield number, all_fragments[number].update_columns(own, "doc_id")[0], None


def _commit(uri: str, table: lance.LanceDataset, changed: dict[int, FragmentMetadata], schema: Any) -> None:
    def propose(latest: lance.LanceDataset) -> Proposal:
        kept = [changed.get(each.id, each) for each in fragments_of(latest)]
        return Proposal(kept, schema=schema, rewritten=() if schema else (CONTENTS,))

    if swap_at(uri, table.version, propose, f"cannot add the contents of documents to the store at {uri}") is None:
        # A commit can succeed and still report an error, so a retry may find its own commit.
        present = {file.path for each in fragments_of(open_table(uri, MEMORY)) for file in each.files}
        if any(file.path not in present for each in changed.values() for file in each.files):
            raise StoreError(f"the store at {uri} was changed while its documents were read. Run the command again.")


@contextmanager
def _temporary_folder(uri: str) -> Iterator[Path]:
    """Make a folder for texts beside the store's tables, where there is room. Those of dead processes are deleted."""
    store = local_folder(uri)
    if store is not None:
        for left in store.glob(f".{_TEMPORARY_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)
    prefix = _TEMPORARY_PREFIX if store is None else f".{_TEMPORARY_PREFIX}"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=store) as folder:
        yield Path(folder)
