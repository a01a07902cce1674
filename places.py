"""Places that a user names: files and folders in each spelling that people use, and patterns such as ``data/*.jsonl``.

Every argument, option and configuration key that names a local place is read here, so that a spelling that works in
one of them works in all.
"""

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote_to_bytes

from .errors import InputError, some

# A drive of Windows has one letter, so a scheme has two.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)
# ``file:///data`` and ``file://localhost/data``, also with the one slash that a Path leaves of two.
_FILE = re.compile(r"file:(?:/{1,2}localhost(?=/)|//([^/]*))?(/.*)?", re.IGNORECASE | re.DOTALL)
_WILDCARD = re.compile(r"[*?[]")


def local_path(place: str | Path, error: type[InputError] = InputError) -> Path:
    """Return the path of a local file or folder: ``data``, ``~/data``, ``~user/data`` or ``file:///data``.

    Args:
        place: spelling of the place, which need not exist.
        error: class of the error to raise.

    Raises:
        InputError: it is empty, an address such as ``s3://…``, or in the home folder of an unknown user.
    """
    text = os.fspath(place)
    if not text or "\0" in text:
        raise error(f"{text!r} is no path: it is {'not empty but has a zero byte' if text else 'empty'}. Name a path.")
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Path(_expanded(text, error))
    if scheme[1].lower() != "file":
        raise error(
            f"{text}: files are read from and written to local or mounted paths, not {scheme[1]}: addresses. Name a "
            "path: download the file or mount the place first, or write to a folder and copy it."
        )
    match = _FILE.fullmatch(text)
    assert match is not None
    host, path = match.groups()
    if host or path is None:
        raise error(
            f"{text}: a file address with a path on this machine has three slashes: file:///FOLDER/FILE. Correct it, "
            "or leave out file://."
        )
    return Path(os.fsdecode(unquote_to_bytes(os.fsencode(path))))


def input_paths(place: str | Path, error: type[InputError] = InputError) -> tuple[Path, tuple[Path, ...]]:
    """Return the files and folders to read that a place names: itself, or everything that matches its pattern.

    ``*``, ``?`` and ``[…]`` match within a name, and ``**`` any number of folders. A file whose own name has such
    characters is found by its name. Names that begin with a dot match only a pattern that does.

    Returns:
        The folder that the pattern searches, and the matches in order; for a place that is no pattern, its path twice.

    Raises:
        InputError: as from ``local_path``; nothing matches the pattern; or a folder cannot be listed.
    """
    path = local_path(place, error)
    folder, pattern = _split_pattern(path)
    if not pattern:
        return path, (path,)
    try:
        matches = sorted(set(_matches(folder, pattern)), key=lambda match: match.parts)
    except OSError as failure:
        raise error(f"{failure.filename}: the folder cannot be listed ({failure.strerror}).") from failure
    if not matches:
        raise error(f"{place}: no file or folder matches this pattern. Check the path.")
    return folder, tuple(matches)


def input_path(place: str | Path, error: type[InputError] = InputError) -> Path:
    """Return the path of one file that is to be read. A pattern must match one file.

    Raises:
        InputError: as from ``input_paths``; or several files match the pattern.
    """
    _, matches = input_paths(place, error)
    if len(matches) > 1:
        named = some([str(match) for match in matches], 3)
        raise error(f"{place}: {len(matches):,} files match this pattern, and one is read: {named}. Name one.")
    return matches[0]


def is_local_file(place: str | Path) -> bool:
    """Return True if a place names one local file; False for all others, those that cannot be read included."""
    try:
        return input_path(place).is_file()
    except InputError:
        return False


def _expanded(text: str, error: type[InputError]) -> str:
    """Return a path with the home folder in place of ``~`` or ``~user``."""
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)  # noqa: PTH111  Path.expanduser raises for a file such as ~draft.jsonl
    user = text.partition("/")[0]
    # As in a shell, ~name is a file of that name if there is no such user.
    if expanded == text and (user == "~" or not os.path.lexists(text)):
        raise error(f"{text}: the home folder {user} is unknown. Write the whole path, or ./{text} for such a name.")
    return expanded


def _split_pattern(path: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the part of a path that exists by its own name, and the parts of the pattern behind it, if any."""
    if not _WILDCARD.search(str(path)) or os.path.lexists(path):
        return path, ()
    folder, rest = Path(path.anchor), path.relative_to(path.anchor).parts
    while os.path.lexists(folder / rest[0]):
        folder, rest = folder / rest[0], rest[1:]
    return folder, rest if any(map(_WILDCARD.search, rest)) else ()


def _matches(folder: Path, pattern: tuple[str, ...]) -> Iterator[Path]:
    """Yield what matches the parts of a pattern below a folder.

    Raises:
        OSError: a folder cannot be listed. The standard library's ``glob`` would skip it.
    """
    if not pattern:
        yield folder
        return
    first, *rest = pattern
    if first == "**":
        yield from _matches(folder, tuple(rest))
        for name in _names(folder, "*"):
            # A link to a folder around it would lead in a circle.
            if (folder / name).is_dir() and not folder.resolve().is_relative_to((folder / name).resolve()):
                yield from _matches(folder / name, pattern)
    elif not _WILDCARD.search(first):
        if os.path.lexists(folder / first):
            yield from _matches(folder / first, tuple(rest))
    else:
        for name in _names(folder, first):
            if not rest or (folder / name).is_dir():
                yield from _matches(folder / name, tuple(rest))


def _names(folder: Path, pattern: str) -> list[str]:
    names = (name for name in os.listdir(folder) if pattern.startswith(".") or not name.startswith("."))  # noqa: PTH208
    return [name for name in names if fnmatchcase(name, pattern)]
