"""Lists of document ids in text files, which name the documents of a command."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..configs.corpus import CorpusConfig
from ..errors import CorpusError, InputError
from ..places import input_path
from .files import DataFile
from .framing import decode_line, lines, too_long
from .recognise import recognise
from .rejected import unreadable
from .streams import ByteStream


def read_ids(path: str | Path) -> list[str]:
    """Read document ids from a text file with one id per line, in the encodings and compressions of a corpus.

    Blank lines are skipped.

    Raises:
        InputError: if the file cannot be read, is not text, or holds no id.
    """
    try:
        if not (ids := list(_ids(input_path(path), str(path)))):
            raise CorpusError(f"{path}: the file holds no id.")
    except CorpusError as error:
        raise InputError(f"{error} A file of ids has one id per line.") from error
    return ids


def _ids(path: Path, name: str) -> Iterator[str]:
    if path.exists() and not path.is_file() and not path.is_dir():
        # A pipe cannot be read twice.
        with tempfile.NamedTemporaryFile() as copy, path.open("rb") as pipe:
            shutil.copyfileobj(pipe, copy)
            copy.flush()
            yield from _ids(Path(copy.name), name)
        return
    try:
        # Ids may look like any format: each line is one.
        found = recognise(DataFile(path, name), CorpusConfig(format="tsv"))
    except IsADirectoryError as error:
        raise unreadable(name, error) from None
    if found.format in ("parquet", "arrow"):
        raise CorpusError(f"{name}: the file is {found.format.title()}.")
    if found.text_file is None:
        return
    stream = ByteStream(found.text_file)
    try:
        for number, _, line in lines(stream, None):
            place = f"{name}, line {number}"
            if line is None:
                raise too_long(place)
            doc_id = decode_line(line.removesuffix(b"\r"), place)
            if doc_id.strip():
                yield doc_id
    finally:
        stream.close()
