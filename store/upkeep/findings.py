"""The findings of a check: its problems, the damage that a repair drops, and what the build expects of the store."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..codecs.calibration import Calibration
from ..meta import StoreMeta
from ..search.index import SearchIndex
from ..table.checksums import Checksums

REPAIR = "Run `pisco-index repair` to drop it; the next build of the corpus writes it again."
COMPLETE = "Run `pisco-index repair`. The next build of the corpus then compares every document with the store."
REINDEX = "Run `pisco-index repair` to make the index anew."
DELETE = "No document needs it any more. Run `pisco-index repair` to delete it."
RERECORD = "Run `pisco-index repair` to check everything else, and to record the checksums anew."
RESTORE = "Put the file back from a copy of the store, or build the store again."

# Largest number of problems that a report lists; the others are only counted. A store that is damaged everywhere has
# millions, and a thousand are more than anybody reads.
LISTED = 1000


@dataclass(frozen=True)
class Problem:
    """A defect of a store.

    Attributes:
        table: name of the table that has the problem.
        what: description of the problem.
        remedy: advice on how to solve it.
        file: path of the damaged file within the table's folder, if a single file has the problem.
        row: number of the row among the rows of the file that are not deleted, from 0.
        doc_id: id of the document, as the row has it.
        shard: number of the shard, as the row has it.
    """

    table: str
    what: str
    remedy: str
    file: str | None = None
    row: int | None = None
    doc_id: str | None = None
    shard: int | None = None

    def __str__(self) -> str:
        row = None if self.row is None else f"row {self.row}"
        shard = None if self.shard is None else f"shard {self.shard}"
        document = None if self.doc_id is None else f"document {self.doc_id!r}"
        where = ", ".join(part for part in (self.file, row, document, shard) if part)
        return f"{self.table}{': ' if where else ''}{where}: {self.what} {self.remedy}"


@dataclass(frozen=True)
class Expectations:
    """The rows that a store should hold, according to its build.

    Attributes:
        shards: number of rows of each shard of the plan in force, None for a shard whose number cannot be known. None
            if the plan cannot be read.
        next: number that the next shard of the store will get; the shards of this plan and of former ones lie below.
        n_mem_bounds: function from the tokens fed of k documents, ``(k,)`` int64, to the least and the largest possible
            number of memory tokens of each document, both ``(k,)``. None if unknown.
        input_text: function from the text and title of a document to the text that was compressed. None if the store
            does not keep enough to put that together.
    """

    shards: Mapping[int, int | None] | None = None
    next: int = 0
    n_mem_bounds: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    input_text: Callable[[str, str | None], str] | None = None


@dataclass
class Damage:
    """The damage that a repair has to drop before a build can refill it.

    Attributes:
        lost: data files of ``memory`` that cannot be read, by fragment.
        rows: damaged rows of readable files: by fragment, the numbers of the rows among those that are not deleted,
            ``(k,)`` uint32.
        dropped: number of those rows by shard.
        is_incomplete: True if a finished shard has fewer or more rows than planned.
        held: number of rows of each shard in the readable files.
        held_lost: number of those rows that lie in lost files.
        lost_rejected: data files of ``rejected`` that cannot be read, by fragment.
        is_index_damaged: True if the search index must be made anew.
        changed: files whose recorded checksums count no longer after a repair: the dropped ones, and those that fail
            theirs because of damaged rows. Paths in the store's folder.
        stale: damaged files that no row of the newest versions needs: paths in the store's folder.
    """

    lost: dict[int, str] = field(default_factory=dict)
    rows: dict[int, np.ndarray] = field(default_factory=dict)
    dropped: Counter[int] = field(default_factory=Counter)
    is_incomplete: bool = False
    held: Counter[int] = field(default_factory=Counter)
    held_lost: Counter[int] = field(default_factory=Counter)
    lost_rejected: dict[int, str] = field(default_factory=dict)
    is_index_damaged: bool = False
    changed: set[str] = field(default_factory=set)
    stale: list[str] = field(default_factory=list)

    def drop(self, fragment: int, rows: np.ndarray, shards: Mapping[int, int]) -> None:
        """Add damaged rows of a fragment, ``(k,)`` uint32, that are not among the damaged rows yet.

        Args:
            fragment: id of the fragment.
            rows: numbers of the rows among those that are not deleted.
            shards: number of these rows by shard.
        """
        if rows.size:
            former = self.rows.get(fragment, np.empty(0, np.uint32))
            self.rows[fragment] = np.sort(np.concatenate([former, rows]))
            self.dropped.update(shards)


@dataclass
class Findings:
    """The results of checking a store, collected while the check runs.

    Attributes:
        uri: address of the store.
        meta: description of the store; None if it cannot be read.
        version: version of ``memory`` that is checked; None if it cannot be opened.
        plan: name of the asset with the plan of this version, if an update made the plan.
        is_altered: True if rows were deleted since the plan was made.
        problems: the first problems, at most LISTED.
        problem_count: number of all problems.
        notes: remarks that are worth knowing but are no problems.
        documents: number of rows of ``memory`` that were read.
        failed_documents: number of those rows with an error instead of memory.
        payload_bytes: size of the payloads that were read.
        calibrations: the store's calibrations by the number that payloads refer to; None for a damaged calibration.
        shards_done: number of shards of the plan in force that have rows or are recorded as empty.
        unsearchable: number of rows without contents, in a store that has the column.
        index: the search index; None if the store has none, or it cannot be read.
        damage: the damage that a repair has to drop.
        checksums: recorded checksums of the files.
        compared: files of the newest versions that were compared with their checksums, if these are recorded: paths in
            the store's folder.
        unchecked: sentences about the parts of the store that nothing protects from damage.
    """

    uri: str
    meta: StoreMeta | None = None
    version: int | None = None
    plan: str | None = None
    is_altered: bool = False
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    notes: list[str] = field(default_factory=list)
    documents: int = 0
    failed_documents: int = 0
    payload_bytes: int = 0
    calibrations: dict[int, Calibration | None] = field(default_factory=dict)
    shards_done: int = 0
    unsearchable: int = 0
    index: SearchIndex | None = None
    damage: Damage = field(default_factory=Damage)
    checksums: Checksums = field(default_factory=lambda: Checksums(None))
    compared: set[str] = field(default_factory=set)
    unchecked: list[str] = field(default_factory=list)

    def add(self, *problems: Problem, more: int = 0) -> None:
        """Record problems, and the number of further ones: count all, and list the first ones."""
        self.problem_count += len(problems) + more
        self.problems += problems[: max(LISTED - len(self.problems), 0)]
