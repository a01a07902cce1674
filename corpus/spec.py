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
# Nor does it matter that an option was recognised, or how surely.
_NOT_OPTIONS = frozenset({"file", "path", "name", "repeated", "newest", "error", "guessed", "certain"})

_FORMATS = {
    "jsonl": "JSON lines",
    "json": "JSON objects",
    "tsv": "tab-separated",
    "mediawiki": "MediaWiki export",
    "parquet": "Parquet",
    "arrow": "Arrow",
    "unrecognised": "not a corpus, rejected",
}


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
    encoding = {"encoding": spec["file"]["encoding"]} if "file" in spec else {}
    return {"on_error": "fail"} | encoding | {key: value for key, value in spec.items() if key not in _NOT_OPTIONS}


def taken_for(specs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what the files of a corpus were taken for: a line for each file, or for several that are alike."""
    groups: dict[str, list[str]] = {}
    for spec in specs:
        groups.setdefault(_layout(spec), []).append((spec.get("file") or spec)["name"])
    return [
        f"{names[0] if len(names) == 1 else f'{len(names):,} files from {names[0]} on'}: {layout}"
        for layout, names in groups.items()
    ]


def _layout(spec: Mapping[str, Any]) -> str:
    file, fields = spec.get("file", {}), spec.get("fields", {})
    parts = [_FORMATS.get(spec["format"], spec["format"])]
    if "columns" in spec:
        quotes = {True: "csv quotes", False: "quotes are text", None: "no quoted cells"}[spec.get("quoted")]
        parts += ["header" if spec["header"] else "no header", quotes]
    parts += [word for word in (file.get("encoding"), file.get("compression")) if word not in (None, "utf-8", "none")]
    return ", ".join([*parts, *(f"{role}={name or '(no name)'}" for role, name in fields.items() if name is not None)])
