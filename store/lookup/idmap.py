"""The id map, which finds rows by document id: a sorted table of hashes, with the same bytes in a file as in memory.

The *position* of a row is its number when the rows of all data files are counted, file after file. The map gives, for
each 64-bit hash of an id, the positions of the rows with that hash. Data files never change, so positions stay valid,
and a map that lacks only new files can be extended. Deleted rows stay in the map; readers check the deletions of their
own version.

A map file is named after its data files: BLAKE2b-128, in hexadecimal, of its segments' keys, sorted and concatenated.
It is in the byte order of the machine, and each section begins at a multiple of 8 bytes:

- prefix: ``piscoids``; u32 version; u32 CRC-32 of the header; u64 length of the header;
- header: JSON with ``byteorder``; ``integer``, ``I`` or ``Q`` for integers of 32 or 64 bits; ``bucket_bits`` b;
  ``checksums``, the CRC-32 of the next section; ``segments``;
- checksums: u32 for each block of 64 buckets, the CRC-32 of its part of the next three sections;
- starts: 2^b + 1 integers, the first row of each bucket, then the number of rows;
- hashes: u64 for each row, ascending: XXH3-64 of the id, with a seed. A bucket holds those with the same upper b bits;
- positions: an integer for each row.

A segment is one fragment, ``[key, rows, pages]``. Its key is a hash of its data files' names and column layout, its
pages are the fields of ``PayloadPage``.
"""

import json
import math
import mmap
import struct
import sys
import zlib
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash

from ..table.pages import Integer, PayloadPage

MAGIC = b"piscoids"
MAP_VERSION = 1

# Seed of the hash. It makes the hash independent of the one in a payload's header, so that both together distinguish
# ids by 96 bits.
_SEED = 0x706973636F

_PREFIX = struct.Struct("<8sIIQ")
# Average number of rows in a bucket, small enough for a quick search and large enough for a small table of buckets.
_ROWS_PER_BUCKET = 8
_BUCKETS_PER_BLOCK = 64
_ALIGNED = 8

Bytes = bytes | memoryview | mmap.mmap


class DamagedMapError(Exception):
    """The bytes of a map are not those that were written. The caller makes a new map."""


class Segment(NamedTuple):
    """The rows of one fragment, in the order of its data files.

    Attributes:
        key: name that identifies the data files.
        rows: number of rows, deleted ones included.
        pages: places of the payloads.
    """

    key: str
    rows: int
    pages: tuple[PayloadPage, ...]


class IdMap:
    """Positions of rows by document id. The map is read-only, so threads may share it.

    It takes 12.5 bytes per row. Hashes are spread evenly, so their upper bits select a bucket of about 8 rows. Each
    block of 64 buckets has a checksum, which is compared when the block is first used.

    Args:
        buffer: bytes that ``encode_map`` made, in memory or mapped from a file.

    Raises:
        DamagedMapError: the buffer is damaged, cut short, or not a map of this version.
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
        self.segments = tuple(
            Segment(key, rows, tuple(PayloadPage(*page) for page in pages)) for key, rows, pages in header["segments"]
        )
        self.rows = sum(segment.rows for segment in self.segments)
        integer, buckets = header["integer"], 1 << header["bucket_bits"]
        blocks = math.ceil(buckets / _BUCKETS_PER_BLOCK)
        self._shift = 64 - header["bucket_bits"]
        self._checksums = sections.take(blocks, "I")
        if zlib.crc32(self._checksums) != header["checksums"]:
            raise DamagedMapError("its checksums fail their checksum")
        places = []
        for count, kind in ((buckets + 1, integer), (self.rows, "Q"), (self.rows, integer)):
            places.append((sections.at, sections.take(count, kind)))
        sections.require_end()
        (_, self._starts), (_, self._hashes), (_, self._positions) = self._places = tuple(places)
        self._unchecked = set(range(blocks))
        self._file = buffer if isinstance(buffer, mmap.mmap) and hasattr(buffer, "madvise") else None
        if self._file is not None:
            # Look-ups are scattered, so reading ahead would be wasted.
            self._file.madvise(mmap.MADV_RANDOM)

    def find(self, doc_ids: Iterable[str]) -> list[int | tuple[int, ...]]:
        """Find the rows that may be those of documents.

        Returns:
            For each id, the position of the row with its hash if there is exactly one; otherwise a tuple of the
            positions of all such rows, which may be empty.

        Raises:
            DamagedMapError: a block fails its checksum, or the file was cut short since it was mapped.
        """
        shift, starts, hashes, positions = self._shift, self._starts, self._hashes, self._positions
        digest = xxhash.xxh3_64_intdigest
        # As hash_of says, without its call.
        keys = [digest(doc_id.encode("utf-8", "surrogatepass"), _SEED) for doc_id in doc_ids]
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
            DamagedMapError: a block fails its checksum.
        """
        if self._file is not None:
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
        parts = _block(block, self._starts, self._hashes, self._positions)
        if _checksum(parts) != self._checksums[block]:
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


