"""Checking a store: every file, row and payload, against each other and against what the build planned."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import xxhash

from ...errors import CorruptStoreError, StoreError
from ..codecs import codec_by_name, is_calibrated
from ..codecs.calibration import CALIBRATION_PREFIX, Calibration, asset_name, reference_of
from ..codecs.payload import decode, decode_batch
from ..ledger import EMPTY_SHARD_PREFIX, FALLBACK_PREFIX
from ..meta import StoreMeta
from ..plans import is_altered, plan_in_force
from ..schema import ASSETS_SCHEMA, REJECTED_SCHEMA, memory_schema
from ..store import META_ASSET
from ..table.addresses import ASSETS, MEMORY, REJECTED, TABLES, data_file_uri, local_folder, resolve_uri, table_uri
from ..table.datasets import find_table, open_data_file, open_table
from ..table.deletions import deletion_file_problem
from ..table.failures import is_not_of_the_file, lance_errors
from ..table.fragment import MAX_ID_BYTES, text_hash
from ..table.pages import row_index_problem
from ..table.rows import fragment_name, read_rows

REPAIR = "`pisco-index repair` drops it; the next build of the corpus writes it again."
COMPLETE = "`pisco-index repair` has the next build of the corpus compare every document with the store."
RESTORE = "Put the file back from a copy of the store, or build the store anew."

# Problems that a report lists; the rest are counted.
LISTED = 1000
# Of a batch: large enough that Lance's cost of a call does not show, small enough for its data to stay in the cache.
_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 1024
# Lance reads ahead with threads of its own; a second one here overlaps that with the checksums.
THREADS = 2


@dataclass(frozen=True)
class Problem:
    """Something in a store that is not as it should be.

    Attributes:
        table: the table it is in.
        what: what is wrong.
        remedy: what to do.
        file: within the table's folder, where it is one file's.
        row: number of the row among the file's rows that are not deleted, from 0.
        doc_id: the document's id as the row has it.
        shard: the shard's number, as the row has it.
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
    """What the build knows of the rows that a store should hold.

    Attributes:
        shards: rows of every shard of the plan in force, None for one where that cannot be known; None for no plan.
        next: number above those of all shards of this and former plans.
        rate: source tokens per memory token, None if unknown.
        input_text: from text and title to what was compressed; None if it cannot be put together from what is stored.
    """

    shards: Mapping[int, int | None] | None = None
    next: int = 0
    rate: int | None = None
    input_text: Callable[[str, str | None], str] | None = None


@dataclass
class Damage:
    """What has to go before a build can refill it.

    Attributes:
        lost: data files of ``memory`` that cannot be read, by fragment.
        rows: damaged rows of other files, by fragment: their shards by number of the row.
        is_incomplete: whether shards that are done have not the rows that they should.
        held: rows of each shard of the plan in force, as far as files tell them.
        held_lost: those of them in lost files.
        lost_rejected: data files of ``rejected`` that cannot be read, by fragment.
    """

    lost: dict[int, str] = field(default_factory=dict)
    rows: dict[int, dict[int, int]] = field(default_factory=dict)
    is_incomplete: bool = False
    held: Counter[int] = field(default_factory=Counter)
    held_lost: Counter[int] = field(default_factory=Counter)
    lost_rejected: dict[int, str] = field(default_factory=dict)


