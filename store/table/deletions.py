"""Check the lists of deleted rows, which Lance keeps beside the data files, before Lance reads them.

A short list is an Arrow IPC file with one column of row numbers, and its buffers may be compressed. Lance allocates as
much memory as the lengths in the file say, and a length beyond all memory ends the process. pyarrow refuses most of
these lengths, but ignores buffers that it does not need. A long list is a Roaring bitmap, which cannot ask for more
memory than its own size.
"""

import struct
from functools import lru_cache
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import LanceFragment

from ...errors import CorruptStoreError
from .addresses import local_folder
from .datasets import open_table
from .failures import lance_errors

_MAGIC = b"ARROW1"
_PREFIX_BYTES = 8
_BLOCK = struct.Struct("<qi4xq")
_BUFFER = struct.Struct("<qq")
_NODE = struct.Struct("<qq")

# Positions of fields in the tables Footer, Message and RecordBatch, from Arrow's File.fbs and Message.fbs.
_FOOTER_DICTIONARIES, _FOOTER_BATCHES = 2, 3
_MESSAGE_TYPE, _MESSAGE_HEADER, _MESSAGE_BODY = 1, 2, 3
_BATCH_LENGTH, _BATCH_NODES, _BATCH_BUFFERS = 0, 1, 2
_RECORD_BATCH = 3


def deletion_file_problem(dataset: lance.LanceDataset, fragment: LanceFragment) -> str | None:
    """Return the problem with a fragment's list of deleted rows in a local folder; None if there is none."""
    name = fragment.deletion_file()
    folder = local_folder(dataset.uri)
    if name is None or folder is None:
        return None
    path = folder / name
    deleted = fragment.metadata.num_deletions
    try:
        state = path.stat()
        if path.suffix == ".arrow":
            _check_list(path, state.st_size, state.st_mtime_ns, fragment.physical_rows, deleted)
    except FileNotFoundError:
        return f"{name} is missing"
    # Damaged lengths and offsets can raise any of these.
    except (OSError, ValueError, OverflowError, MemoryError, IndexError, struct.error, pa.ArrowException) as error:
        return f"{name} cannot be read ({error})"
    return None


def open_checked(uri: str, table: str, version: int | None = None) -> lance.LanceDataset:
    """Open a table, and check its lists of deleted rows before anything is read.

    Raises:
        CorruptStoreError: a list is missing or damaged.
        StoreError: there is no such table or version, or it cannot be read.
    """
    return checked(open_table(uri, table, version), uri)


def checked(dataset: lance.LanceDataset, uri: str) -> lance.LanceDataset:
    """Return an open table after checking its lists of deleted rows.

    Raises:
        CorruptStoreError: a list is missing or damaged.
        StoreError: the table cannot be read.
    """
    with lance_errors(f"cannot open {dataset.uri}"):
        for fragment in dataset.get_fragments():
            if problem := deletion_file_problem(dataset, fragment):
                raise CorruptStoreError(f"{dataset.uri}: {problem}. See: pisco-index verify {uri}")
    return dataset


# Cached because such a file never changes, and every commit opens the table again.
@lru_cache(maxsize=1 << 16)
def _check_list(path: Path, size: int, changed_ns: int, rows: int, deleted: int | None) -> None:  # noqa: ARG001
    """Check an Arrow file of row numbers.

    Raises:
        ValueError: the file is damaged. Reading damaged bytes can raise other errors too.
    """
    content = path.read_bytes()
    if len(content) != size:
        raise ValueError("the file changed while it was read")
    _check_lengths(content)
    # Starting threads would take longer than reading the list.
    read = pa.ipc.open_file(content, options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()
    read.validate(full=True)
    numbers = np.sort(read.column(0).to_numpy())
    if deleted is not None and len(numbers) != deleted:
        raise ValueError(f"the file lists {len(numbers)} rows and not {deleted}")
    if len(numbers) and (numbers[-1] >= rows or (numbers[1:] == numbers[:-1]).any()):
        raise ValueError("the file lists rows that the data file does not have, or a row twice")


def _check_lengths(content: bytes) -> None:
    """Check that every part that an Arrow file refers to lies within the file."""
    end = len(content) - len(_MAGIC) - 4
    if end < 0 or not content.endswith(_MAGIC):
        raise ValueError("the file does not end like an Arrow file")
    begin = end - _at("<i", content, end)
    footer = _table(content, begin)
    if _vector(content, footer, _FOOTER_DICTIONARIES, _BLOCK):
        raise ValueError("the file has a dictionary")
    for place, metadata_bytes, body_bytes in _vector(content, footer, _FOOTER_BATCHES, _BLOCK):
        body = place + metadata_bytes
        if not (0 <= place < body <= body + body_bytes <= begin):
            raise ValueError("a block reaches beyond the end of the file")
        _check_batch(content, place, body, body_bytes)


def _check_batch(content: bytes, place: int, body: int, body_bytes: int) -> None:
    marker, metadata_bytes = struct.unpack_from("<Ii", content, place)
    message = _table(content, place + _PREFIX_BYTES)
    if marker != 0xFFFFFFFF or place + _PREFIX_BYTES + metadata_bytes != body:
        raise ValueError("the length of a message differs from its block's")
    if _scalar("<B", content, message, _MESSAGE_TYPE) != _RECORD_BATCH:
        raise ValueError("a block is not a record batch")
    if _scalar("<q", content, message, _MESSAGE_BODY) != body_bytes:
        raise ValueError("the body of a message differs from its block's")
    field = _field(content, message, _MESSAGE_HEADER)
    batch = field + _at("<I", content, field)
    rows = _scalar("<q", content, batch, _BATCH_LENGTH)
    if _vector(content, batch, _BATCH_NODES, _NODE) != [(rows, 0)]:
        raise ValueError("a batch is not one column without nulls")
    most = max(8 * rows, _PREFIX_BYTES * 8)
    for offset, length in _vector(content, batch, _BATCH_BUFFERS, _BUFFER):
        if not (0 <= offset <= offset + length <= body_bytes):
            raise ValueError("a buffer reaches beyond its message")
        # A compressed buffer begins with the length of its content, which is -1 if it is stored uncompressed.
        if length and not -1 <= _at("<q", content, body + offset) <= most:
            raise ValueError("the length of a buffer does not fit its rows")


def _at(kind: str, content: bytes, place: int) -> int:
    if place < 0:
        raise ValueError("an offset lies before the start of the file")
    return struct.unpack_from(kind, content, place)[0]


def _table(content: bytes, place: int) -> int:
    return place + _at("<I", content, place)


def _field(content: bytes, table: int, number: int) -> int:
    """Return the position of a field of a flatbuffer table; 0 if the table lacks the field."""
    fields = table - _at("<i", content, table)
    entry = 4 + 2 * number
    offset = _at("<H", content, fields + entry) if entry < _at("<H", content, fields) else 0
    return table + offset if offset else 0


def _scalar(kind: str, content: bytes, table: int, number: int) -> int:
    field = _field(content, table, number)
    return _at(kind, content, field) if field else 0


def _vector(content: bytes, table: int, number: int, kind: struct.Struct) -> list[tuple[int, ...]]:
    field = _field(content, table, number)
    if not field:
        return []
    begin = field + _at("<I", content, field)
    end = begin + 4 + _at("<I", content, begin) * kind.size
    if end > len(content):
        raise ValueError("a vector reaches beyond the end of the file")
    return list(kind.iter_unpack(content[begin + 4 : end]))
