"""Checks of a store from outside its rows: that it exists, its tables open, and its data files are whole."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import lance
import pyarrow as pa

from ...errors import StoreError
from ..table.addresses import ASSETS, MEMORY, TABLES, data_file_uri, local_folder, table_uri
from ..table.checksums import (
    DATA,
    HINT,
    RECORD_NAME,
    VERSIONS,
    is_data,
    read_checksums,
    stored_files,
    version_of,
)
from ..table.datasets import find_table, open_table
from ..table.deletions import deletion_file_problem
from ..table.failures import is_caused_elsewhere, lance_errors
from ..table.files import data_file_problem
from ..table.pages import row_index_problem
from .findings import DELETE, RERECORD, RESTORE, Findings, Problem


def require_store(uri: str) -> None:
    """Check that there is a store, whatever its state, and that its creation was completed.

    Raises:
        StoreError: there is no store, or it was never completed.
    """
    folder = local_folder(uri)
    if folder is None:
        exists = any(find_table(uri, table) is not None for table in TABLES)
    else:
        exists = any((folder / f"{table}.lance").is_dir() for table in TABLES)
    if not exists:
        raise StoreError(f"there is no store at {uri}. Check the address, or build the store first.")
    try:
        never_completed = find_table(uri, ASSETS) is None and not open_table(uri, MEMORY).count_rows()
    except StoreError:
        return
    if never_completed:
        raise StoreError(f"the store at {uri} was never completed. Run its build again.")


def open_or_report(
    findings: Findings, table: str, schema: pa.Schema, version: int | None = None, *, further: pa.Schema | None = None
) -> lance.LanceDataset | None:
    """Open a table in whatever state it is; return None if that fails, with the problem added to the findings.

    Args:
        findings: findings that the problem is added to.
        table: name of the table.
        schema: schema that the table must have.
        version: version of the table, by default the latest one.
        further: another schema that it may have.
    """
    try:
        with lance_errors(f"cannot open table {table!r} of the store at {findings.uri}"):
            dataset = open_table(findings.uri, table, version)
            found = dataset.schema
            if any(not fragment.metadata.files for fragment in dataset.get_fragments()):
                raise StoreError("its newest version names a fragment without a file.")
    except StoreError as error:
        if is_caused_elsewhere(error):
            raise
        findings.add(Problem(table, f"{error}.", RESTORE, "_versions"))
        return None
    if found not in (schema, further):
        findings.add(Problem(table, f"has the columns {found.names}, not {schema.names}.", RESTORE, "_versions"))
        return None
    return dataset


def fragment_problem(
    uri: str,
    table: str,
    dataset: lance.LanceDataset,
    fragment: lance.LanceFragment,
    read: Callable[[lance.LanceFragment], str | None],
) -> str | None:
    """Check the files of a fragment, first from outside, then by reading their rows.

    Args:
        uri: address of the store.
        table: name of the table.
        dataset: the table.
        fragment: the fragment to check.
        read: function that reads every row of the fragment, and returns a description of the problem.

    Returns:
        Description of the problem, as a sentence without a subject; None if there is none.

    Raises:
        StoreError: the files cannot be read for a reason that lies elsewhere, such as the network.
    """
    problem = _file_problem(uri, table, dataset, fragment)
    if problem is not None:
        return problem
    try:
        return read(fragment)
    except (StoreError, ValueError) as error:
        if is_caused_elsewhere(error):
            raise
        return f"cannot be read ({error})."


def _file_problem(uri: str, table: str, dataset: lance.LanceDataset, fragment: lance.LanceFragment) -> str | None:
    for file in fragment.metadata.files:
        address = data_file_uri(uri, table, file.path)
        problem = data_file_problem(address, file.file_size_bytes, fragment.physical_rows)
        try:
            problem = problem or row_index_problem(address)
        except StoreError as error:
            if is_caused_elsewhere(error):
                raise
            problem = str(error)
        if problem is not None:
            return f"{problem}."
    problem = deletion_file_problem(dataset, fragment)
    return None if problem is None else f"{problem}."


def read_record(findings: Findings) -> None:
    """Read the recorded checksums of a store's files into the findings.

    Raises:
        StoreError: the record cannot be read.
    """
    try:
        findings.checksums = read_checksums(findings.uri)
    except OSError as error:
        raise StoreError(f"cannot read the recorded checksums of the store at {findings.uri}: {error}.") from error
    if findings.checksums.is_damaged:
        what = "the record of the files' checksums is damaged, so no file was compared with it."
        findings.add(Problem("store", what, RERECORD, RECORD_NAME))
    if findings.checksums.is_torn:
        what = "the record of the files' checksums is cut off, as after a crash."
        findings.add(Problem("store", what, RERECORD, RECORD_NAME))


def changed_files(findings: Findings, table: str, fragment: lance.LanceFragment) -> dict[str, str]:
    """Compare the files of a fragment with their checksums.

    Returns:
        Problem, as a sentence without a subject, of each file that differs, by its path in the store's folder. Nothing
        is known of a file that is missing or whose checksum is not recorded.

    Raises:
        StoreError: a file cannot be read for a reason that lies elsewhere.
    """
    problems = {}
    for path in paths_of(table, fragment):
        findings.compared.add(path)
        if problem := _changed(findings, path):
            problems[path] = problem
    return problems


def changed_problem(changed: Mapping[str, str]) -> str | None:
    """Return the first problem of ``changed_files``; None if there is none."""
    return next(iter(changed.values()), None)


def paths_of(table: str, fragment: lance.LanceFragment) -> list[str]:
    """Return the paths of a fragment's data files and list of deleted rows in the store's folder."""
    deleted = fragment.deletion_file()
    names = [f"{DATA}/{file.path}" for file in fragment.metadata.files] + ([deleted] if deleted else [])
    return [f"{table}.lance/{name}" for name in names]


def is_file_recorded(findings: Findings, table: str, fragment: lance.LanceFragment) -> bool:
    """Return True if the checksums of all files of a fragment are recorded."""
    return all(map(findings.checksums.has, paths_of(table, fragment)))


def check_other_files(findings: Findings) -> None:
    """Compare the files that hold no row of the newest versions with their checksums, and name what is not recorded.

    These are manifests, transactions, and the data of older versions.
    """
    checksums, uri = findings.checksums, findings.uri
    if checksums.folder is None:
        findings.unchecked.append(
            f"the store is in an object store, where no checksums of files are recorded; {_unprotected(findings)}"
        )
        return
    hints = {table: _hinted_version(checksums.folder, table) for table in TABLES}
    present = stored_files(uri)
    newest = {table: _newest_manifest(table, present | checksums.recorded.keys()) for table in TABLES}
    for path in sorted(checksums.recorded.keys() - findings.compared):
        table, file = path.split(".lance/", 1)
        is_newest = path == newest.get(table)
        if path not in present:
            # Only a cleanup deletes files, and it keeps the newest version.
            if is_newest:
                findings.add(Problem(table, "is missing.", RESTORE, file))
        elif problem := _changed(findings, path):
            if not is_newest:
                findings.damage.stale.append(path)
            findings.add(Problem(table, problem, RESTORE if is_newest else DELETE, file))
    for table, path in newest.items():
        # A hint may be behind, because it is written after the manifest.
        if path is not None and not 0 <= hints[table] <= version_of(path):
            findings.damage.stale.append(f"{table}.lance/{VERSIONS}/{HINT}")
            findings.add(Problem(table, "names no version of the table.", DELETE, f"{VERSIONS}/{HINT}"))
    needed = {path for path in present if path in findings.compared or not is_data(path)}
    if unrecorded := needed - checksums.recorded.keys():
        findings.unchecked.append(
            f"the checksums of {len(unrecorded):,} of {len(needed):,} files are not recorded; "
            f"{_unprotected(findings)}. `pisco-index repair {uri}` records them"
        )


def _unprotected(findings: Findings) -> str:
    kept = findings.meta.optional_columns if findings.meta else ()
    columns = ", ".join(["shard", "tokens_total", "tokens_fed", "text_hash", "error", *kept])
    return f"damage in the columns {columns} and in manifests is found only if it contradicts other values"


def _newest_manifest(table: str, paths: Iterable[str]) -> str | None:
    folder = f"{table}.lance/{VERSIONS}/"
    return max((path for path in paths if path.startswith(folder)), key=version_of, default=None)


def _hinted_version(folder: Path, table: str) -> int:
    """Return the version that Lance's hint about the newest one names; -1 if the hint is damaged, 0 without a hint."""
    try:
        return int(json.loads((folder / f"{table}.lance" / VERSIONS / HINT).read_bytes())["version"])
    except FileNotFoundError:
        return 0
    # Damaged JSON fails in any of these ways.
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return -1


