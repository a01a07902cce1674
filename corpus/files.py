"""The data files of a corpus, found in a path that the user gives."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..errors import CorpusError
from .fields import listed

_URI = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)
# Files that stand beside the data in dumps, on the Hugging Face hub and in the output of Spark and Hadoop.
_NO_DATA = re.compile(
    r"[._].*|(?:readme|license|licence|notice|copying|changelog|citation|(?:md5|sha1|sha256)sums)(?:\..*)?"
    r"|.*\.(?:md|crc|md5|sha1|sha256|sha512|idx|lock)|(?:dataset_infos?|state)\.json|.*-(?:md5|sha1)sums\.(?:txt|json)"
    r"|.*-multistream-index\d*\.txt.*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that holds records.

    Attributes:
        path: absolute path.
        name: path from the given file or folder on, as messages and plans show it.
    """

    path: Path
    name: str


def find_files(argument: str | Path) -> Iterator[DataFile]:
    """Yield the file at a path, or all data files of the folder there, by name and recursively.

    Hidden files and files that are known to hold no data (README, _SUCCESS, checksums) are skipped.

    Raises:
        CorpusError: if the path does not exist, is not local, or holds no data.
    """
    uri = _URI.match(str(argument))
    if uri:
        raise CorpusError(
            f"{argument}: corpora are read from local or mounted paths, not from {uri[1]}. Download or mount it first."
        )
    path = Path(argument).expanduser().absolute()
    if not path.exists():
        raise CorpusError(f"{argument}: there is no such file or folder. Check the path.")
    if path.is_file():
        yield DataFile(path, path.name)
        return
    if not path.is_dir():
        raise CorpusError(
            f"{argument}: this is neither a file nor a folder. A corpus is read more than once, so write it to a file."
        )
    # The path is not resolved: caches of data sets hold links to blobs whose names say nothing.
    root = path.resolve().name if path.name == ".." else path.name
    saved = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    files = list(_saved_dataset(path, str(argument)) if saved else _walk(path))
    if not files:
        raise CorpusError(
            f"{argument}: the folder holds no data files. Hidden files, READMEs, licenses and checksums are skipped."
        )
    for file in files:
        yield DataFile(file, f"{root}/{file.relative_to(path).as_posix()}")


def _walk(folder: Path) -> Iterator[Path]:
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = _load_json(splits).get("splits", [])
        raise CorpusError(
            f"{folder}: this is a saved data set with the splits {listed(names)}. Name the folder of one split, e.g."
            f" {folder / str(names[0]) if names else folder}."
        )
    entries = (entry for entry in folder.iterdir() if not _NO_DATA.fullmatch(entry.name))
    for entry in sorted(entries, key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _walk(entry)
        elif entry.is_file():
            yield entry


def _saved_dataset(folder: Path, argument: str) -> Iterator[Path]:
    """Yield the files that ``datasets.Dataset.save_to_disk`` wrote, in the order of the data set's rows."""
    state = _load_json(folder / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise CorpusError(
            f"{argument}: the saved data set is a selection of rows. Call its flatten_indices() and save it again."
        )
    for entry in state.get("_data_files", []):
        file = folder / entry["filename"]
        if not file.is_file():
            raise CorpusError(f"{file}: the saved data set names this file, but it is missing. Copy the folder again.")
        yield file


def _load_json(path: Path) -> Any:
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise CorpusError(f"{path}: broken JSON ({error}). Copy the folder again.") from None
