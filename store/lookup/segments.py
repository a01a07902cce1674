"""A segment of the id map: a sorted table of hashes that finds rows by document id.

It has the same bytes in a file as in memory.

The *position* of a row in a segment is its number when the rows of the segment's data files are counted, file after
file. The segment gives, for each 64-bit hash of an id, the positions of the rows with that hash. Data files never
change, so positions stay valid. Deleted rows stay in the segment; readers check the deletions of their own version.

A segment's file is named after its data files: BLAKE2b-128, in hexadecimal, of its parts' keys, sorted and
concatenated. It is in the byte order of the machine, and each section begins at a multiple of 8 bytes:

- prefix: ``piscoids``; u32 version; u32 CRC-32 of the header; u64 length of the header;
- header: JSON with ``byteorder``; ``integer``, ``I`` or ``Q`` for integers of 32 or 64 bits; ``bucket_bits`` b;
  ``checksums``, the CRC-32 of the next section in hexadecimal; ``parts``;
- checksums: u32 for each block of 64 buckets, the CRC-32 of its part of the next three sections;
- starts: 2^b + 1 integers, the first row of each bucket, then the number of rows;
- hashes: u64 for each row, ascending: XXH3-64 of the id, with a seed. A bucket holds those with the same upper b bits;
- positions: an integer for each row.

A part is one fragment, ``[key, rows, pages]``. Its key is a hash of its data files' names and column layout, its pages
are the fields of ``PayloadPage``.
"""

import json
import math
import mmap
import os
import struct
import sys
import zlib
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from ..table.pages import Integer, PayloadPage

MAGIC = b"piscoids"
MAP_VERSION = 2

_PREFIX = struct.Struct("<8sIIQ")
# Average number of rows in a bucket, small enough for a quick search and large enough for a small table of buckets.
_ROWS_PER_BUCKET = 8
_BUCKET_BITS_PER_BLOCK = 6
_BUCKETS_PER_BLOCK = 1 << _BUCKET_BITS_PER_BLOCK
_ALIGNED = 8

GROUP_BITS = 8
"""Number of upper bits of a hash by which rows are grouped before they are sorted, group by group."""

Bytes = bytes | memoryview | mmap.mmap


class DamagedMapError(Exception):
    """The bytes of a map are not those that were written. The caller makes a new map."""


class Part(NamedTuple):
    """The rows of one fragment, in the order of its data files.

    Attributes:
        key: name that identifies the data files.
        rows: number of rows, deleted ones included.
        pages: places of the payloads.
    """

    key: str
    rows: int
    pages: tuple[PayloadPage, ...]


