"""Checks of the rows of a store: every file of ``memory`` and ``rejected`` is read, and compared with the plan."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import compress

import lance
import numpy as np
import pyarrow as pa

from ...errors import StoreError
from ..hashes import id_hashes
from ..meta import StoreMeta
from ..schema import CONTENTS, REJECTED_SCHEMA, memory_schema
from ..table.addresses import ASSETS, MEMORY, REJECTED, TABLES
from ..table.failures import lance_errors
from ..table.rows import fragment_name, read_rows
from .check_files import (
    changed_files,
    changed_problem,
    check_other_files,
    fragment_problem,
    note_orphans,
    open_or_report,
    paths_of,
)
from .check_fragment import Checked, FragmentCheck, FragmentChecker, hashes_of
from .check_processes import check_fragments
from .findings import COMPLETE, LISTED, REPAIR, RESTORE, Expectations, Findings, Problem

# Sizes of a store that one process checks in a few seconds, which others take to start.
_FEW_ROWS = 200_000
_FEW_BYTES = 4 << 30


def check_rows(
    findings: Findings,
    expected: Expectations,
    empty: set[int],
    *,
    processes: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Read and check every row of a store whose assets have been checked, and every other file of its tables.

    Memory is bounded by a few batches of rows per process, and 8 bytes per document to find repeated ids; by 4 more for
    each damaged row.

    Args:
        findings: the result of ``check_assets``; what this check finds is added to it.
        expected: expectations of the build about the rows.
        empty: shards that are recorded as empty.
        processes: number of further processes to start, 0 for none; by default one per core if the store is large.
        progress: callback that is given the number of rows read and the total.
    """
    _check_rejected(findings, expected)
    _check_memory(findings, expected, empty, processes, progress)
    check_other_files(findings)


