"""Text files of questions, runs and judgements: compressed or not, in UTF-8 or in UTF-16 with a byte order mark."""

from collections.abc import Iterator
from pathlib import Path

import xxhash

from ...corpus.files import DataFile
from ...corpus.framing import without_mark
from ...corpus.recognise import recognise
from ...corpus.streams import ByteStream
from ...errors import CorpusError, QuestionsError
from ...places import input_path


class TextLines:
    """The lines of a text file, read as they are iterated over; ``corpus`` recognises and decompresses the file.

    Iterating yields each line that is not blank, with its number from 1 and without its end. Only a line feed ends a
    line, perhaps with a carriage return before it. Byte order marks at the beginning of a line are dropped.

    Args:
        path: the file.

    Attributes:
        format: ``"jsonl"``, ``"json"``, ``"tsv"``, ``"text"`` or ``"empty"``.

    Raises:
        QuestionsError: if the file cannot be read or is no text; while iterating, if it is damaged or not valid in its
            encoding.
    """

    def __init__(self, path: str | Path):
        self._path = path
        self._hash = xxhash.xxh3_128()
        file = input_path(path, QuestionsError).absolute()
        try:
            # A pipe cannot be read twice, and to open one may take for ever.
            if file.exists() and not file.is_file():
                raise CorpusError(f"{path}: this is not a regular file. Write its text to a file, and name that.")
            found = recognise(DataFile(file, str(path)))
        except PermissionError as error:
            raise QuestionsError(f"{path}: the file cannot be read: {error.strerror}.") from error
        except CorpusError as error:
            raise QuestionsError(str(error)) from error
        if found.format in ("parquet", "arrow", "mediawiki"):
            kind = {"parquet": "a Parquet file", "arrow": "an Arrow file", "mediawiki": "XML"}[found.format]
            raise QuestionsError(f"{path}: the file is {kind}. Write it as JSON lines or as text with tabs.")
        self.format = found.format
        self._file = found.text_file

    def __iter__(self) -> Iterator[tuple[int, str]]:
        for number, line in self._all():
            if line.strip():
                yield number, line.removesuffix("\r")

    @property
    def digest(self) -> str:
        """xxh3-128 of the bytes that were read, decompressed and in UTF-8, in hexadecimal."""
        return self._hash.hexdigest()

    def text(self) -> str:
        """Return the whole text, without byte order marks."""
        return "\n".join(line for _, line in self._all())

    def _all(self) -> Iterator[tuple[int, str]]:
        self._hash.reset()
        for number, line in enumerate(self._cut(), start=1):
            try:
                yield number, without_mark(line).decode()
            except UnicodeDecodeError as error:
                place = f"{self._path}, line {number}"
                raise QuestionsError(f"{place}: not UTF-8: {error.reason}. Save the file as UTF-8.") from None

    def _cut(self) -> Iterator[bytes]:
        if self._file is None:
            return
        stream, begun = ByteStream(self._file), b""
        try:
            while block := stream.read():
                self._hash.update(block)
                first, *further = block.split(b"\n")
                begun += first
                if further:
                    yield begun
                    yield from further[:-1]
                    begun = further[-1]
            yield begun
        except CorpusError as error:
            raise QuestionsError(str(error)) from error
        finally:
            stream.close()
