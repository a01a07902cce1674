"""Lists of document ids in text files, which name the documents of a command."""

from pathlib import Path

from ..errors import InputError
from ..places import input_path


def read_ids(path: str | Path) -> list[str]:
    """Read document ids from a UTF-8 text file with one id per line. Empty lines are skipped.

    Raises:
        InputError: if the file cannot be read, is not UTF-8, or holds no id.
    """
    try:
        lines = input_path(path).read_text("utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: the file of ids cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: the file is not UTF-8 at byte {error.start}. Write one id per line, in UTF-8."
        ) from error
    ids = [line.removesuffix("\r") for line in lines]
    if not (ids := [line for line in ids if line]):
        raise InputError(f"{path}: the file holds no id. Write one id per line.")
    return ids