@dataclass
class Findings:
    """What a check of a store found.

    Attributes:
        uri: of the store.
        meta: its description; None if that cannot be read.
        version: of ``memory``; None if that cannot be opened.
        plan: name of the plan that this version is built to, where it is an update's.
        is_altered: whether rows were deleted since that plan was made.
        problems: the first of them, at most LISTED.
        problem_count: all of them.
        notes: what is worth knowing and no problem.
        documents: rows of ``memory`` that were read.
        failed_documents: those of them that have an error and no memory.
        payload_bytes: of the payloads that were read.
        calibrations: what payloads refer to, by number; None for one that is damaged.
        shards_done: shards of the plan in force with rows, or noted as empty.
        damage: what a repair has to drop.
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
    damage: Damage = field(default_factory=Damage)

    def add(self, *problems: Problem) -> None:
        """Take note of problems."""
        self.problem_count += len(problems)
        self.problems += problems[: max(LISTED - len(self.problems), 0)]


def check_assets(uri: str | Path) -> tuple[Findings, dict[str, bytes]]:
    """Read all that a store keeps beside its rows.

    Returns:
        What is wrong with it, and the values by name, those that could be read.

    Raises:
        StoreError: there is no store.
    """
    uri = resolve_uri(uri)
    findings = Findings(uri)
    _require_store(uri)
    # Before the assets, to which nothing is added later that these rows need.
    with suppress(StoreError):
        memory = open_table(uri, MEMORY)
        findings.version, findings.plan = memory.version, plan_in_force(memory)
        findings.is_altered = is_altered(memory)
    values: dict[str, bytes] = {}
    dataset = _open(findings, ASSETS, ASSETS_SCHEMA)
    if dataset is None:
        return findings, values
    repeated: set[str] = set()
    for fragment in dataset.get_fragments():
        file = fragment_name(fragment)
        problem = _file_problem(uri, ASSETS, dataset, fragment)
        if problem is None:
            try:
                for _, batch in read_rows(dataset, ASSETS_SCHEMA.names, fragments=[fragment.fragment_id], batch_rows=1):
                    name, value = batch.column(0)[0].as_py(), batch.column(1)[0].as_py()
                    if name in values and not name.startswith((EMPTY_SHARD_PREFIX, FALLBACK_PREFIX)):
                        repeated.add(name)
                    values[name] = value
            except (StoreError, ValueError) as error:
                if is_not_of_the_file(error):
                    raise
                problem = f"cannot be read ({error})."
        if problem is not None:
            findings.add(Problem(ASSETS, problem, RESTORE, file))
    findings.add(*(Problem(ASSETS, f"the name {name!r} is there twice.", RESTORE) for name in sorted(repeated)))
    for name in (name for name in values if name.startswith(CALIBRATION_PREFIX)):
        reference, calibration = reference_of(values[name]), None
        try:
            if asset_name(reference) != name:
                raise CorruptStoreError(f"{name} fails its checksum.")
            calibration = Calibration.from_bytes(values[name])
        except StoreError as error:
            findings.add(Problem(ASSETS, f"{error} Payloads that need it were not decoded.", RESTORE))
        with suppress(ValueError):
            findings.calibrations[int(name.removeprefix(CALIBRATION_PREFIX), 16)] = calibration
    if META_ASSET not in values:
        findings.add(Problem(ASSETS, "the store's description is not among its assets.", RESTORE))
        return findings, values
    try:
        findings.meta = StoreMeta.from_json(values[META_ASSET], uri)
    except StoreError as error:
        findings.add(Problem(ASSETS, str(error), RESTORE))
        return findings, values
    if is_calibrated(codec_by_name(findings.meta.codec)) and not findings.calibrations:
        what = (
            f"its codec is {findings.meta.codec}, and no calibration is there. No payload that needs one was decoded."
        )
        findings.add(Problem(ASSETS, what, RESTORE))
    return findings, values


def check_rows(
    findings: Findings,
    expected: Expectations,
    empty: set[int],
    *,
    threads: int = THREADS,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Read every row of a store and check it; its assets have been checked.

    Memory stays bounded: some batches of rows a thread, and 8 bytes a document to find repeated ids.

    Args:
        findings: of check_assets; what is found is added to them.
        expected: what the build knows.
        empty: shards that are noted as done without a row.
        threads: files that are checked at a time.
        progress: told how many of how many rows have been read, now and then.
    """
    _check_rejected(findings, expected)
    if findings.meta is None:
        findings.notes.append("without its description nothing else of the store was checked")
        return
    dataset = _open(findings, MEMORY, memory_schema(findings.meta.optional_columns), findings.version)
    if dataset is None:
        findings.version = None
        return
    _Rows(findings, dataset, findings.meta, expected).check(empty, threads, progress)
    for table in TABLES:
        _note_orphans(findings, table)


