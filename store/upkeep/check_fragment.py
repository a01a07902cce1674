"""The check of one fragment of ``memory``: its files, and every row in them. It runs in a process of its own or not."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Self

import lance
import numpy as np
import pyarrow as pa
import xxhash

from ..schema import CONTENTS
from ..table.addresses import MEMORY
from ..table.datasets import open_table
from ..table.rows import fragment_name, read_rows
from .check_batch import PayloadChecker, column_problems
from .check_files import changed_files, changed_problem, fragment_problem, is_file_recorded
from .findings import LISTED, REPAIR, Expectations, Findings, Problem

# Size of a batch: large enough to hide what each call of Lance costs, small enough to stay in the processor's cache.
_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 1024


@dataclass
class Checked:
    """The contents of one fragment, if its files could be read.

    Attributes:
        hashes: hashes of the ids, ``(rows,)`` uint64.
        shards: number of rows of each shard.
        rows: number of rows that were read.
        failed: number of those rows with an error instead of memory.
        payload_bytes: size of the payloads.
        unsearchable: number of rows without contents, if the store has the column.
        lost: reason why the files cannot be read, as a sentence without a subject; None if they can.
        problems: problems of single rows, at most LISTED.
        problem_count: number of all problems of single rows.
        damaged: numbers of the damaged rows, ``(k,)`` uint32, ascending.
        damaged_shards: number of damaged rows of each shard.
        changed: problems of the fragment's files that fail their checksums, by path in the store's folder.
    """

    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    shards: Counter[int] = field(default_factory=Counter)
    rows: int = 0
    failed: int = 0
    payload_bytes: int = 0
    unsearchable: int = 0
    lost: str | None = None
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    damaged: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))
    damaged_shards: Counter[int] = field(default_factory=Counter)
    changed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FragmentCheck:
    """Everything that the check of a fragment requires. It can be pickled.

    Attributes:
        findings: uri, version, checksums and calibrations of the store, without what was found.
        dim: width of the store's memory.
        expected: expectations of the build about the rows.
    """

    findings: Findings
    dim: int
    expected: Expectations

    @classmethod
    def of(cls, findings: Findings, dim: int, expected: Expectations) -> Self:
        """Leave out what a check of single rows does not require, because it may be large."""
        own = Findings(
            findings.uri,
            version=findings.version,
            calibrations=findings.calibrations,
            checksums=findings.checksums,
        )
        return cls(own, dim, replace(expected, shards=None if expected.shards is None else {}))

    def open(self) -> "FragmentChecker":
        """Open the table to check its fragments.

        Raises:
            StoreError: the table cannot be read.
        """
        return FragmentChecker(self, open_table(self.findings.uri, MEMORY, self.findings.version))


class FragmentChecker:
    """Checks fragments of ``memory``, one after the other or in several threads.

    Args:
        check: the check.
        dataset: the version of ``memory`` to check.
    """

    def __init__(self, check: FragmentCheck, dataset: lance.LanceDataset):
        self._findings, self._expected = check.findings, check.expected
        self._dataset = dataset
        self._payloads = PayloadChecker(check.dim, check.findings.calibrations)
        self._all_columns = dataset.schema.names
        # A title or text that cannot be compared with the hash is read only where no checksum shows that it is right.
        unneeded = ("title", "text") if check.expected.input_text is None else ()
        self._columns = [name for name in self._all_columns if name not in unneeded]

    def check(self, number: int) -> Checked:
        """Check a fragment by its id.

        Raises:
            StoreError: its files cannot be read for a reason that lies elsewhere, such as the network.
        """
        fragment = self._dataset.get_fragment(number)
        assert fragment is not None
        # Compared first, which brings the file into the system's cache.
        changed = changed_files(self._findings, MEMORY, fragment)
        is_recorded = is_file_recorded(self._findings, MEMORY, fragment)
        columns = self._columns if is_recorded else self._all_columns
        reading = _Reading(fragment_name(fragment), self._payloads, self._expected)

        def read(fragment: lance.LanceFragment) -> None:
            only, batch_rows = [fragment.fragment_id], _batch_rows(fragment)
            # The shards are read first and separately: they are then known even if another column is damaged.
            for _, batch in read_rows(self._dataset, ["shard"], fragments=only):
                reading.checked.shards.update(_counts(batch.column(0).to_numpy()))
            for _, batch in read_rows(self._dataset, columns, fragments=only, batch_rows=batch_rows):
                reading.add(batch)

        lost = fragment_problem(self._findings.uri, MEMORY, self._dataset, fragment, read)
        found = reading.result()
        if lost is None and not found.damaged.size:
            # The damage lies in a value that nothing else protects, and may be in any row.
            lost = changed_problem(changed)
        return replace(found, lost=lost, changed=changed)


class _Reading:
    """Checks the rows of one fragment, batch by batch."""

    def __init__(self, name: str, payloads: PayloadChecker, expected: Expectations):
        self.checked = Checked()
        self._name = name
        self._payloads = payloads
        self._expected = expected
        self._hashes = [self.checked.hashes]
        self._damaged = [self.checked.damaged]

    def add(self, batch: pa.RecordBatch) -> None:
        # Lance does not check what it has read, and pyarrow would follow a damaged offset anywhere.
        batch.validate(full=True)
        columns = {name: batch.column(name) for name in batch.schema.names}
        ids = columns["doc_id"].to_pylist()
        payloads = columns["payload"].to_pylist()
        n_mem = columns["n_mem"].to_numpy()
        found = self.checked
        found.failed += columns["payload"].null_count
        found.unsearchable += columns[CONTENTS].null_count if CONTENTS in columns else 0
        found.payload_bytes += sum(len(payload) for payload in payloads if payload is not None)
        self._hashes.append(hashes_of(ids))
        shards = columns["shard"].to_numpy()
        damaged = np.zeros(len(ids), bool)
        for row, what in (
            *self._payloads.problems(ids, payloads, n_mem),
            *column_problems(columns, ids, n_mem, self._expected),
        ):
            damaged[row] = True
            found.problem_count += 1
            if len(found.problems) < LISTED:
                place = found.rows + row
                found.problems.append(Problem(MEMORY, what, REPAIR, self._name, place, ids[row], int(shards[row])))
        rows = np.flatnonzero(damaged)
        self._damaged.append((found.rows + rows).astype(np.uint32))
        found.damaged_shards.update(_counts(shards[rows]))
        found.rows += batch.num_rows

    def result(self) -> Checked:
        return replace(self.checked, hashes=np.concatenate(self._hashes), damaged=np.concatenate(self._damaged))


def hashes_of(doc_ids: list[str]) -> np.ndarray:
    """Return the hashes by which repeated ids are found, ``(k,)`` uint64."""
    encoded = (doc_id.encode() for doc_id in doc_ids)
    return np.fromiter(map(xxhash.xxh3_64_intdigest, encoded), dtype=np.uint64, count=len(doc_ids))


def _batch_rows(fragment: lance.LanceFragment) -> int:
    size = sum(file.file_size_bytes or 0 for file in fragment.metadata.files)
    return int(np.clip(_BATCH_BYTES * max(fragment.physical_rows, 1) // max(size, 1), 1, _BATCH_ROWS))


def _counts(shards: np.ndarray) -> dict[int, int]:
    numbers, counts = np.unique(shards, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))