def _changed(findings: Findings, path: str) -> str | None:
    try:
        return "fails its checksum." if findings.checksums.is_wrong(path) else None
    except OSError as error:
        if is_caused_elsewhere(error):
            raise StoreError(f"cannot check {path} of the store at {findings.uri}: {error}.") from error
        return f"cannot be read ({error})."


def note_orphans(findings: Findings, table: str) -> None:
    """Add a note about the data files in a local table's folder that no version refers to."""
    folder = local_folder(table_uri(findings.uri, table))
    if folder is None:
        return
    orphans = {path.name: path for path in (folder / "data").glob("*") if path.is_file()}
    try:
        with lance_errors("cannot list versions"):
            newest = open_table(findings.uri, table)
            for fragment in newest.get_fragments():
                for file in fragment.metadata.files:
                    orphans.pop(file.path, None)
            # Older versions are read only while there are files that they may refer to.
            for version in newest.versions() if orphans else ():
                for fragment in open_table(findings.uri, table, version["version"]).get_fragments():
                    for file in fragment.metadata.files:
                        orphans.pop(file.path, None)
    except StoreError:
        return
    if orphans:
        size = sum(path.stat().st_size for path in orphans.values())
        findings.notes.append(
            f"{table}: {len(orphans):,} data files, {size:,} bytes, that no version refers to: a build that stopped "
            "left them, or a running build has just written them; the next build or repair deletes them"
        )
