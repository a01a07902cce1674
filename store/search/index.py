"""The search index of a version of ``memory``: its settings, and the rows that it covers."""

from dataclasses import dataclass
from typing import Any

import lance

from ...configs import SearchConfig
from ...errors import ConfigError, StoreError, StoreUnreachableError
from ..schema import CONTENTS
from ..table.failures import lance_errors

INDEX_NAME = "contents"
"""Name of the index in Lance's list of indexes."""

INDEX_FOLDER = "_indices"
"""Folder of a table that holds a folder for each segment of an index, named by the segment's UUID."""


@dataclass(frozen=True)
class SearchIndex:
    """The search index of one version of a table. It is a list of segments, each with the rows of some fragments.

    Attributes:
        settings: settings that it was made with; None if they are unknown here, because another program made it.
        segments: UUIDs of the segments, the oldest first.
        rows: number of rows in each segment, those that were deleted since included.
        unindexed_rows: number of rows in fragments that no segment covers. A search reads them one by one.
        bytes: size of the index; 0 if Lance does not record it.
    """

    settings: SearchConfig | None
    segments: tuple[str, ...]
    rows: tuple[int, ...]
    unindexed_rows: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the index in numbers, as values for JSON."""
        return {
            "settings": self.settings.model_dump() if self.settings else None,
            "segments": len(self.segments),
            "rows_indexed": sum(self.rows),
            "rows_unindexed": self.unindexed_rows,
            "bytes": self.bytes,
        }

    @property
    def is_in_step(self) -> bool:
        """True if the index covers every row."""
        return not self.unindexed_rows


def search_index(table: lance.LanceDataset) -> SearchIndex | None:
    """Return the search index of a version of ``memory``; None if it has none. Only metadata is read.

    Raises:
        StoreError: the metadata cannot be read.
    """
    with lance_errors(f"cannot read the search index of {table.uri}"):
        found: Any = next((each for each in table.describe_indices() if each.name == INDEX_NAME), None)
        if found is None:
            return None
        rows = {fragment.fragment_id: fragment.count_rows() for fragment in table.get_fragments()}
    covered = [set(segment.fragment_ids) & rows.keys() for segment in found.segments]
    missing = rows.keys() - set[int]().union(*covered)
    return SearchIndex(
        settings=_settings(found.details),
        segments=tuple(segment.uuid for segment in found.segments),
        rows=tuple(sum(map(rows.__getitem__, each)) for each in covered),
        unindexed_rows=sum(map(rows.__getitem__, missing)),
        bytes=found.total_size_bytes or 0,
    )


def count_documents(table: lance.LanceDataset) -> tuple[int, int]:
    """Return the number of documents with text in the index, deleted ones included, and of rows that it covers.

    Raises:
        StoreError: the index cannot be read.
    """
    with lance_errors(f"cannot read the search index of {table.uri}"):
        statistics: Any = table.stats.index_stats(INDEX_NAME)
    return sum(each.get("num_docs", 0) for each in statistics["indices"]), statistics["num_indexed_rows"]


def searchable_documents(table: lance.LanceDataset) -> int | None:
    """Return the number of documents whose text is in the index; None if there is no index, or it cannot be read."""
    try:
        return min(count_documents(table)) if search_index(table) else None
    except StoreUnreachableError:
        raise
    except StoreError:
        return None


def has_contents(table: lance.LanceDataset) -> bool:
    """Return True if a version of ``memory`` has the column that is searched."""
    return CONTENTS in table.schema.names


def lance_parameters(settings: SearchConfig) -> dict[str, Any]:
    """Return the parameters with which Lance makes an index of these settings."""
    return {
        "base_tokenizer": settings.tokenizer,
        "language": settings.language,
        "stem": settings.stem,
        "remove_stop_words": settings.stop_words,
        "lower_case": True,
        "ascii_folding": True,
        # Positions serve phrase queries only, and double the index.
        "with_position": False,
        # Lance's other size quantises scores: a twentieth of the ten best documents differ.
        "block_size": 128,
    }


def _settings(details: dict[str, Any]) -> SearchConfig | None:
    """Return the settings in Lance's description of an index; None if no configuration has them."""
    names = {
        "language": "language",
        "base_tokenizer": "tokenizer",
        "stem": "stem",
        "remove_stop_words": "stop_words",
    }
    try:
        settings = SearchConfig.parse({names[key]: details.get(key) for key in names}, "the search index")
    except ConfigError:
        return None
    made = lance_parameters(settings)
    return settings if all(details.get(key) == value for key, value in made.items()) else None