@dataclass
class _File:
    """What one data file of ``memory`` holds."""

    fragment: lance.LanceFragment
    hashes: list[np.ndarray] = field(default_factory=list)
    shards: Counter[int] = field(default_factory=Counter)
    rows: int = 0
    failed: int = 0
    payload_bytes: int = 0
    lost: str | None = None
    problems: list[Problem] = field(default_factory=list)
    damaged: dict[int, int] = field(default_factory=dict)


class _Rows:
    """Checks the table ``memory``."""

    def __init__(self, findings: Findings, dataset: lance.LanceDataset, meta: StoreMeta, expected: Expectations):
        self._findings = findings
        self._dataset = dataset
        self._meta = meta
        self._expected = expected
        self._columns = [name for name in dataset.schema.names if name not in ("title", "text")]
        if expected.input_text is not None:
            self._columns += [name for name in ("title", "text") if name in dataset.schema.names]

    def check(self, empty: set[int], threads: int, progress: Callable[[int, int], object] | None) -> None:
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
        done = damage.held.keys() | empty
        findings.shards_done = len(done if self._expected.shards is None else done & self._expected.shards.keys())

    def _merge(self, file: _File) -> None:
        findings, damage = self._findings, self._findings.damage
        number = file.fragment.fragment_id
        findings.add(*file.problems)
        findings.documents += file.rows
        findings.failed_documents += file.failed
        findings.payload_bytes += file.payload_bytes
        damage.held += file.shards
        if file.lost is None:
            self._drop(file, file.damaged)
        else:
            name = fragment_name(file.fragment)
            damage.lost[number] = name
            damage.held_lost += file.shards
            findings.add(Problem(MEMORY, file.lost, REPAIR, name))

    def _drop(self, file: _File, rows: Mapping[int, int]) -> None:
        if rows:
            self._findings.damage.rows.setdefault(file.fragment.fragment_id, {}).update(rows)

    def _check_file(self, fragment: lance.LanceFragment) -> _File:
        file = _File(fragment)
        file.lost = _file_problem(self._findings.uri, MEMORY, self._dataset, fragment)
        if file.lost is not None:
            return file
        only, batch_rows = [fragment.fragment_id], _batch_rows(fragment)
        try:
            # By itself first: where other columns are damaged it still tells the shards.
            for _, batch in read_rows(self._dataset, ["shard"], fragments=only):
                file.shards.update(_counts(batch.column(0).to_numpy()))
            for _, batch in read_rows(self._dataset, self._columns, fragments=only, batch_rows=batch_rows):
                self._check_batch(file, batch)
        except (StoreError, ValueError) as error:
            if is_not_of_the_file(error):
                raise
            file.lost = f"cannot be read ({error})."
        return file

    def _check_batch(self, file: _File, batch: pa.RecordBatch) -> None:
        # Lance hands over what it read unchecked; pyarrow would follow an offset anywhere.
        batch.validate(full=True)
        columns = {name: batch.column(name) for name in batch.schema.names}
        ids = columns["doc_id"].to_pylist()
        payloads = columns["payload"].to_pylist()
        stored = [i for i, payload in enumerate(payloads) if payload is not None]
        n_mem = columns["n_mem"].to_numpy()
        file.failed += len(payloads) - len(stored)
        file.payload_bytes += sum(len(payloads[i]) for i in stored)
        encoded = (doc_id.encode() for doc_id in ids)
        file.hashes.append(np.fromiter(map(xxhash.xxh3_64_intdigest, encoded), dtype=np.uint64, count=len(ids)))
        for row, what in (
            *self._payload_problems(stored, ids, payloads, n_mem),
            *_row_problems(columns, ids, n_mem, self._expected),
        ):
            shard = columns["shard"][row].as_py()
            file.damaged[file.rows + row] = shard
            name = fragment_name(file.fragment)
            file.problems.append(Problem(MEMORY, what, REPAIR, name, file.rows + row, ids[row], shard))
        file.rows += batch.num_rows

    def _payload_problems(
        self, stored: Sequence[int], ids: Sequence[str], payloads: Sequence[bytes], n_mem: np.ndarray
    ) -> Iterator[tuple[int, str]]:
        doc_ids = [ids[i] for i in stored]
        try:
            values, lengths = decode_batch([payloads[i] for i in stored], doc_ids, self._calibration)
        except StoreError:
            yield from self._payload_problems_one_by_one(stored, ids, payloads, n_mem)
            return
        if (stored and values.shape[1] != self._meta.dim) or (lengths != n_mem[stored]).any():
            yield from self._payload_problems_one_by_one(stored, ids, payloads, n_mem)

    def _payload_problems_one_by_one(
        self, stored: Sequence[int], ids: Sequence[str], payloads: Sequence[bytes], n_mem: np.ndarray
    ) -> Iterator[tuple[int, str]]:
        for row in stored:
            try:
                found, width = decode(payloads[row], ids[row], self._calibration).shape
            except CorruptStoreError as error:
                yield row, str(error).removeprefix(f"document {ids[row]!r}: ")
                continue
            except StoreError:
                # Its calibration is damaged or lost, which has been said; the row is not.
                continue
            if width != self._meta.dim:
                yield row, f"its vectors are {width} wide; those of the store are {self._meta.dim}."
            if found != n_mem[row]:
                yield row, f"its payload has {found} memory tokens; the column n_mem says {n_mem[row]}."

    def _calibration(self, reference: int) -> Calibration:
        held = self._findings.calibrations
        if held and reference not in held:
            raise CorruptStoreError(f"it refers to {asset_name(reference)}, which is not among the store's assets.")
        calibration = held.get(reference)
        if calibration is None:
            raise StoreError(f"{asset_name(reference)} is damaged or lost.")
        return calibration

    def _check_ids(self, files: Sequence[_File]) -> None:
        """Find ids that are there twice; two ids with one hash are told apart by reading them."""
        hashes = [np.concatenate(file.hashes) if file.hashes else np.empty(0, np.uint64) for file in files]
        ordered = np.sort(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64)
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not repeated.size:
            return
        places: dict[str, list[tuple[_File, int, int]]] = {}
        for file, own in zip(files, hashes, strict=True):
            found = np.flatnonzero(np.isin(own, repeated)).tolist()
            if not found:
                continue
            try:
                with lance_errors(f"cannot read {fragment_name(file.fragment)}"):
                    rows = file.fragment.take(found, columns=["doc_id", "shard"]).to_pylist()
            except StoreError as error:
                self._findings.add(Problem(MEMORY, str(error), REPAIR, fragment_name(file.fragment)))
                continue
            damaged = self._findings.damage.rows.get(file.fragment.fragment_id, {})
            for number, row in zip(found, rows, strict=True):
                # The id of a row that is damaged may be another one's, whose own row is sound.
                if number not in damaged:
                    places.setdefault(row["doc_id"], []).append((file, number, row["shard"]))
        for doc_id, rows in places.items():
            for file, number, shard in rows if len(rows) > 1 else ():
                self._drop(file, {number: shard})
                what = f"the id is in {len(rows)} rows."
                problem = Problem(MEMORY, what, REPAIR, fragment_name(file.fragment), number, doc_id, shard)
                self._findings.add(problem)

    def _check_shards(self, empty: set[int]) -> None:
        findings, damage, planned = self._findings, self._findings.damage, self._expected.shards
        if planned is None:
            return
        findings.add(
            *(
                Problem(ASSETS, f"shard {n} is noted as empty, and the plan does not have it.", RESTORE, shard=n)
                for n in sorted(empty)
                if n >= self._expected.next
            )
        )
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