class Run(Protocol):
    """Some rows of a new segment, grouped by the upper bits of their hashes."""

    def rows(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return hashes and positions in the new segment, both ``(k,)``, of the groups in a range."""
        ...


class Segment:
    """Positions of rows by the hashes of their ids. A segment is read-only, so threads may share it.

    It takes 12.5 bytes per row. Hashes are spread evenly, so their upper bits select a bucket of about 8 rows. Each
    block of 64 buckets has a checksum, which is compared when the block is first used.

    Args:
        buffer: bytes that ``write_segment`` made, in memory or mapped from a file.

    Attributes:
        parts: the fragments that its positions count, in their order.
        count: number of rows.

    Raises:
        DamagedMapError: the buffer is damaged, cut short, or not a segment of this version.
    """

    def __init__(self, buffer: Bytes):
        view = memoryview(buffer)
        if len(view) < _PREFIX.size:
            raise DamagedMapError("it is cut short")
        magic, version, checksum, length = _PREFIX.unpack_from(view)
        if (magic, version) != (MAGIC, MAP_VERSION):
            raise DamagedMapError("it is not an id map of this version")
        sections = _Sections(view, _PREFIX.size)
        header_bytes = sections.take(length, "B")
        if zlib.crc32(header_bytes) != checksum:
            raise DamagedMapError("its header fails its checksum")
        header = json.loads(bytes(header_bytes))
        if header["byteorder"] != sys.byteorder:
            raise DamagedMapError("it was made on a machine of another byte order")
        self.parts = tuple(
            Part(key, rows, tuple(PayloadPage(*page) for page in pages)) for key, rows, pages in header["parts"]
        )
        self.count = sum(part.rows for part in self.parts)
        integer, buckets = header["integer"], 1 << header["bucket_bits"]
        blocks = math.ceil(buckets / _BUCKETS_PER_BLOCK)
        self._shift = 64 - header["bucket_bits"]
        self._checksums = sections.take(blocks, "I")
        if f"{zlib.crc32(self._checksums):08x}" != header["checksums"]:
            raise DamagedMapError("its checksums fail their checksum")
        places = []
        for count, kind in ((buckets + 1, integer), (self.count, "Q"), (self.count, integer)):
            places.append((sections.at, sections.take(count, kind)))
        sections.require_end()
        (_, self._starts), (_, self._hashes), (_, self._positions) = self._places = tuple(places)
        self._unchecked = set(range(blocks))
        self._file = buffer if isinstance(buffer, mmap.mmap) and hasattr(buffer, "madvise") else None
        if self._file is not None:
            # Look-ups are scattered, so reading ahead would be wasted.
            self._file.madvise(mmap.MADV_RANDOM)

    def find(self, keys: Sequence[int]) -> list[int | tuple[int, ...]]:
        """Find the rows with some hashes.

        Returns:
            For each hash, the position of the row with this hash if there is exactly one; otherwise a tuple of the
            positions of all such rows, which may be empty.

        Raises:
            DamagedMapError: a block fails its checksum, or the file was cut short since it was mapped.
        """
        shift, starts, hashes, positions = self._shift, self._starts, self._hashes, self._positions
        # Reading a mapped page beyond the end of a file would end the process.
        if self._file is not None and self._file.size() != len(self._file):
            raise DamagedMapError("its file was cut short")
        if self._unchecked:
            self._check(keys)
        found: list[int | tuple[int, ...]] = []
        for key in keys:
            bucket = key >> shift
            end = starts[bucket + 1]
            at = bisect_left(hashes, key, starts[bucket], end)
            after = at + 1
            if at == end or hashes[at] != key:
                found.append(())
            elif after == end or hashes[after] != key:
                found.append(positions[at])
            else:
                while after < end and hashes[after] == key:
                    after += 1
                found.append(tuple(positions[at:after]))
        return found

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all hashes, ascending, and their positions, both ``(rows,)``.

        Raises:
            DamagedMapError: a block fails its checksum, or the file was cut short since it was mapped.
        """
        if self._file is not None:
            if self._file.size() != len(self._file):
                raise DamagedMapError("its file was cut short")
            self._file.madvise(mmap.MADV_SEQUENTIAL)
        for block in sorted(self._unchecked):
            self._check_block(block)
        return np.frombuffer(self._hashes, np.uint64), np.frombuffer(self._positions, self._positions.format)

    def _check(self, keys: Sequence[int]) -> None:
        shift = self._shift
        blocks = self._unchecked.intersection([(key >> shift) // _BUCKETS_PER_BLOCK for key in keys])
        if self._file is not None:
            self._will_need(self._file, blocks)
        for block in blocks:
            self._check_block(block)

    def _check_block(self, block: int) -> None:
        edges = self._starts[block * _BUCKETS_PER_BLOCK : (block + 1) * _BUCKETS_PER_BLOCK + 1]
        first, end = edges[0], edges[-1]
        if _checksum(edges, self._hashes[first:end], self._positions[first:end]) != self._checksums[block]:
            raise DamagedMapError("a block fails its checksum")
        self._unchecked.discard(block)

    def _will_need(self, file: mmap.mmap, blocks: Collection[int]) -> None:
        """Make the system read blocks all at once; otherwise it would read one page after the other."""
        starts, hashes, positions = self._places
        edges = [(block * _BUCKETS_PER_BLOCK, (block + 1) * _BUCKETS_PER_BLOCK + 1) for block in blocks]
        _advise(file, starts, edges)
        last = len(self._starts) - 1
        rows = [(self._starts[first], self._starts[min(end, last)]) for first, end in edges]
        _advise(file, hashes, rows)
        _advise(file, positions, rows)


class UnsortedRows:
    """New rows, as a run of a segment.

    Args:
        hashes: hashes of their ids, ``(k,)`` uint64.
        positions: their positions in the new segment, ``(k,)``.
    """

    def __init__(self, hashes: np.ndarray, positions: np.ndarray):
        groups = (hashes >> np.uint64(64 - GROUP_BITS)).astype(np.uint8)
        # Stable, because numpy then sorts bytes by counting them.
        order = np.argsort(groups, kind="stable")
        self._edges = np.append(0, np.cumsum(np.bincount(groups, minlength=1 << GROUP_BITS)))
        self._hashes, self._positions = hashes[order], positions[order]

    def rows(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return hashes and positions of the groups in a range."""
        chosen = slice(self._edges[first], self._edges[end])
        return self._hashes[chosen], self._positions[chosen]


class KeptRows:
    """The rows of an older segment that a new one takes over, as a run of it.

    Args:
        segment: the older segment.
        firsts: the first position in the new segment of each part of the older one; None for a part that is left out.

    Raises:
        DamagedMapError: the older segment is damaged.
    """

    def __init__(self, segment: Segment, firsts: Sequence[int | None]):
        self._hashes, self._positions = segment.arrays()
        edges = np.arange(1, 1 << GROUP_BITS, dtype=np.uint64) << np.uint64(64 - GROUP_BITS)
        self._edges = [0, *np.searchsorted(self._hashes, edges).tolist(), len(self._hashes)]
        self._ends = np.cumsum([part.rows for part in segment.parts])
        self._stays = np.array([first is not None for first in firsts])
        begins = self._ends - [part.rows for part in segment.parts]
        self._moves = np.array([first or 0 for first in firsts], np.int64) - begins

    def rows(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return hashes and positions of the groups in a range."""
        chosen = slice(self._edges[first], self._edges[end])
        hashes, positions = self._hashes[chosen], self._positions[chosen]
        if self._stays.all() and (self._moves == self._moves[0]).all():
            return hashes, positions + self._moves[0]
        owner = np.searchsorted(self._ends, positions, side="right")
        stays = self._stays[owner]
        return hashes[stays], (positions + self._moves[owner])[stays]


def write_segment(file: BinaryIO, parts: Sequence[Part], runs: Sequence[Run]) -> None:
    """Write a segment. Rows are sorted a group at a time, so this takes little memory besides the runs.

    Args:
        file: new file or buffer in memory, from its beginning.
        parts: fragments of the segment, in the order in which positions count their rows.
        runs: all rows of these fragments.

    Raises:
        OSError: the file cannot be written.
    """
    count = sum(part.rows for part in parts)
    bits = max(1, (count // _ROWS_PER_BUCKET).bit_length() - 1)
    integer, buckets = integer_for(count), 1 << bits
    width = struct.calcsize(integer)
    blocks = math.ceil(buckets / _BUCKETS_PER_BLOCK)
    # A group has whole blocks.
    groups = 1 << max(0, min(GROUP_BITS, bits - _BUCKET_BITS_PER_BLOCK))
    header = _header(integer, bits, 0, parts)
    at = _aligned(_PREFIX.size + len(header)) + _aligned(4 * blocks)
    starts_at = at
    hashes_at = starts_at + _aligned((buckets + 1) * width)
    positions_at = hashes_at + 8 * count
    checksums: list[int] = []
    done = 0
    for group in range(groups):
        hashes, positions = _sorted_group(runs, group, groups)
        edges = np.arange(group * buckets // groups, (group + 1) * buckets // groups, dtype=np.uint64)
        inner = np.append(np.searchsorted(hashes, edges << np.uint64(64 - bits)), len(hashes))
        starts, positions = (done + inner).astype(integer), positions.astype(integer, copy=False)
        checksums += _checksums(starts.data, hashes.data, positions.data, inner.tolist())
        for place, section in (
            (starts_at + group * (buckets // groups) * width, starts),
            (hashes_at + 8 * done, hashes),
            (positions_at + width * done, positions),
        ):
            file.seek(place)
            file.write(section.data)
        done += len(hashes)
    file.write(bytes(positions_at + _aligned(width * count) - file.seek(0, os.SEEK_END)))
    sums = np.array(checksums, np.uint32).data
    header = _header(integer, bits, zlib.crc32(sums), parts)
    # The prefix comes last: without it, the file is no segment.
    file.seek(_aligned(_PREFIX.size + len(header)))
    file.write(sums)
    file.seek(0)
    file.write(_PREFIX.pack(MAGIC, MAP_VERSION, zlib.crc32(header), len(header)) + header)


def integer_for(rows: int) -> Integer:
    """Return the format of integers that can count this many rows, in the letters of ``struct``."""
    return "I" if rows < 1 << 32 else "Q"


def _header(integer: Integer, bits: int, checksum: int, parts: Sequence[Part]) -> bytes:
    """Return the header, which has the same length for every checksum."""
    values = {"byteorder": sys.byteorder, "integer": integer, "bucket_bits": bits, "checksums": f"{checksum:08x}"}
    return json.dumps(values | {"parts": parts}, separators=(",", ":")).encode()


def _sorted_group(runs: Sequence[Run], group: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return hashes, ascending, and positions of the rows in one of some equal groups of all hashes."""
    size = (1 << GROUP_BITS) // groups
    taken = [run.rows(group * size, (group + 1) * size) for run in runs]
    hashes = np.concatenate([np.empty(0, np.uint64), *(each for each, _ in taken)])
    order = np.argsort(hashes)
    return hashes[order], np.concatenate([np.empty(0, np.uint32), *(each for _, each in taken)])[order]


def _checksums(starts: memoryview, hashes: memoryview, positions: memoryview, inner: Sequence[int]) -> list[int]:
    """Return the checksums of the blocks of a group. Its buckets begin at the rows of ``inner`` in the group."""
    found = []
    for first in range(0, len(inner) - 1, _BUCKETS_PER_BLOCK):
        end = min(first + _BUCKETS_PER_BLOCK, len(inner) - 1)
        rows = slice(inner[first], inner[end])
        found.append(_checksum(starts[first : end + 1], hashes[rows], positions[rows]))
    return found


def _checksum(starts: Any, hashes: Any, positions: Any) -> int:
    return zlib.crc32(positions, zlib.crc32(hashes, zlib.crc32(starts)))


def _advise(file: mmap.mmap, place: tuple[int, memoryview], ranges: Iterable[tuple[int, int]]) -> None:
    """Announce ranges of a section that will be read, cut off at its end. The section has a position in the file."""
    at, section = place
    for first, end in ranges:
        start = at + first * section.itemsize
        stop = min(at + end * section.itemsize, at + section.nbytes)
        if start < stop:
            page = start - start % mmap.PAGESIZE
            file.madvise(mmap.MADV_WILLNEED, page, stop - page)


def _aligned(size: int) -> int:
    return size + -size % _ALIGNED


class _Sections:
    """Arrays cut from a buffer one after the other, each beginning at a multiple of 8 bytes."""

    def __init__(self, view: memoryview, start: int):
        self._view = view
        self.at = start

    def take(self, count: int, integer: Integer) -> memoryview:
        size = count * struct.calcsize(integer)
        section = self._view[self.at : self.at + size]
        if len(section) != size:
            raise DamagedMapError("it is cut short")
        self.at += _aligned(size)
        return section.cast(integer)

    def require_end(self) -> None:
        if self.at != len(self._view):
            raise DamagedMapError("it continues after its end")
