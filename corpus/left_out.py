"""Files and folders that stand in a corpus folder and hold no documents: notices, checksums, and this program's output.

A name alone never rules out a file that is named as data are (``notice.jsonl``).
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

_DATA = re.compile(
    r".*\.(?:jsonl?|ndjson|tsv|csv|parquet|arrow|feather|xml)(?:\.(?:gz|bz2|zst|zstd))?", re.IGNORECASE | re.DOTALL
)
# Files that stand beside the data in dumps, on the Hugging Face hub and in the output of Spark and Hadoop.
_NOTICE = re.compile(
    r"_.*|(?:readme|license|licence|notice|copying|changelog|citation|(?:md5|sha1|sha256)sums)(?:\..*)?",
    re.IGNORECASE | re.DOTALL,
)
_NO_DATA = re.compile(
    r".*\.(?:md|crc|md5|sha1|sha256|sha512|idx|lock)|.*-(?:md5|sha1)sums\.(?:txt|json)|.*-multistream-index\d*\.txt.*",
    re.IGNORECASE | re.DOTALL,
)
# Keys by which the descriptions that Hugging Face ``datasets`` writes differ from a record in a file of that name.
_DESCRIPTIONS = {"state.json": "_data_files", "dataset_info.json": "features", "dataset_infos.json": "features"}
# Larger files of these names are no descriptions.
_DESCRIPTION_BYTES = 64 << 20
# A line of the event log of a build.
_EVENT = re.compile(r'\{"time": "[^"]+", "event": "[a-z_]+", "run": "[0-9a-f]{16}", "elapsed_s": ')


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that stands in a corpus folder and is not read.

    Attributes:
        name: name as of a ``DataFile``.
        reason: why it is not read.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


OnLeftOut = Callable[[LeftOut], object]
"""Callback that is given each file and folder that is not read. The default, ``bool``, ignores it."""


def folder_without_data(folder: Path, names: Collection[str]) -> str | None:
    """Return what a folder is if its files hold no documents; None otherwise.

    Args:
        folder: path of the folder.
        names: names in it.
    """
    # The tables of a store appear one after the other; the lock is there before them.
    if "memory.lance" in names and ("assets.lance" in names or ".build.lock" in names):
        return "a store of pisco-index"
    if "manifest.json" in names and _has_keys(folder / "manifest.json", "manifest_version", "store", "parts"):
        return "an export of pisco-index"
    if "config.json" in names and _has_keys(folder / "config.json", "model_type"):
        return "a model or checkpoint"
    if "settings.json" in names and _has_keys(folder / "settings.json", "decoder_state", "decoder_base", "data"):
        return "a training of pisco-index"
    return None


def file_without_data(path: Path, siblings: Collection[str]) -> str | None:
    """Return what a file is if it holds no documents by its name, or because this program wrote it; None otherwise.

    Args:
        path: path of the file.
        siblings: names in its folder.
    """
    name = path.name
    if _NO_DATA.fullmatch(name) or (_NOTICE.fullmatch(name) and not _DATA.fullmatch(name)):
        return "no data by its name"
    if name in _DESCRIPTIONS and _describes(path, _DESCRIPTIONS[name]):
        return "a description of a data set"
    answers = name.removesuffix(".part").removesuffix(".settings.json")
    settings = f"{answers}.settings.json"
    if settings in siblings and _has_keys(path.with_name(settings), "pisco_index", "store", "questions"):
        return "answers of pisco-index"
    if settings in siblings and _has_keys(path.with_name(settings), "pisco_index", "corpus", "corpus_settings"):
        return "a teacher's answers of pisco-index"
    return None


def is_event(line: str) -> bool:
    """Return True for a line of the event log of a build."""
    return _EVENT.match(line) is not None


def _describes(path: Path, key: str) -> bool:
    """Return True if a file describes a data set: its object has the key, or each object in it does."""
    values = _object(path)
    return key in values or (bool(values) and all(isinstance(each, dict) and key in each for each in values.values()))


def _has_keys(path: Path, *keys: str) -> bool:
    return _object(path).keys() >= set(keys)


def _object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one for any other file."""
    try:
        values = orjson.loads(path.read_bytes()) if path.stat().st_size <= _DESCRIPTION_BYTES else None
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
