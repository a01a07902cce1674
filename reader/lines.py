"""Lines of the text files that questions and runs come in."""

from collections.abc import Iterator
from pathlib import Path

from ..errors import QuestionsError


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file that are not blank, each with its number from 1.

    Raises:
        QuestionsError: if the file cannot be read or is not UTF-8.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise QuestionsError(f"{path}: the file cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise QuestionsError(f"{path}, line {line}: not UTF-8: {error.reason}. Save the file as UTF-8.") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line
