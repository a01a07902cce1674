"""Checks of the rows of a store: every file of ``memory`` and ``rejected`` is read, and compared with the plan."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import lance
import numpy as np
import pyarrow as pa
import xxhash

from ...errors import StoreError
from ..meta import StoreMeta
from ..schema import CONTENTS, REJECTED_SCHEMA, memory_schema
from ..table.addresses import ASSETS, MEMORY, REJECTED, TABLES
from ..table.failures import lance_errors
from ..table.rows import fragment_name, read_rows
from .check_batch import PayloadChecker, column_problems
from .check_files import (
    changed_files,
    changed_problem,
    check_other_files,
    fragment_problem,
    is_file_recorded,
    note_orphans,
    open_or_report,
    paths_of,
)
from .findings import COMPLETE, REPAIR, RESTORE, Expectations, Findings, Problem

# Size of a batch: large enough to hide what each call of Lance costs, small enough to stay in the processor's cache.
_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 1024
# Number of files checked at a time. Lance reads ahead in threads of its own, so a second file is enough to overlap
# reading with checksums.
THREADS = 2


def check_rows(
    findings: Findings,
    expected: Expectations,
    empty: set[int],
    *,
    threads: int = THREADS,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Read and check every row of a store whose assets have been checked, and every other file of its tables.

    Memory is bounded by a few batches of rows per thread, and 8 bytes per document to find repeated ids.

    Args:
        findings: the result of ``check_assets``; what this check finds is added to it.
        expected: expectations of the build about the rows.
        empty: shards that are recorded as empty.
        threads: number of files to check at a time.
        progress: callback that is given the number of rows read and the total.
    """
    _check_rejected(findings, expected)
    _check_memory(findings, expected, empty, threads, progress)
    check_other_files(findings)


def _check_memory(
    findings: Findings,
    expected: Expectations,
    empty: set[int],
    threads: int,
    progress: Callable[[int, int], object] | None,
) -> None:
    if findings.meta is None:
        findings.notes.append("the rows were not checked, because the store's description cannot be read")
        return
    kept = findings.meta.optional_columns
    searched = memory_schema((*kept, CONTENTS))
    dataset = open_or_report(findings, MEMORY, memory_schema(kept), findings.version, further=searched)
    if dataset is None:
        findings.version = None
        return
    _MemoryCheck(findings, dataset, findings.meta, expected).run(empty, threads, progress)
    for table in TABLES:
        note_orphans(findings, table)


def _check_rejected(findings: Findings, expected: Expectations) -> None:
    dataset = open_or_report(findings, REJECTED, REJECTED_SCHEMA)
    if dataset is None:
        return

    def read(fragment: lance.LanceFragment) -> str | None:
        problem = None
        for _, batch in read_rows(dataset, REJECTED_SCHEMA.names, fragments=[fragment.fragment_id]):
            batch.validate(full=True)
            shards = np.unique(batch.column(0).to_numpy()).tolist()
            if expected.shards is not None and (unknown := [n for n in shards if n >= expected.next]):
                problem = f"holds records of shard {unknown[0]}, which the plan does not have."
        return problem

    for fragment in dataset.get_fragments():
        changed = changed_files(findings, REJECTED, fragment)
        problem = fragment_problem(findings.uri, REJECTED, dataset, fragment, read) or changed_problem(changed)
        if problem is not None:
            file = fragment_name(fragment)
            findings.damage.lost_rejected[fragment.fragment_id] = file
            findings.damage.changed.update(paths_of(REJECTED, fragment))
            findings.add(Problem(REJECTED, problem, "`pisco-index repair` drops it: these are reports only.", file))


@dataclass
class _File:
    """The contents of one data file of ``memory``, if it could be read.

    Attributes:
        fragment: the fragment whose file it is.
        hashes: hashes of the ids, in batches.
        shards: number of rows of each shard.
        rows: number of rows that were read.
        failed: number of those rows with an error instead of memory.
        payload_bytes: size of the payloads.
        unsearchable: number of rows without contents, if the store has the column.
        lost: reason why the file cannot be read, as a sentence without a subject; None if it can.
        problems: descriptions of the problems of single rows.
        damaged: shards of the damaged rows, by number of the row.
        changed: problems of the fragment's files that fail their checksums, by path in the store's folder.
    """

    fragment: lance.LanceFragment
    hashes: list[np.ndarray] = field(default_factory=list)
    shards: Counter[int] = field(default_factory=Counter)
    rows: int = 0
    failed: int = 0
    payload_bytes: int = 0
    unsearchable: int = 0
    lost: str | None = None
    problems: list[Problem] = field(default_factory=list)
    damaged: dict[int, int] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)