def encode_map(segments: Sequence[Segment], hashes: np.ndarray, positions: np.ndarray) -> list[Bytes]:
    """Return the bytes of a map, in pieces to write one after the other.

    Args:
        segments: segments whose rows the positions count.
        hashes: hashes of all rows, ascending, ``(rows,)`` uint64.
        positions: positions of the same rows, ``(rows,)``.
    """
    bits = max(1, (len(hashes) // _ROWS_PER_BUCKET).bit_length() - 1)
    integer = integer_for(len(hashes))
    edges = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    starts = np.append(np.searchsorted(hashes, edges), len(hashes)).astype(integer)
    views = starts.data, hashes.data, positions.astype(integer, copy=False).data
    blocks = math.ceil((1 << bits) / _BUCKETS_PER_BLOCK)
    checksums = np.array([_checksum(_block(block, *views)) for block in range(blocks)], dtype=np.uint32).data
    header = json.dumps(
        {
            "byteorder": sys.byteorder,
            "integer": integer,
            "bucket_bits": bits,
            "checksums": zlib.crc32(checksums),
            "segments": segments,
        }
    ).encode()
    prefix = _PREFIX.pack(MAGIC, MAP_VERSION, zlib.crc32(header), len(header))
    pieces: list[Bytes] = []
    for section in (prefix, header, checksums, *views):
        size = memoryview(section).nbytes
        pieces += [section, bytes(-size % _ALIGNED)]
    return pieces


def extend(
    base: IdMap | None, kept: Collection[str], added: Sequence[Segment], hashes: np.ndarray
) -> tuple[list[Segment], np.ndarray, np.ndarray]:
    """Join some segments of an older map and new segments.

    Args:
        base: the older map, if there is one.
        kept: keys of the segments to take from the base, if it has them.
        added: new segments.
        hashes: hashes of the ids in the new segments, in the order of the rows.

    Returns:
        The arguments of ``encode_map``.

    Raises:
        DamagedMapError: the base is damaged.
    """
    segments: list[Segment] = []
    old_hashes, old_positions = np.zeros(0, np.uint64), np.zeros(0, np.uint32)
    if base is not None:
        segments = [segment for segment in base.segments if segment.key in kept]
        old_hashes, old_positions = base.arrays()
        if len(segments) < len(base.segments):
            old_hashes, old_positions = _without(base.segments, kept, old_hashes, old_positions)
    integer = integer_for(len(old_hashes) + len(hashes))
    order = np.argsort(hashes)
    at = np.searchsorted(old_hashes, hashes[order])
    positions = np.insert(old_positions.astype(integer, copy=False), at, (order + len(old_hashes)).astype(integer))
    return [*segments, *added], np.insert(old_hashes, at, hashes[order]), positions


def _without(
    segments: Sequence[Segment], kept: Collection[str], hashes: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return hashes and positions without the rows of segments that are not kept, and renumber the other rows."""
    rows = np.array([segment.rows for segment in segments])
    stays = np.array([segment.key in kept for segment in segments])
    ends = np.cumsum(rows)
    gaps = np.cumsum(np.where(stays, 0, rows))
    owner = np.searchsorted(ends, positions, side="right")
    chosen = stays[owner]
    return hashes[chosen], (positions - gaps[owner])[chosen]


def hash_of(doc_id: str) -> int:
    """Return the hash of an id in the map. A string that is not valid Unicode has a hash too, but no store holds it."""
    return xxhash.xxh3_64_intdigest(doc_id.encode("utf-8", "surrogatepass"), _SEED)


def hashes_of(doc_ids: Sequence[bytes]) -> np.ndarray:
    """Return the hashes of ids in UTF-8, ``(k,)`` uint64."""
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(doc_id, _SEED) for doc_id in doc_ids), dtype=np.uint64, count=len(doc_ids))


def integer_for(rows: int) -> Integer:
    """Return the format of integers that can count this many rows, in the letters of ``struct``."""
    return "I" if rows < 1 << 32 else "Q"


def _advise(file: mmap.mmap, place: tuple[int, memoryview], ranges: Iterable[tuple[int, int]]) -> None:
    """Announce ranges of a section that will be read, cut off at its end. The section has a position in the file."""
    at, section = place
    for first, end in ranges:
        start = at + first * section.itemsize
        stop = min(at + end * section.itemsize, at + section.nbytes)
        if start < stop:
            page = start - start % mmap.PAGESIZE
            file.madvise(mmap.MADV_WILLNEED, page, stop - page)


def _block(block: int, starts: Any, hashes: Any, positions: Any) -> tuple[Any, Any, Any]:
    edges = starts[block * _BUCKETS_PER_BLOCK : (block + 1) * _BUCKETS_PER_BLOCK + 1]
    first, last = edges[0], edges[-1]
    return edges, hashes[first:last], positions[first:last]


def _checksum(parts: Iterable[Any]) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum


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
        self.at += size + -size % _ALIGNED
        return section.cast(integer)

    def require_end(self) -> None:
        if self.at != len(self._view):
            raise DamagedMapError("it continues after its end")
