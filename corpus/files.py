"""The data files of a corpus, found in a place that the user gives: a file, a folder, or a pattern."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from ..errors import CorpusError, some
from ..places import input_paths
from .fields import listed
from .left_out import LeftOut, OnLeftOut, file_without_data, folder_without_data
from .rejected import UnreadableError, unreadable

# Errors of a link whose target is not there, or is the link itself.
_DANGLING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
# Keys of the file state.json of a saved data set.
_STATE_KEYS = {"_data_files", "_indices_files", "_indices_data_files"}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that holds records.

    Attributes:
        path: absolute path.
        name: path from the given file or folder on, as messages and plans show it.
        identity: value that two paths share if they lead to the same file by links; empty if nobody asked.
        is_named: True if the user named the file itself, and not a folder or a pattern.
    """

    path: Path
    name: str
    identity: tuple[Any, ...] = ()
    is_named: bool = True


def find_files(argument: str | Path, on_left_out: OnLeftOut = bool) -> Iterator[DataFile]:
    """Yield the file at a place, or all data files of the folder there or of a pattern's matches, by name, recursively.

    Links are followed. A file that several paths in a folder lead to is yielded once: under its own path, or under the
    first link if its own path is elsewhere. Hidden files are skipped.

    Args:
        argument: path, file address or pattern.
        on_left_out: callback for each other file and folder that is not read.

    Raises:
        CorpusError: the place does not exist, is not local or holds no data, or something in it cannot be read.
    """
    folder, given = input_paths(argument, CorpusError)
    root, matches = folder.absolute(), [path.absolute() for path in given]
    if matches == [root]:
        if not os.path.lexists(root):
            advice = "A corpus is read more than once, so write it to a file" if argument == "-" else "Check the path"
            raise CorpusError(f"{argument}: there is no such file or folder. {advice}.")
        status = _status(root)
        if stat.S_ISREG(status.st_mode):
            yield DataFile(root, shown(root.name), _identity(status, os.path.realpath(root)))
            return
        if not stat.S_ISDIR(status.st_mode):
            raise CorpusError(
                f"{argument}: this is neither a file nor a folder. A corpus is read more than once, so write it to a "
                "file."
            )
        if what := folder_without_data(root, _names(root)):
            raise CorpusError(f"{argument}: this is {what}, and no corpus. Name the files or the folder of the corpus.")
    left_out: list[LeftOut] = []
    # The path is not resolved: caches of data sets hold links to blobs whose names say nothing.
    walk = _Walk(root, left_out)
    files = walk.saved_dataset() if matches == [root] and _is_saved_dataset(root) else walk.files(matches)
    for each in dict.fromkeys(left_out):
        on_left_out(each)
    if not files:
        without = f": {some(list(map(str, left_out)), 3)}" if left_out else "; hidden files are skipped"
        raise CorpusError(f"{argument}: the folder holds no data files{without}. Name the files of the corpus.")
    yield from files