class _MemoryCheck:
    """The check of the table ``memory``."""

    def __init__(self, findings: Findings, dataset: lance.LanceDataset, meta: StoreMeta, expected: Expectations):
        self._findings = findings
        self._dataset = dataset
        self._expected = expected
        self._payloads = PayloadChecker(meta.dim, findings.calibrations)
        self._all_columns = dataset.schema.names
        # A title or text that cannot be compared with the hash is read only where no checksum shows that it is right.
        unneeded = ("title", "text") if expected.input_text is None else ()
        self._columns = [name for name in self._all_columns if name not in unneeded]

    def run(self, empty: set[int], threads: int, progress: Callable[[int, int], object] | None) -> None:
        """Check every file, then the ids and shards of all files together."""
        findings, damage = self._findings, self._findings.damage
        fragments = self._dataset.get_fragments()
        total = sum(map(_live_rows, fragments))
        files: list[_File] = []
        with ThreadPoolExecutor(threads) as pool:
            for file in pool.map(self._check_file, fragments):
                files.append(file)
                self._merge(file)
                if progress is not None:
                    progress(findings.documents, total)
        self._check_ids(files)
        self._check_shards(empty)
        if findings.unsearchable:
            findings.notes.append(
                f"{findings.unsearchable:,} documents have no contents, and no search finds them; "
                f"`pisco-index index {findings.uri} CORPUS` adds them"
            )
        done = damage.held.keys() | empty
        findings.shards_done = len(done if self._expected.shards is None else done & self._expected.shards.keys())

    def _merge(self, file: _File) -> None:
        findings, damage = self._findings, self._findings.damage
        findings.add(*file.problems)
        findings.documents += file.rows
        findings.failed_documents += file.failed
        findings.payload_bytes += file.payload_bytes
        findings.unsearchable += file.unsearchable
        damage.held += file.shards
        if file.lost is None:
            self._drop(file, file.damaged)
            damage.changed.update(file.changed)
        else:
            name = fragment_name(file.fragment)
            damage.lost[file.fragment.fragment_id] = name
            damage.changed.update(paths_of(MEMORY, file.fragment))
            damage.held_lost += file.shards
            findings.add(Problem(MEMORY, file.lost, REPAIR, name))

    def _drop(self, file: _File, rows: Mapping[int, int]) -> None:
        if rows:
            self._findings.damage.rows.setdefault(file.fragment.fragment_id, {}).update(rows)

    def _check_file(self, fragment: lance.LanceFragment) -> _File:
        # Compared first, which brings the file into the system's cache.
        file = _File(fragment, changed=changed_files(self._findings, MEMORY, fragment))
        is_recorded = is_file_recorded(self._findings, MEMORY, fragment)
        columns, rows = self._columns if is_recorded else self._all_columns, _batch_rows(fragment)

        def read(fragment: lance.LanceFragment) -> None:
            only = [fragment.fragment_id]
            # The shards are read first and separately: they are then known even if another column is damaged.
            for _, batch in read_rows(self._dataset, ["shard"], fragments=only):
                file.shards.update(_counts(batch.column(0).to_numpy()))
            for _, batch in read_rows(self._dataset, columns, fragments=only, batch_rows=rows):
                self._check_batch(file, batch)

        file.lost = fragment_problem(self._findings.uri, MEMORY, self._dataset, fragment, read)
        if file.lost is None and not file.damaged:
            # The damage lies in a value that nothing else protects, and may be in any row.
            file.lost = changed_problem(file.changed)
        return file

    def _check_batch(self, file: _File, batch: pa.RecordBatch) -> None:
        # Lance does not check what it has read, and pyarrow would follow a damaged offset anywhere.
        batch.validate(full=True)
        columns = {name: batch.column(name) for name in batch.schema.names}
        ids = columns["doc_id"].to_pylist()
        payloads = columns["payload"].to_pylist()
        n_mem = columns["n_mem"].to_numpy()
        file.failed += columns["payload"].null_count
        file.unsearchable += columns[CONTENTS].null_count if CONTENTS in columns else 0
        file.payload_bytes += sum(len(payload) for payload in payloads if payload is not None)
        encoded = (doc_id.encode() for doc_id in ids)
        file.hashes.append(np.fromiter(map(xxhash.xxh3_64_intdigest, encoded), dtype=np.uint64, count=len(ids)))
        name = fragment_name(file.fragment)
        for row, what in (
            *self._payloads.problems(ids, payloads, n_mem),
            *column_problems(columns, ids, n_mem, self._expected),
        ):
            shard = columns["shard"][row].as_py()
            file.damaged[file.rows + row] = shard
            file.problems.append(Problem(MEMORY, what, REPAIR, name, file.rows + row, ids[row], shard))
        file.rows += batch.num_rows

    def _check_ids(self, files: Sequence[_File]) -> None:
        """Find ids that are in several rows. Hashes find the candidates, whose ids are then read and compared."""
        hashes = [np.concatenate(file.hashes) if file.hashes else np.empty(0, np.uint64) for file in files]
        ordered = np.sort(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64)
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not repeated.size:
            return
        places: dict[str, list[tuple[_File, int, int]]] = {}
        for file, own in zip(files, hashes, strict=True):
            damaged = self._findings.damage.rows.get(file.fragment.fragment_id, {})
            for number, doc_id, shard in self._read_ids(file, np.flatnonzero(np.isin(own, repeated)).tolist()):
                # A damaged row may have got the id of another document, whose own row is sound.
                if number not in damaged:
                    places.setdefault(doc_id, []).append((file, number, shard))
        for doc_id, rows in places.items():
            for file, number, shard in rows if len(rows) > 1 else ():
                self._drop(file, {number: shard})
                what = f"the id is in {len(rows)} rows."
                name = fragment_name(file.fragment)
                self._findings.add(Problem(MEMORY, what, REPAIR, name, number, doc_id, shard))

    def _read_ids(self, file: _File, numbers: list[int]) -> list[tuple[int, str, int]]:
        """Read some rows of a file again: number, id and shard of each."""
        if not numbers:
            return []
        name = fragment_name(file.fragment)
        try:
            with lance_errors(f"cannot read {name}"):
                rows = file.fragment.take(numbers, columns=["doc_id", "shard"]).to_pylist()
        except StoreError as error:
            self._findings.add(Problem(MEMORY, str(error), REPAIR, name))
            return []
        return [(number, row["doc_id"], row["shard"]) for number, row in zip(numbers, rows, strict=True)]

    def _check_shards(self, empty: set[int]) -> None:
        findings, damage, planned = self._findings, self._findings.damage, self._expected.shards
        if planned is None:
            return
        for shard in sorted(n for n in empty if n >= self._expected.next):
            what = f"shard {shard} is noted as empty, and the plan does not have it."
            findings.add(Problem(ASSETS, what, RESTORE, shard=shard))
        for shard in sorted(planned.keys() & (damage.held.keys() | empty)):
            rows, records = damage.held[shard], planned[shard]
            if records is not None and rows != records:
                damage.is_incomplete = True
                noted = " is noted as empty and" if shard in empty else ""
                what = f"the shard{noted} has {rows:,} rows; the plan has {records:,} records."
                findings.add(Problem(MEMORY, what, COMPLETE, shard=shard))
        if findings.is_altered:
            what = "documents were deleted, or dropped by a repair, since the plan was made"
            findings.notes.append(f"{what}; the next build stores again those that its corpus has")
        missing = planned.keys() - damage.held.keys() - empty
        if missing:
            findings.notes.append(f"{len(missing):,} of {len(planned):,} shards are not done; the same build does them")


def _batch_rows(fragment: lance.LanceFragment) -> int:
    size = sum(file.file_size_bytes or 0 for file in fragment.metadata.files)
    return int(np.clip(_BATCH_BYTES * max(fragment.physical_rows, 1) // max(size, 1), 1, _BATCH_ROWS))


def _live_rows(fragment: lance.LanceFragment) -> int:
    deleted = fragment.metadata.deletion_file
    # A damaged manifest may lack the number of deleted rows.
    return fragment.physical_rows - ((deleted.num_deleted_rows or 0) if deleted else 0)


def _counts(shards: np.ndarray) -> dict[int, int]:
    numbers, counts = np.unique(shards, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))