def _row_problems(
    columns: Mapping[str, pa.Array], ids: Sequence[str], n_mem: np.ndarray, expected: Expectations
) -> Iterator[tuple[int, str]]:
    """Rows whose columns do not fit together, and what is wrong."""
    for row, doc_id in enumerate(ids):
        if not 0 < len(doc_id.encode()) <= MAX_ID_BYTES:
            yield row, f"its id has not between 1 and {MAX_ID_BYTES} bytes."
    failed = ~columns["payload"].is_valid().to_numpy(zero_copy_only=False)
    no_error = ~columns["error"].is_valid().to_numpy(zero_copy_only=False)
    total, fed = (columns[name].to_numpy() for name in ("tokens_total", "tokens_fed"))
    negative = (total < 0) | (fed < 0) | (n_mem < 0)
    wrong = {
        "it has neither memory nor an error, or both.": failed == no_error,
        "it has no memory, and the column n_mem says otherwise.": failed & (n_mem != 0),
        "its token counts cannot be: one is negative.": negative,
    }
    if expected.shards is not None:
        shards = columns["shard"].to_numpy()
        wrong["its shard is in no plan of the store."] = (shards < 0) | (shards >= expected.next)
    if expected.rate is not None:
        # A passage of n tokens has n // rate + 1 memory tokens, and at least one token where there are several.
        few, many = n_mem.astype(np.int64) * expected.rate <= fed, n_mem > 2 * fed.astype(np.int64) + 1
        what = f"its token counts do not fit together at rate {expected.rate}."
        wrong[what] = ~negative & ~failed & (few | many)
    for what, rows in wrong.items():
        yield from ((row, what) for row in np.flatnonzero(rows).tolist())
    if expected.input_text is not None and "text" in columns:
        titles = columns["title"].to_pylist() if "title" in columns else [None] * len(ids)
        texts, stored = columns["text"].to_pylist(), columns["text_hash"].to_pylist()
        for row, (text, title) in enumerate(zip(texts, titles, strict=True)):
            if text is not None and text_hash(expected.input_text(text, title)) != stored[row]:
                yield row, "its title, text and text_hash do not fit together."


