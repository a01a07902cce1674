"""Cut a file into parts, and find the first place in each part where reading can begin."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..compression import DECOMPRESSION_ERRORS, Compression, inflate, new_decompressor
from ..document import Source
from ..formats.columnar import ColumnarSource
from ..formats.text_source import FileSource
from ..rejected import unreadable
from ..streams import POINT_SPACING

PART_BYTES: dict[Compression, int] = {
    "none": 32 * POINT_SPACING,
    "gzip": 16 * POINT_SPACING,
    "zstd": 16 * POINT_SPACING,
    "bz2": 8 * POINT_SPACING,
}
"""Size of a part in bytes of the file: a second or two of work. Multiples of the spacing of a member table, so that a
table does not depend on parts."""

PART_ROWS = 1 << 16
"""Smallest number of rows in a part of a table."""

# Beginnings of members. The pattern for gzip also demands flags, compression levels and systems that exist, because
# three bytes of magic stand in many files by chance.
_MEMBERS: dict[Compression, re.Pattern[bytes]] = {
    "bz2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)", re.DOTALL),
    "gzip": re.compile(rb"\x1f\x8b\x08[\x00-\x1f].{4}[\x00\x02\x04][\x00-\x0d\xff]", re.DOTALL),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL),
}
# Longest match of these patterns, less one byte.
_OVERHANG = 9
# Bytes that are searched at a time, and bytes of a member that are decompressed to see whether it is one.
_SEARCHED = 1 << 20
_TRIED = 16 << 10


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a source, which one process reads.

    A part is exact if the record that it begins with is known. Otherwise its first record is found by looking for one,
    and positions and numbers count from there.

    Attributes:
        source: number of the source.
        begin: offset in the file at which the part begins; 0 for tables.
        end: offset in the file at which the next part begins; None for the last part and for tables.
        entry: member to enter the file at, as in ``TextFile.points``; None if the part is not exact.
        start: position of the first record; None if the part is not exact.
        stop: position of the first record behind the part, if that is known.
        counted: number of lines or pages before ``start``.
    """

    source: int
    begin: int = 0
    end: int | None = None
    entry: tuple[int, int] | None = None
    start: int | None = None
    stop: int | None = None
    counted: int = 0


def whole(index: int) -> Part:
    """Return all of source number ``index`` as one part."""
    return Part(index, entry=(0, 0), start=0)


def parts_of(index: int, source: Source) -> Iterator[Part]:
    """Yield the parts of source number ``index``, which do not depend on who reads them.

    Raises:
        CorpusError: if the file cannot be read.
    """
    if isinstance(source, ColumnarSource):
        starts = source.starts(PART_ROWS)
        for start, stop in zip(starts, [*starts[1:], None], strict=True):
            yield Part(index, start=start, stop=stop, counted=start)
        return
    if not isinstance(source, FileSource) or not source.enters_anywhere or source.file.encoding != "utf-8":
        yield whole(index)
        return
    size = _size(source)
    step = PART_BYTES[source.file.compression]
    for begin in range(0, max(size, 1), step):
        end = begin + step if begin + step < size else None
        yield Part(index, begin, end) if begin else Part(index, 0, end, (0, 0), 0)


def work_of(source: Source) -> float:
    """Return the work of reading a source, in parts.

    Raises:
        CorpusError: if the file cannot be read.
    """
    return _size(source) / PART_BYTES[source.file.compression if isinstance(source, FileSource) else "none"]


def _size(source: Source) -> int:
    try:
        return Path(source.path).stat().st_size
    except OSError as error:
        raise unreadable(source.name, error) from None


def first_member(path: str, name: str, compression: Compression, begin: int, end: int | None) -> int | None:
    """Return the offset of the first member of a compressed file that seems to begin between two offsets.

    It may be no member: bytes inside of one may look like another. Only who reads the members before it can tell.

    Raises:
        CorpusError: if the file cannot be read.
    """
    pattern = _MEMBERS[compression]
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise unreadable(name, error) from None
    try:
        while end is None or begin < end:
            window = os.pread(descriptor, _SEARCHED + _OVERHANG, begin)
            for found in pattern.finditer(window):
                offset = begin + found.start()
                if found.start() >= _SEARCHED or (end is not None and offset >= end):
                    break
                if _inflates(os.pread(descriptor, _TRIED, offset), compression):
                    return offset
            if len(window) < _SEARCHED:
                return None
            begin += _SEARCHED
    except OSError as error:
        raise unreadable(name, error) from None
    finally:
        os.close(descriptor)
    return None


def _inflates(data: bytes, compression: Compression) -> bool:
    """Return True if a member may begin with these bytes."""
    try:
        for _ in inflate(new_decompressor(compression), data, compression):
            pass
    except DECOMPRESSION_ERRORS:
        return False
    return True