def shown(path: str | Path) -> str:
    r"""Return a path as text that can be stored and printed: a byte that is not UTF-8 becomes ``\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class _Walk:
    """A walk through a folder and what its links lead to. Each folder is read once, however many links lead to it.

    Args:
        root: folder that the walk begins in.
        left_out: list that the files and folders that are not read are added to.
    """

    def __init__(self, root: Path, left_out: list[LeftOut]):
        self._root = root
        self._real_root = Path(os.path.realpath(root))
        self._name = shown(root.resolve().name if root.name == ".." else root.name)
        self._left_out = left_out
        # Files by path, with their identities; and True for those that a link leads to.
        self._found: dict[Path, tuple[bool, tuple[Any, ...]]] = {}
        # Folders to visit. Those that links lead to wait until all others are visited.
        self._folders: list[Path] = []
        self._linked: list[Path] = []

    def files(self, given: Sequence[Path]) -> list[DataFile]:
        """Return the data files of the given files and folders, which lie in the root or are the root.

        Raises:
            CorpusError: something cannot be read, or a folder is a saved data set with several splits.
        """
        for folder, group in groupby((path for path in given if path != self._root), key=lambda path: path.parent):
            self._visit(folder, _names(folder), [path.name for path in group])
        self._folders += [self._root] if self._root in given else []
        visited: set[str] = set()
        while self._folders or self._linked:
            is_linked = not self._folders
            folder = (self._linked if is_linked else self._folders).pop(0)
            real = os.path.realpath(folder)
            # A link that leads upwards would bring in everything that the user did not name.
            if real in visited or (is_linked and self._real_root.is_relative_to(real)):
                if is_linked:
                    self._leave_out(folder, "a link to a folder that is read anyway, or that leads upwards")
                continue
            visited.add(real)
            names = _names(folder)
            if "dataset_dict.json" in names:
                _refuse_splits(folder)
            if folder != self._root and (what := folder_without_data(folder, names)):
                self._leave_out(folder, what)
                continue
            self._visit(folder, names, [name for name in names if not name.startswith(".")])
        return self._once_each()

    def saved_dataset(self) -> list[DataFile]:
        """Return the files that ``datasets.Dataset.save_to_disk`` wrote, in the order of the data set's rows."""
        state = _load_object(self._root / "state.json")
        if state.get("_indices_files") or state.get("_indices_data_files"):
            raise CorpusError(
                f"{self._root}: the saved data set is a selection of rows. Call its flatten_indices() and save it "
                "again."
            )
        files = [self._root / entry["filename"] for entry in state.get("_data_files", [])]
        for file in files:
            if not file.is_file():
                raise CorpusError(
                    f"{file}: the saved data set names this file, but it is missing. Copy the folder again."
                )
        own = {file.name for file in files} | {"state.json", "dataset_info.json"}
        for name in _names(self._root):
            if name not in own and not name.startswith("."):
                self._leave_out(self._root / name, "not in the saved data set")
        return [self._data_file(file, _identity(file.stat(), os.path.realpath(file))) for file in files]

    def _visit(self, folder: Path, siblings: Sequence[str], names: Sequence[str]) -> None:
        """Take up files and folders of a folder. ``siblings`` are all names in it."""
        real = os.path.realpath(folder)
        is_linked = Path(real) != self._real_root / folder.relative_to(self._root)
        known = frozenset(siblings)
        for name in names:
            path = folder / name
            is_link = path.is_symlink()
            without_data = file_without_data(path, known)
            try:
                status = _status(path)
            except CorpusError:
                # A file that would not be read may be broken.
                if not without_data:
                    raise
                status = None
            if status is not None and stat.S_ISDIR(status.st_mode):
                if name.startswith("_"):
                    self._leave_out(path, "a folder whose name begins with _")
                else:
                    (self._linked if is_link or is_linked else self._folders).append(path)
            elif without_data:
                self._leave_out(path, without_data)
            elif status is None or not stat.S_ISREG(status.st_mode):
                raise UnreadableError(
                    f"{shown(path)}: this is a pipe, a socket or a device, and no file. Write what it gives to a file, "
                    "or take it out of the folder."
                )
            else:
                target = os.path.realpath(path) if is_link else f"{real}/{name}"
                self._found[path] = is_link or is_linked, _identity(status, target)

    def _once_each(self) -> list[DataFile]:
        """Return the files that were found, by name, and each under one of its paths."""
        order = sorted(self._found, key=lambda path: (self._found[path][0], path.parts))
        kept: dict[tuple[Any, ...], Path] = {}
        for path in order:
            first = kept.setdefault(self._found[path][1], path)
            if first != path:
                self._leave_out(path, f"the same file as {self._relative(first)}")
        return [self._data_file(path, self._found[path][1]) for path in sorted(kept.values(), key=lambda p: p.parts)]

    def _data_file(self, path: Path, identity: tuple[Any, ...]) -> DataFile:
        return DataFile(path, self._relative(path), identity, is_named=False)

    def _leave_out(self, path: Path, reason: str) -> None:
        self._left_out.append(LeftOut(self._relative(path), reason))

    def _relative(self, path: Path) -> str:
        return f"{self._name}/{shown(path.relative_to(self._root).as_posix())}"


def _is_saved_dataset(folder: Path) -> bool:
    """Return True if ``datasets.Dataset.save_to_disk`` wrote a folder."""
    state, info = folder / "state.json", folder / "dataset_info.json"
    return info.is_file() and state.is_file() and bool(_load_object(state).keys() & _STATE_KEYS)


def _names(folder: Path) -> list[str]:
    """Return the sorted names in a folder."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except OSError as error:
        raise UnreadableError(
            f"{shown(folder)}: the folder cannot be listed ({error.strerror}). Check its permissions."
        ) from error


def _status(path: Path) -> os.stat_result:
    """Return the status of what a path leads to."""
    try:
        return path.stat()
    except OSError as error:
        if error.errno in _DANGLING and path.is_symlink():
            raise UnreadableError(
                f"{shown(path)}: the link points to nothing: {shown(path.readlink())} is not there. Restore it, or "
                "remove the link."
            ) from error
        raise unreadable(shown(path), error) from error


def _identity(status: os.stat_result, real_path: str) -> tuple[Any, ...]:
    """Return the identity of a file from its status and its path without links."""
    if status.st_nlink > 1:
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    # Some network file systems give all files the same number, so that a number alone proves nothing.
    return (real_path,)


def _refuse_splits(folder: Path) -> None:
    names = _load_object(folder / "dataset_dict.json").get("splits")
    if isinstance(names, list):
        raise CorpusError(
            f"{folder}: this is a saved data set with the splits {listed(names)}. Name the folder of one split, e.g."
            f" {folder / str(names[0]) if names else folder}."
        )


def _load_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if it holds another value."""
    try:
        values = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise CorpusError(f"{path}: broken JSON ({error}). Copy the folder again.") from None
    return values if isinstance(values, dict) else {}
