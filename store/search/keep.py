"""Keep the search index in step with the rows: make it, extend it, merge it, or make it anew."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import lance

from ...configs import SearchConfig
from ...errors import StoreError, StoreUnreachableError
from ..schema import CONTENTS
from ..table.addresses import MEMORY
from ..table.datasets import open_table
from ..table.deletions import open_checked
from ..table.failures import lance_errors
from .checksums import damaged_files, read_notes, record_checksums
from .index import (
    INDEX_NAME,
    SearchIndex,
    count_documents,
    has_contents,
    lance_parameters,
    search_index,
    searchable_documents,
)

# Lance's words for a commit that another one came before, and number of times that the index is tried.
_CONFLICT, _ATTEMPTS = "Retryable commit conflict", 3

# Each delta is searched on its own: a question takes 3 ms with none, 15 ms with nine.
MAX_DELTAS = 4
# Deltas that hold a larger part of the rows are merged, as long as that costs little more than adding another one.
_MAX_UNMERGED = 0.1
# Deleted documents count in the statistics of the scores. If they are a larger part, the index is made anew.
_MAX_DEAD = 0.05

Action = Literal["none", "kept", "made", "extended", "merged", "rebuilt"]
"""The work done on an index: none without contents or rows, kept if it was in step already."""

Progress = Callable[[Action, int, int], object]
"""Callback that is given the work that is done, the number of documents that are indexed, and the number to index."""


@dataclass(frozen=True)
class IndexReport:
    """The result of keeping a search index in step.

    Attributes:
        uri: address of the store.
        action: work that was done.
        index: the index; None if the store has no contents or no rows.
        documents: number of documents that a search can find; None if there is no index.
        seconds: seconds that it took.
    """

    uri: str
    action: Action
    index: SearchIndex | None
    documents: int | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values for JSON."""
        index = self.index.to_dict() if self.index else None
        return {
            "uri": self.uri,
            "action": self.action,
            "index": index,
            "documents": self.documents,
            "seconds": self.seconds,
        }


def keep_index(
    uri: str, settings: SearchConfig | None = None, *, rebuild: bool = False, progress: Progress | None = None
) -> IndexReport:
    """Bring the search index of a store in step with its rows. The caller holds the build's lock.

    A crash at any moment leaves the former index in force, and the next call does the work again. A store without the
    column ``contents``, or without rows, is left as it is.

    Args:
        uri: resolved address of the store.
        settings: settings of the index; None keeps those of the present index, or takes the defaults for a new one.
        rebuild: True to make the index anew even if it is in step.
        progress: callback that is called before any work. Later calls come only while an index is made or rebuilt.

    Raises:
        StoreError: the store cannot be read or written.
    """
    began = time.monotonic()
    table = open_checked(uri, MEMORY)
    found = search_index(table)
    action: Action = "none"
    if has_contents(table) and table.count_rows():
        action = _action(uri, table, found, settings, rebuild)
        wanted = settings or (found.settings if found else None) or SearchConfig()
        found = _do(uri, table, action, wanted, found, progress)
    documents = searchable_documents(open_checked(uri, MEMORY)) if found else None
    return IndexReport(uri, action, found, documents, time.monotonic() - began)


def merge_index(uri: str) -> None:
    """Merge the segments of a store's index, and add the rows that it lacks. The caller holds the build's lock.

    Raises:
        StoreError: the store has no index, or cannot be read or written.
    """
    table = open_checked(uri, MEMORY)
    found = search_index(table)
    if found is None:
        raise StoreError(f"the store at {uri} has no search index. Make it: pisco-index index {uri}")
    if len(found.segments) > 1 or not found.is_in_step:
        _do(uri, table, "merged", found.settings or SearchConfig(), found, None)


def counts_many_deleted(uri: str) -> bool:
    """Return True if so many indexed documents were deleted that the next ``keep_index`` makes the index anew.

    Raises:
        StoreError: the store cannot be read.
    """
    table = open_checked(uri, MEMORY)
    return bool(table.count_rows()) and search_index(table) is not None and _dead_share(table) > _MAX_DEAD


def is_damaged(uri: str, index: SearchIndex) -> bool:
    """Return True if a file of an index is not as it was written. All files are read.

    Raises:
        StoreError: the files cannot be read for a reason outside of them.
    """
    return next(damaged_files(uri, index, read_notes(uri)), None) is not None


def _action(
    uri: str, table: lance.LanceDataset, found: SearchIndex | None, settings: SearchConfig | None, rebuild: bool
) -> Action:
    if found is None:
        return "made"
    if rebuild or found.settings is None or settings not in (None, found.settings) or _dead_share(table) > _MAX_DEAD:
        return "rebuilt"
    if found.is_in_step:
        return "kept"
    unmerged = found.unindexed_rows + sum(found.rows) - max(found.rows)
    if len(found.segments) <= MAX_DELTAS and unmerged <= _MAX_UNMERGED * (sum(found.rows) + found.unindexed_rows):
        return "extended"
    # Merging would copy damage into files with new checksums.
    return "rebuilt" if is_damaged(uri, found) else "merged"


def _dead_share(table: lance.LanceDataset) -> float:
    """Return the part of the indexed documents that were deleted since, 0 to 1; 1 if the index cannot be read.

    Documents without contents count as indexed.
    """
    try:
        documents, rows = count_documents(table)
    except StoreUnreachableError:
        raise
    except StoreError:
        return 1.0
    return max(documents - rows, 0) / max(documents, 1)


def _do(
    uri: str,
    table: lance.LanceDataset,
    action: Action,
    settings: SearchConfig,
    found: SearchIndex | None,
    progress: Progress | None,
) -> SearchIndex:
    """Do the work on an index, and return the index after it, with its checksums recorded."""
    notify = _notifier(progress, action, found.unindexed_rows if found and action == "extended" else table.count_rows())

    def indexed(event: Any) -> None:
        # The other steps are short, or count something else than rows.
        if event.stage == "tokenize_docs" and event.event == "progress":
            notify(event.completed)

    with lance_errors(f"cannot index the contents of the store at {uri}"):
        for attempt in range(_ATTEMPTS):
            try:
                if action in ("made", "rebuilt"):
                    parameters = lance_parameters(settings) | {"progress_callback": indexed}
                    table.create_scalar_index(CONTENTS, "INVERTED", name=INDEX_NAME, replace=True, **parameters)
                elif action != "kept":
                    merged = 0 if action == "extended" or found is None else len(found.segments)
                    table.optimize.optimize_indices(num_indices_to_merge=merged, index_names=[INDEX_NAME])
                break
            except (OSError, RuntimeError) as error:
                # Another process, which no lock prevents in an object store, committed meanwhile.
                if attempt == _ATTEMPTS - 1 or _CONFLICT not in str(error):
                    raise
                table = open_table(uri, MEMORY)
    index = search_index(open_table(uri, MEMORY))
    assert index is not None
    record_checksums(uri, index)
    return index


def _notifier(progress: Progress | None, action: Action, total: int) -> Callable[[int], object]:
    """Return a callback for the number of indexed documents, after calling it with 0 if there is anything to do."""

    def notify(done: int) -> None:
        if progress is not None and action != "kept":
            progress(action, min(done, total), total)

    notify(0)
    return notify