def _check_memory(
    findings: Findings,
    expected: Expectations,
    empty: set[int],
    processes: int | None,
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
    _MemoryCheck(findings, dataset, findings.meta, expected).run(empty, processes, progress)
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


class _MemoryCheck:
    """The check of the table ``memory``."""

    def __init__(self, findings: Findings, dataset: lance.LanceDataset, meta: StoreMeta, expected: Expectations):
        self._findings = findings
        self._dataset = dataset
        self._dim = meta.dim
        self._expected = expected
        self._fragments = dataset.get_fragments()
        # All ids' hashes: 8 bytes per document, in one piece.
        self._hashes = np.empty(sum(map(_live_rows, self._fragments)), np.uint64)

    def run(self, empty: set[int], processes: int | None, progress: Callable[[int, int], object] | None) -> None:
        """Check every file, then the ids and shards of all files together."""
        findings, damage = self._findings, self._findings.damage
        total = len(self._hashes)
        check = FragmentCheck.of(findings, self._dim, self._expected)
        checker = FragmentChecker(check, self._dataset)
        numbers = [fragment.fragment_id for fragment in self._fragments]
        count = self._processes() if processes is None else processes
        for fragment, found in zip(self._fragments, check_fragments(check, checker, numbers, count), strict=True):
            self._merge(fragment, found)
            if progress is not None:
                progress(findings.documents, total)
        self._check_ids()
        self._check_shards(empty)
        if findings.unsearchable:
            findings.notes.append(
                f"{findings.unsearchable:,} documents have no contents, and no search finds them; "
                f"`pisco-index index {findings.uri} CORPUS` adds them"
            )
        done = damage.held.keys() | empty
        findings.shards_done = len(done if self._expected.shards is None else done & self._expected.shards.keys())

    def _processes(self) -> int:
        """Return the number of processes that are worth starting: none for a small store, and one per core."""
        size = sum(file.file_size_bytes or 0 for each in self._fragments for file in each.metadata.files)
        if len(self._hashes) < _FEW_ROWS and size < _FEW_BYTES:
            return 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, len(self._fragments)) if cores > 1 else 0

    def _merge(self, fragment: lance.LanceFragment, found: Checked) -> None:
        findings, damage = self._findings, self._findings.damage
        findings.compared.update(paths_of(MEMORY, fragment))
        findings.add(*found.problems, more=found.problem_count - len(found.problems))
        begin, end = findings.documents, findings.documents + found.rows
        if end > len(self._hashes):
            # A damaged manifest may have too few rows.
            self._hashes.resize(2 * end, refcheck=False)
        self._hashes[begin:end] = found.hashes
        findings.documents = end
        findings.failed_documents += found.failed
        findings.payload_bytes += found.payload_bytes
        findings.unsearchable += found.unsearchable
        damage.held += found.shards
        if found.lost is None:
            damage.drop(fragment.fragment_id, found.damaged, found.damaged_shards)
            damage.changed.update(found.changed)
        else:
            name = fragment_name(fragment)
            damage.lost[fragment.fragment_id] = name
            damage.changed.update(paths_of(MEMORY, fragment))
            damage.held_lost += found.shards
            findings.add(Problem(MEMORY, found.lost, REPAIR, name))

    def _check_ids(self) -> None:
        """Find ids that are in several rows. Their hashes are equal, and other hashes of them too."""
        ordered = self._hashes[: self._findings.documents]
        ordered.sort()
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        del ordered
        self._hashes = np.empty(0, np.uint64)
        if not repeated.size:
            return
        others, addresses = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for fragment in self._fragments:
            for ids, rows in self._sound_ids(fragment):
                is_candidate = np.isin(hashes_of(ids), repeated)
                others.append(id_hashes(compress(ids, is_candidate))[:, 1])
                addresses.append(rows[is_candidate].astype(np.uint64) | np.uint64(fragment.fragment_id << 32))
        _, places, counts = np.unique(np.concatenate(others), return_inverse=True, return_counts=True)
        times = counts[places]
        self._drop_repeated(np.concatenate(addresses)[times > 1], times[times > 1])

    def _sound_ids(self, fragment: lance.LanceFragment) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield ids and numbers of a fragment's rows, in batches, without damaged rows.

        A damaged row may have got the id of another document, whose own row is sound.
        """
        damage, begin = self._findings.damage, 0
        if fragment.fragment_id in damage.lost:
            return
        damaged = damage.rows.get(fragment.fragment_id, np.empty(0, np.uint32))
        try:
            for _, batch in read_rows(self._dataset, ["doc_id"], fragments=[fragment.fragment_id]):
                rows = np.arange(begin, begin + batch.num_rows)
                begin += batch.num_rows
                is_sound = ~np.isin(rows, damaged)
                yield batch.column(0).filter(pa.array(is_sound)).to_pylist(), rows[is_sound]
        except StoreError as error:
            self._findings.add(Problem(MEMORY, str(error), REPAIR, fragment_name(fragment)))

    def _drop_repeated(self, addresses: np.ndarray, times: np.ndarray) -> None:
        """Add rows with repeated ids to the damage, given by fragment and row and by the number of rows of their id."""
        owners = addresses >> np.uint64(32)
        # The rows of a fragment lie together.
        for own in np.split(np.arange(len(owners)), np.flatnonzero(np.diff(owners)) + 1) if len(owners) else ():
            fragment = self._dataset.get_fragment(int(owners[own[0]]))
            assert fragment is not None
            rows = (addresses[own] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
            name = fragment_name(fragment)
            with lance_errors(f"cannot read {name}"):
                shards = fragment.take(rows.tolist(), columns=["shard"]).column(0).to_numpy()
                listed = rows[: max(LISTED - len(self._findings.problems), 0)].tolist()
                ids = fragment.take(listed, columns=["doc_id"]).column(0).to_pylist()
            for row, doc_id, shard, count in zip(listed, ids, shards.tolist(), times[own].tolist(), strict=False):
                what = f"the id is in {count} rows."
                self._findings.add(Problem(MEMORY, what, REPAIR, name, row, doc_id, shard))
            self._findings.add(more=len(rows) - len(listed))
            self._findings.damage.drop(fragment.fragment_id, rows, Counter(shards.tolist()))

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


def _live_rows(fragment: lance.LanceFragment) -> int:
    deleted = fragment.metadata.deletion_file
    # A damaged manifest may lack the number of deleted rows.
    return fragment.physical_rows - ((deleted.num_deleted_rows or 0) if deleted else 0)
