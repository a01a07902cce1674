"""The totals of ``memory``, fragment by fragment. Those of a fragment are counted once and kept in a cache.

The cache is the file ``totals-1``: a line for each state of a fragment, its checksum and then JSON. It grows at its end
by lines, so that a commit costs no more in a large store. A damaged line, such as a crash leaves, is ignored.
"""

import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Self

import lance
import numpy as np
import pyarrow as pa
import xxhash
from lance.fragment import FragmentMetadata

from ..table.addresses import MEMORY, data_file_uri
from ..table.datasets import fragments_of, open_data_file
from ..table.failures import lance_errors
from ..table.rows import read_rows, take_rows
from .folders import cache_folders, delete_abandoned, open_file, replace_file, writable_folders
from .names import field_ids, name_of

_FILE = "totals-1"
_NUMBERS = ("tokens_total", "tokens_fed", "n_mem")
_COUNTED = ("shard", *_NUMBERS, "error")
_FIELDS = (*_COUNTED, "payload")
# Former states of fragments that are remembered: a multiple of the number of fragments, and some more.
_STATES, _MORE_STATES = 4, 10_000
# Rows whose numbers are read at a time before they are deleted.
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class FragmentTotals:
    """The totals of the rows of a fragment that are not deleted.

    Attributes:
        rows: number of rows.
        failed: number of those rows with an error instead of memory.
        tokens_total: number of tokens of the documents.
        tokens_fed: number of tokens that the compressor has read.
        n_mem: number of memory tokens.
        shards: number of rows by shard.
        payload_bytes: size of the payloads of all rows on disk, deleted rows included.
    """

    rows: int
    failed: int
    tokens_total: int
    tokens_fed: int
    n_mem: int
    shards: Mapping[int, int]
    payload_bytes: int = 0

    @classmethod
    def of(cls, rows: pa.RecordBatch | pa.Table) -> Self:
        """Count rows that have the columns ``_COUNTED``."""
        shards, counts = np.unique(rows.column("shard").to_numpy(), return_counts=True)
        sums = {name: int(rows.column(name).to_numpy().sum(dtype=np.int64)) for name in _NUMBERS}
        return cls(
            rows=rows.num_rows,
            failed=rows.num_rows - rows.column("error").null_count,
            shards=dict(zip(shards.tolist(), counts.tolist(), strict=True)),
            **sums,
        )

    @classmethod
    def sum(cls, parts: Sequence["FragmentTotals"], payload_bytes: int = 0) -> Self:
        """Add up the totals of parts of a fragment."""
        shards: Counter[int] = Counter()
        for each in parts:
            shards.update(each.shards)
        sums = {name: sum(getattr(each, name) for each in parts) for name in ("rows", "failed", *_NUMBERS)}
        return cls(**sums, shards=dict(shards), payload_bytes=payload_bytes)

    def minus(self, other: "FragmentTotals") -> "FragmentTotals":
        """Return the totals without those of some rows."""
        shards = Counter(self.shards)
        shards.subtract(other.shards)
        rest = {name: getattr(self, name) - getattr(other, name) for name in ("rows", "failed", *_NUMBERS)}
        return replace(self, **rest, shards={shard: rows for shard, rows in shards.items() if rows})

    def to_list(self) -> list[Any]:
        """Return the totals as values for JSON."""
        numbers = [self.rows, self.failed, self.tokens_total, self.tokens_fed, self.n_mem]
        return [*numbers, list(self.shards.items()), self.payload_bytes]

    @classmethod
    def from_list(cls, values: Sequence[Any]) -> Self:
        """Read what ``to_list`` returned.

        Raises:
            ValueError, TypeError: the values have another form.
        """
        rows, failed, tokens_total, tokens_fed, n_mem, shards, payload_bytes = values
        return cls(rows, failed, tokens_total, tokens_fed, n_mem, dict(shards), payload_bytes)