def _check_rejected(findings: Findings, expected: Expectations) -> None:
    dataset = _open(findings, REJECTED, REJECTED_SCHEMA)
    for fragment in dataset.get_fragments() if dataset is not None else ():
        problem = _file_problem(findings.uri, REJECTED, dataset, fragment)
        if problem is None:
            try:
                for _, batch in read_rows(dataset, REJECTED_SCHEMA.names, fragments=[fragment.fragment_id]):
                    batch.validate(full=True)
                    shards = np.unique(batch.column(0).to_numpy()).tolist()
                    if expected.shards is not None and (strange := [n for n in shards if n >= expected.next]):
                        problem = f"holds records of shard {strange[0]}, which the plan does not have."
            except (StoreError, ValueError) as error:
                if is_not_of_the_file(error):
                    raise
                problem = f"cannot be read ({error})."
        if problem is not None:
            file = fragment_name(fragment)
            findings.damage.lost_rejected[fragment.fragment_id] = file
            findings.add(Problem(REJECTED, problem, "`pisco-index repair` drops it: these are reports only.", file))


def _open(findings: Findings, table: str, schema: pa.Schema, version: int | None = None) -> lance.LanceDataset | None:
    """Open a table whatever state it is in; what is wrong is noted."""
    try:
        with lance_errors(f"cannot open table {table!r} of the store at {findings.uri}"):
            dataset = open_table(findings.uri, table, version)
            found = dataset.schema
            if any(not fragment.metadata.files for fragment in dataset.get_fragments()):
                raise StoreError("its newest version names a fragment without a file.")
    except StoreError as error:
        if is_not_of_the_file(error):
            raise
        findings.add(Problem(table, f"{error}.", RESTORE, "_versions"))
        return None
    if found != schema:
        findings.add(Problem(table, f"has the columns {found.names}, not {schema.names}.", RESTORE, "_versions"))
        return None
    return dataset


