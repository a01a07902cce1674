"""Checks of a store from outside its rows: that it exists, its tables open, and its data files are whole."""

from collections.abc import Callable

import lance
import pyarrow as pa

from ...errors import StoreError
from ..table.addresses import ASSETS, MEMORY, TABLES, data_file_uri, local_folder, table_uri
from ..table.datasets import find_table, open_table
from ..table.deletions import deletion_file_problem
from ..table.failures import is_caused_elsewhere, lance_errors
from ..table.files import data_file_problem
from ..table.pages import row_index_problem
from .findings import RESTORE, Findings, Problem


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