class Totals:
    """The totals of the table ``memory`` of one store, remembered by fragment. Threads may share it.

    Args:
        uri: resolved address of the store.
    """

    def __init__(self, uri: str):
        self._uri = uri
        self._known: dict[str, FragmentTotals] = {}
        # The last result for a whole version, because naming thousands of fragments takes a while.
        self._last: tuple[Any, dict[int, FragmentTotals]] = None, {}
        # Without it, a thread could get the totals of another thread's version.
        self._lock = threading.RLock()

    def of(
        self, dataset: lance.LanceDataset, fragments: Sequence[FragmentMetadata] | None = None
    ) -> dict[int, FragmentTotals]:
        """Return the totals of fragments by their ids, and keep in the cache what had to be counted.

        Args:
            dataset: a version of ``memory``.
            fragments: all fragments of that version, if the caller has them.

        Raises:
            StoreError: a column cannot be read.
        """
        with self._lock:
            if fragments is not None:
                return self._of(dataset, fragments)
            every = dataset.get_fragments()
            # The number alone would be that of another version if the store was deleted and built again.
            version = dataset.version, every[-1].metadata.files[0].path if every else None
            if self._last[0] != version:
                self._last = version, self._of(dataset, [each.metadata for each in every])
            return self._last[1]

    def _of(self, dataset: lance.LanceDataset, fragments: Sequence[FragmentMetadata]) -> dict[int, FragmentTotals]:
        fields = field_ids(dataset, _FIELDS)
        names = {each.id: name_of(each, fields, with_deletions=True) for each in fragments}
        if any(name not in self._known for name in names.values()):
            self._known.update(_read(self._uri))
        if unseen := [each for each in fragments if names[each.id] not in self._known]:
            counted = _count(self._uri, dataset, unseen, fields["payload"])
            self._keep({names[number]: totals for number, totals in counted.items()})
        if len(self._known) > _STATES * len(names) + _MORE_STATES:
            # An update changes thousands of fragments with each commit.
            self._forget_others(names.values())
        return {number: self._known[name] for number, name in names.items()}

    def lost(self, dataset: lance.LanceDataset, addresses: np.ndarray) -> dict[int, FragmentTotals]:
        """Return the totals of rows that are to be deleted, by their fragments.

        Args:
            dataset: a version of ``memory``.
            addresses: addresses of the rows, ``(k,)`` uint64.

        Raises:
            StoreError: a column cannot be read.
        """
        parts: dict[int, list[FragmentTotals]] = {}
        ordered = np.sort(addresses)
        for start in range(0, len(ordered), _ROWS_AT_ONCE):
            own = ordered[start : start + _ROWS_AT_ONCE]
            rows = take_rows(dataset, own, _COUNTED).combine_chunks()
            numbers, begins = np.unique(own >> np.uint64(32), return_index=True)
            for number, begin, end in zip(numbers.tolist(), begins, [*begins[1:], len(own)], strict=True):
                parts.setdefault(number, []).append(FragmentTotals.of(rows.slice(begin, end - begin)))
        return {number: FragmentTotals.sum(each) for number, each in parts.items()}

    def emptied_shards(self, dataset: lance.LanceDataset, lost: Mapping[int, FragmentTotals]) -> set[int]:
        """Return the numbers of the shards that would lose their last row.

        Args:
            dataset: a version of ``memory``.
            lost: totals of the rows to delete, from ``lost``.

        Raises:
            StoreError: a column cannot be read.
        """
        held, going = Counter[int](), Counter[int]()
        for each in self.of(dataset).values():
            held.update(each.shards)
        for each in lost.values():
            going.update(each.shards)
        return {shard for shard, rows in going.items() if held[shard] == rows}

    def keep_rest(
        self, dataset: lance.LanceDataset, lost: Mapping[int, FragmentTotals], kept: Sequence[FragmentMetadata]
    ) -> None:
        """Keep the totals of fragments of which rows are deleted.

        Args:
            dataset: the version of ``memory`` before.
            lost: totals of the deleted rows, from ``lost``.
            kept: fragments of the next version, from ``without_rows``.

        Raises:
            StoreError: a column cannot be read.
        """
        before = self.of(dataset)
        fields = field_ids(dataset, _FIELDS)
        touched = {name_of(each, fields, with_deletions=True): each.id for each in kept if each.id in lost}
        with self._lock:
            self._keep({name: before[number].minus(lost[number]) for name, number in touched.items()})

    def tidy(self, dataset: lance.LanceDataset) -> None:
        """Write the cache anew with the fragments of the latest version only."""
        fields = field_ids(dataset, _FIELDS)
        names = [name_of(each, fields, with_deletions=True) for each in fragments_of(dataset)]
        with self._lock:
            self._known.update(_read(self._uri))
            self._forget_others(names)

    def _forget_others(self, names: Iterable[str]) -> None:
        known = self._known
        self._known = {name: known[name] for name in names if name in known}
        for folder in writable_folders(self._uri):
            delete_abandoned(folder)
            if replace_file(folder / _FILE, lambda file: file.write(_lines(self._known))):
                return

    def _keep(self, new: Mapping[str, FragmentTotals]) -> None:
        self._known.update(new)
        content = _lines(new)
        for folder in writable_folders(self._uri) if new else ():
            with suppress(OSError), open_file(f"{folder}/{_FILE}", os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
                end = file.seek(0, 2)
                file.seek(max(end - 1, 0))
                # A crash may have left the beginning of a line.
                file.write(content if file.read(1) in (b"", b"\n") else b"\n" + content)
                return


def _read(uri: str) -> dict[str, FragmentTotals]:
    """Return the totals in the cache by the names of the fragments' states."""
    known: dict[str, FragmentTotals] = {}
    for folder in cache_folders(uri):
        with suppress(OSError), open_file(f"{folder}/{_FILE}", os.O_RDONLY) as file:
            for line in file.readall().split(b"\n"):
                checksum, _, content = line.partition(b" ")
                if checksum == _checksum(content):
                    # A store from somebody else may have lines of another form.
                    with suppress(ValueError, TypeError, RecursionError):
                        name, *values = json.loads(content)
                        known[name] = FragmentTotals.from_list(values)
    return known


def _count(
    uri: str, dataset: lance.LanceDataset, fragments: Sequence[FragmentMetadata], payload: int
) -> dict[int, FragmentTotals]:
    """Count the rows of fragments that are not deleted."""
    parts: dict[int, list[FragmentTotals]] = {each.id: [] for each in fragments}
    for fragment, batch in read_rows(dataset, _COUNTED, fragments=list(parts)):
        parts[fragment.fragment_id].append(FragmentTotals.of(batch))
    return {each.id: FragmentTotals.sum(parts[each.id], _payload_bytes(uri, each, payload)) for each in fragments}


def _payload_bytes(uri: str, fragment: FragmentMetadata, field: int) -> int:
    """Return the size of a fragment's payloads in its data file."""
    for file in fragment.files:
        if field in file.fields:
            address = data_file_uri(uri, MEMORY, file.path)
            with lance_errors(f"cannot read the sizes of the columns of {address}"):
                columns = open_data_file(address).file_statistics().columns
            return columns[file.column_indices[file.fields.index(field)]].size_bytes
    return 0


def _lines(totals: Mapping[str, FragmentTotals]) -> bytes:
    contents = (json.dumps([name, *each.to_list()], separators=(",", ":")).encode() for name, each in totals.items())
    return b"".join(b"%s %s\n" % (_checksum(content), content) for content in contents)


def _checksum(content: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(content).encode()