def _require_store(uri: str) -> None:
    folder = local_folder(uri)
    if folder is None:
        there = any(find_table(uri, table) is not None for table in TABLES)
    else:
        there = any((folder / f"{table}.lance").is_dir() for table in TABLES)
    if not there:
        raise StoreError(f"there is no store at {uri}.")
    try:
        never_completed = find_table(uri, ASSETS) is None and not open_table(uri, MEMORY).count_rows()
    except StoreError:
        return
    if never_completed:
        raise StoreError(f"the store at {uri} was never completed. Run its build again.")


def _file_problem(uri: str, table: str, dataset: lance.LanceDataset, fragment: lance.LanceFragment) -> str | None:
    """What is wrong with the files of a fragment, seen from outside; None if nothing is."""
    for file in fragment.metadata.files:
        address = data_file_uri(uri, table, file.path)
        path = local_folder(address)
        if path is not None:
            if not path.is_file():
                return "is missing."
            size = path.stat().st_size
            if file.file_size_bytes and size != file.file_size_bytes:
                return f"has {size:,} bytes and not {file.file_size_bytes:,}."
        try:
            with lance_errors("cannot be opened"):
                rows = open_data_file(address).num_rows()
            if problem := row_index_problem(address):
                return f"{problem}."
        except StoreError as error:
            if is_not_of_the_file(error):
                raise
            return f"{error}."
        if rows != fragment.physical_rows:
            return f"has {rows:,} rows and not {fragment.physical_rows:,}."
    problem = deletion_file_problem(dataset, fragment)
    return None if problem is None else f"{problem}."


def _note_orphans(findings: Findings, table: str) -> None:
    """Count the data files in the folder that no version of a table refers to."""
    folder = local_folder(table_uri(findings.uri, table))
    if folder is None:
        return
    lying = {path.name: path for path in (folder / "data").glob("*") if path.is_file()}
    try:
        with lance_errors("cannot list versions"):
            newest = open_table(findings.uri, table)
            for fragment in newest.get_fragments():
                for file in fragment.metadata.files:
                    lying.pop(file.path, None)
            # Each older version is read only where some file may be its.
            for version in newest.versions() if lying else ():
                for fragment in open_table(findings.uri, table, version["version"]).get_fragments():
                    for file in fragment.metadata.files:
                        lying.pop(file.path, None)
    except StoreError:
        return
    if lying:
        size = sum(path.stat().st_size for path in lying.values())
        findings.notes.append(
            f"{table}: {len(lying):,} data files, {size:,} bytes, that no version refers to, left by a stopped build "
            "or of one that runs; the next build or repair deletes them"
        )


def _batch_rows(fragment: lance.LanceFragment) -> int:
    size = sum(file.file_size_bytes or 0 for file in fragment.metadata.files)
    return int(np.clip(_BATCH_BYTES * max(fragment.physical_rows, 1) // max(size, 1), 1, _BATCH_ROWS))


def _live_rows(fragment: lance.LanceFragment) -> int:
    deleted = fragment.metadata.deletion_file
    # A damaged list of fragments may lack the number.
    return fragment.physical_rows - ((deleted.num_deleted_rows or 0) if deleted else 0)


def _counts(shards: np.ndarray) -> dict[int, int]:
    numbers, counts = np.unique(shards, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def empty_shards_of(findings: Findings, names: Iterable[str]) -> set[int]:
    """Shards that the assets note as done without a row; names that say no number are problems."""
    numbers = set[int]()
    for name in names:
        if name.startswith(EMPTY_SHARD_PREFIX):
            number = name.removeprefix(EMPTY_SHARD_PREFIX)
            if number.isdecimal():
                numbers.add(int(number))
            else:
                findings.add(Problem(ASSETS, f"the name {name!r} does not end with a shard's number.", RESTORE))
    return numbers
