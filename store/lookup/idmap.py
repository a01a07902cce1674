"""Finding rows by document id: a sorted table of hashes that lies in a file as it lies in memory.

All rows of the data files are numbered through, file after file: that is a row's *position*. The map knows, for each
64-bit hash of an id, the positions of the rows with that hash. Positions stay valid as long as the data files do, which
are immutable; so a map that lacks only new files is extended, and rows that are deleted stay in it: whoever reads looks
at the deletions of its own version.
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

from ..table.direct import Integer, Page

MAGIC = b"piscoids"
MAP_VERSION = 1

# Not the hash in a payload's header, so that the two together tell ids apart by 96 bits.
_SEED = 0x706973636F

_PREFIX = struct.Struct("<8sIIQ")
_ROWS_PER_BUCKET = 8
_BUCKETS_PER_BLOCK = 64
_ALIGNED = 8

Bytes = bytes | memoryview | mmap.mmap


class DamagedMapError(Exception):
    """A map's bytes are not what was written; it is made again, so this never leaves the store."""


class Segment(NamedTuple):
    """The rows of one fragment, as they lie in its immutable data files.

    Attributes:
        key: identifies the data files.
        rows: how many there are, deleted ones included.
        pages: where the payloads lie, or none if only Lance can read them.
    """

    key: str
    rows: int
    pages: tuple[Page, ...]


class IdMap:
    """Positions of rows by document id; read-only, so threads may share it.

    It takes 12.5 bytes a row. The hashes are spread evenly, so their upper bits lead to a bucket of about 8 rows. Every
    64 buckets are a block with a checksum, which is compared when the block is first looked at.

    Args:
        buffer: what `encode_map` made, in memory or mapped from a file.

    Raises:
        DamagedMapError: it is cut short, damaged, of another version or something else.
    """

    def __init__(self, buffer: Bytes):
        view = memoryview(buffer)
        if len(view) < _PREFIX.size:
            raise DamagedMapError("it is cut short")
        magic, version, checksum, length = _PREFIX.unpack_from(view)
        if (magic, version) != (MAGIC, MAP_VERSION):
            raise DamagedMapError("it is no id map of this version")
        sections = _Sections(view, _PREFIX.size)
        header_bytes = sections.take(length, "B")
        if zlib.crc32(header_bytes) != checksum:
            raise DamagedMapError("its header fails its checksum")
        header = json.loads(bytes(header_bytes))
        if header["byteorder"] != sys.byteorder:
            raise DamagedMapError("it was made on a machine of another byte order")
        self.segments = tuple(
            Segment(key, rows, tuple(Page(*page) for page in pages)) for key, rows, pages in header["segments"]
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
            # Lookups are scattered: to read on after each would be in vain.
            self._file.madvise(mmap.MADV_RANDOM)

    def find(self, doc_ids: Iterable[str]) -> list[int | tuple[int, ...]]:
        """Where documents may be.

        Returns:
            For each id the position of the one row with its hash, or the positions of all if there are not one but
            none or several.

        Raises:
            DamagedMapError: a block fails its checksum, or the file was cut short since it was mapped.
        """
        shift, starts, hashes, positions = self._shift, self._starts, self._hashes, self._positions
        keys = [hash_of(doc_id) for doc_id in doc_ids]
        # To look at what a file no longer has would end the process.
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
        """All hashes, ascending, and their positions, both ``(rows,)``.

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
        """Have the system read blocks all at once; looking at them would read one page after the other."""
        starts, hashes, positions = self._places
        edges = [(block * _BUCKETS_PER_BLOCK, (block + 1) * _BUCKETS_PER_BLOCK + 1) for block in blocks]
        _advise(file, starts, edges)
        last = len(self._starts) - 1
        rows = [(self._starts[first], self._starts[min(end, last)]) for first, end in edges]
        _advise(file, hashes, rows)
        _advise(file, positions, rows)


def encode_map(segments: Sequence[Segment], hashes: np.ndarray, positions: np.ndarray) -> list[Bytes]:
    """The bytes of a map, in pieces to be written one after the other.

    Args:
        segments: what positions count through.
        hashes: of all rows, ascending, ``(rows,)`` uint64.
        positions: of the same rows, ``(rows,)``.
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
    """What to encode as a map: a base's segments as far as they are kept, and further ones.

    Args:
        base: an older map.
        kept: keys of the segments that may come from it.
        added: the further ones.
        hashes: of the ids of their rows, in row order.

    Returns:
        What encode_map takes.

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
    """Leave out the rows of segments that are not kept, and close the gaps."""
    rows = np.array([segment.rows for segment in segments])
    stays = np.array([segment.key in kept for segment in segments])
    ends = np.cumsum(rows)
    gaps = np.cumsum(np.where(stays, 0, rows))
    owner = np.searchsorted(ends, positions, side="right")
    chosen = stays[owner]
    return hashes[chosen], (positions - gaps[owner])[chosen]


def hash_of(doc_id: str) -> int:
    """The hash by which the map knows an id; any string has one, though an id that is no Unicode is in no store."""
    return xxhash.xxh3_64_intdigest(doc_id.encode("utf-8", "surrogatepass"), _SEED)


def hashes_of(doc_ids: Sequence[bytes]) -> np.ndarray:
    """The hashes of ids in UTF-8, ``(k,)`` uint64."""
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(doc_id, _SEED) for doc_id in doc_ids), dtype=np.uint64, count=len(doc_ids))


def integer_for(rows: int) -> Integer:
    """The format, in the letters of struct, of integers up to a number of rows."""
    return "I" if rows < 1 << 32 else "Q"


def _advise(file: mmap.mmap, place: tuple[int, memoryview], ranges: Iterable[tuple[int, int]]) -> None:
    """Announce ranges of a section that begins at a place in a file; what is outside of it is left out."""
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
    """Cuts a buffer into arrays, each beginning at a multiple of 8 bytes."""

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
            raise DamagedMapError("it goes on after its end")
