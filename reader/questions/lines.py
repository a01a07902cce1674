"""Text files of questions, runs and judgements: compressed or not, in UTF-8 or in UTF-16 with a byte order mark."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from ...corpus.files import DataFile
from ...corpus.recognise import recognise
from ...corpus.streams import ByteStream
from ...errors import CorpusError, QuestionsError


def read_text(path: str | Path) -> tuple[str, str]:
    """Return the format and the text of a file, as ``corpus`` recognises and decompresses it.

    Returns:
        ``"jsonl"``, ``"json"``, ``"tsv"``, ``"text"`` or ``"empty"``; and the text without its byte order mark.

    Raises:
        QuestionsError: if the file cannot be read, is no text, or is not valid in its encoding.
    """
    try:
        found = recognise(DataFile(Path(path).expanduser().absolute(), str(path)))
        content = b"" if found.text_file is None else b"".join(_blocks(ByteStream(found.text_file)))
    except CorpusError as error:
        raise QuestionsError(str(error)) from error
    if found.format in ("parquet", "arrow", "mediawiki"):
        kind = {"parquet": "a Parquet file", "arrow": "an Arrow file", "mediawiki": "XML"}[found.format]
        raise QuestionsError(f"{path}: the file is {kind}. Write it as JSON lines or as text with tabs.")
    try:
        return found.format, content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise QuestionsError(f"{path}, line {line}: not UTF-8: {error.reason}. Save the file as UTF-8.") from None


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text that are not blank, each with its number from 1 and without its end."""
    # str.splitlines would also cut at characters that may stand inside a question, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that are not blank, each with its number from 1.

    Raises:
        QuestionsError: see ``read_text``.
    """
    yield from lines_of(read_text(path)[1])


def _blocks(stream: ByteStream) -> Iterator[bytes]:
    try:
        while block := stream.read():
            yield block
    finally:
        stream.close()
