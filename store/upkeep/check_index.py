"""Check of the search index: that its files are as they were written, and that it covers all rows."""

from collections.abc import Mapping

from ...errors import StoreError
from ..search.checksums import Notes, damaged_files, recorded_checksums
from ..search.index import has_contents, search_index
from ..table.addresses import ASSETS, MEMORY
from ..table.datasets import open_table
from ..table.failures import is_caused_elsewhere
from .findings import REINDEX, Findings, Problem


def check_index(findings: Findings, assets: Mapping[str, bytes]) -> None:
    """Check the search index of a store whose rows have been checked.

    Args:
        findings: the result of ``check_rows``; what this check finds is added to it.
        assets: values of the readable assets by name.
    """
    if findings.version is None:
        return
    try:
        table = open_table(findings.uri, MEMORY, findings.version)
        index = search_index(table)
    except StoreError as error:
        if is_caused_elsewhere(error):
            raise
        _damaged(findings, MEMORY, f"the search index cannot be read ({error}).")
        return
    if index is None:
        if has_contents(table) and findings.documents:
            findings.notes.append(f"the store has no search index; `pisco-index index {findings.uri}` makes it")
        return
    findings.index = index
    if index.settings is None:
        _damaged(findings, MEMORY, "the settings of the search index are not those of an index of this package.")
    notes = _notes(findings, assets)
    try:
        for file, what in damaged_files(findings.uri, index, notes):
            _damaged(findings, MEMORY, what, file)
    except StoreError as error:
        if is_caused_elsewhere(error):
            raise
        _damaged(findings, MEMORY, f"the search index cannot be read ({error}).")
    if unknown := [segment for segment in index.segments if segment not in notes]:
        findings.unchecked.append(
            f"the checksums of {len(unknown):,} of {len(index.segments):,} segments of the search index are not "
            f"recorded; `pisco-index index {findings.uri}` records them"
        )
    if not index.is_in_step:
        findings.notes.append(
            f"the search index lacks {index.unindexed_rows:,} documents, which are searched slowly; the next build, or "
            f"`pisco-index index {findings.uri}`, adds them"
        )


def _notes(findings: Findings, assets: Mapping[str, bytes]) -> Notes:
    try:
        return recorded_checksums(assets)
    # Damaged JSON that still parses fails in any of these ways.
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        _damaged(findings, ASSETS, f"the checksums of the search index cannot be read: {error!r}.")
        return {}


def _damaged(findings: Findings, table: str, what: str, file: str | None = None) -> None:
    findings.damage.is_index_damaged = True
    findings.add(Problem(table, what, REINDEX, file))
