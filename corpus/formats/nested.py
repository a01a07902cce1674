"""Fields that are inside of other fields, named by their path, e.g. ``_source.text``."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ...configs.corpus import CorpusConfig
from ...errors import CorpusError
from ..fields import ID_FIELDS, TITLE_FIELDS, Fields, choose_fields

CONTAINERS = ("_source", "doc")
"""Fields that hold the record itself, in exports of Elasticsearch, OpenSearch and CouchDB."""

_DEPTH = 3
# Enough for any record, and few enough for a file that is one object of a million records.
_MAX_NAMES = 1000


def choose_nested_fields(found: Sequence[str], config: CorpusConfig, place: str) -> Fields:
    """Return the fields as ``choose_fields`` does; look for those that are not found in a field that holds the record.

    Args:
        found: names of the fields, and paths of those inside.
        config: configuration of the corpus.
        place: file and line, for messages.

    Raises:
        CorpusError: if there is no field for the id or the text.
    """
    try:
        fields = choose_fields(found, config, place)
        if fields.title is None:
            beside = (f"{fields.text.rpartition('.')[0]}.{name}" for name in TITLE_FIELDS)
            fields = replace(fields, title=next((name for name in beside if name in found), None))
        return fields
    except CorpusError as error:
        # An id outside, if there is one, is the record's.
        outside = {} if {*ID_FIELDS}.isdisjoint(found) else {*ID_FIELDS}
        paths = {
            name.removeprefix(f"{container}."): name
            for container in reversed(CONTAINERS)
            for name in found
            if name.startswith(f"{container}.") and name.removeprefix(f"{container}.") not in outside
        }
        paths |= {name: name for name in found}
        try:
            fields = choose_fields(tuple(paths), config, place)
        except CorpusError:
            raise error from None
        title = None if fields.title is None else paths.get(fields.title, fields.title)
        return Fields(paths[fields.id], paths[fields.text], title)


def nested_names(names: Sequence[str], inside: Callable[[str], Iterable[str]]) -> list[str]:
    """Return the names, then the paths of the fields inside of them: at most 1,000 of both.

    Args:
        names: names of the outermost fields.
        inside: function that returns the names of the fields inside of a path; none if it holds no fields.
    """
    found = level = list(names)
    for _ in range(_DEPTH - 1):
        level = [f"{outer}.{name}" for outer in level for name in inside(outer)]
        found = [*found, *level]
    return found[: max(_MAX_NAMES, len(names))]
