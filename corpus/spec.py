"""The ``spec`` of a source: the JSON-able description that a plan stores and from which any process opens the source.

These keys are the contract between the formats and their callers. A format may add further ones.

- ``format``: name of the format, by which ``open_source`` finds the class of the source.
- ``file``, an object with ``path`` and ``name``; or ``path`` and ``name`` themselves.
- ``passage_words``: number of words that texts are cut into; None if each record is one document.
- ``on_error`` and ``repeated``: see ``Tolerance``. Plans of earlier versions may lack both.
- ``error``: problem of a file that is rejected as a whole.
"""

from collections.abc import Iterable, Mapping
from typing import Any

# Keys that do not change which documents a file gives: its address, what a scan found in it, the wording of an error.
_NOT_OPTIONS = frozenset({"file", "path", "name", "repeated", "newest", "error"})


def is_cut(spec: Mapping[str, Any]) -> bool:
    """Return True if the source cuts its records into documents, so that their number is unknown before reading."""
    return bool(spec["passage_words"])


def relocate(spec: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return the spec of the same file at another path."""
    if "file" in spec:
        return {**spec, "file": {**spec["file"], "path": path}}
    return {**spec, "path": path}


def with_repeated(spec: Mapping[str, Any], positions: Iterable[int]) -> dict[str, Any]:
    """Return the spec of the same source, rejecting the records at some positions because their ids are repeated."""
    return {**spec, "repeated": list(positions)}


def reading_options(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that determine which documents the source gives."""
    return {"on_error": "fail"} | {key: value for key, value in spec.items() if key not in _NOT_OPTIONS}
