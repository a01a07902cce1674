"""The payload record: the memory of one document as self-describing, self-checking bytes.

A record is little-endian. It has a header of 24 bytes and a body that the codec defines::

    offset  size
     0      2     magic, "pi"
     2      1     version of this record, 1
     3      1     codec id
     4      4     n_mem, number of memory tokens
     8      4     dim, width of a memory embedding
    12      4     length of the body in bytes
    16      4     document hash: low 32 bits of XXH3-64 of the id in UTF-8
    20      4     CRC-32 (zlib's) of bytes 0-19 and the body
    24      …     body

Counts have 32 bits, because a book has more than 65,535 memory tokens and must not be lost. Against 16 bits that costs
eight bytes in about nine thousand. The document hash exposes a whole payload that is in another document's row.
"""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import xxhash

from ...errors import CorruptStoreError
from .codec import Bodies

try:
    # The same checksum as zlib's, ten times as fast: checking would otherwise take as long as reading.
    from isal.isal_zlib import crc32
except ImportError:  # a machine for which isal has no build
    from zlib import crc32

MAGIC = b"pi"
RECORD_VERSION = 1
CODEC_OFFSET = 3
# Largest width of a memory embedding: far beyond any model, and too small for sizes computed from it to overflow.
MAX_DIM = 1 << 20

_CHECKED = struct.Struct("<2sBBIIII")
_CRC = struct.Struct("<I")
HEADER_BYTES = _CHECKED.size + _CRC.size
# Magic, version and codec id as one number, to compare the first two at once.
_FIELDS = struct.Struct("<IIIIII")
_START = int.from_bytes(MAGIC + bytes([RECORD_VERSION]), "little")
_START_MASK, _CODEC_SHIFT = 0xFFFFFF, 24


class Header(NamedTuple):
    """The fields of a record's header, less magic, version and checksum."""

    codec_id: int
    n_mem: int
    dim: int
    body_bytes: int
    doc_hash: int


def read_header(payload: bytes) -> Header:
    """Read the header of a record, and check everything that needs no pass over the body.

    Raises:
        CorruptStoreError: the payload is not a record, is cut short, or has a newer version.
    """
    if len(payload) < HEADER_BYTES:
        raise CorruptStoreError(f"a payload has {len(payload)} bytes, less than its header of {HEADER_BYTES}.")
    magic, version, *fields = _CHECKED.unpack_from(payload)
    if magic != MAGIC:
        raise CorruptStoreError(f"a payload begins with {magic!r}, not {MAGIC!r}.")
    if version != RECORD_VERSION:
        raise CorruptStoreError(
            f"a payload has version {version}, and this version of pisco-index reads version {RECORD_VERSION}."
        )
    header = Header(*fields)
    if len(payload) != HEADER_BYTES + header.body_bytes:
        raise CorruptStoreError(
            f"a payload has a body of {len(payload) - HEADER_BYTES} bytes, and its header says {header.body_bytes}."
        )
    # Every codec spends at least a byte on a vector.
    if header.dim > MAX_DIM or header.n_mem > header.body_bytes:
        raise CorruptStoreError(
            f"a payload body of {header.body_bytes} bytes cannot hold {header.n_mem} memory tokens of width "
            f"{header.dim}."
        )
    return header


class Records:
    """k records, cut into headers and bodies.

    Attributes:
        heads: headers of all records in order, 24 bytes each.
        bodies: bodies of the records.
        lengths: number of memory tokens of each record, ``(k,)`` int64.
    """

    __slots__ = ("_fields", "bodies", "heads", "lengths")

    def __init__(self, heads: bytes | bytearray, bodies: Bodies):
        self.heads = heads
        self.bodies = bodies
        self._fields = list(_FIELDS.iter_unpack(heads))
        self.lengths = np.array([each[1] for each in self._fields], dtype=np.int64)

    @classmethod
    def checked(cls, payloads: Sequence[bytes], doc_ids: Sequence[str] | None) -> Self:
        """Cut payloads, at least one, and check them.

        Args:
            payloads: the records.
            doc_ids: ids of the documents that the records should belong to; None skips this check.

        Raises:
            CorruptStoreError: a payload is not a whole and undamaged record of its document, or the widths differ.
        """
        names = [None] * len(payloads) if doc_ids is None else doc_ids
        for payload, name in zip(payloads, names, strict=True):
            if len(payload) < HEADER_BYTES:
                raise _problem(payload, name)
        heads = b"".join([payload[:HEADER_BYTES] for payload in payloads])
        records = cls(heads, Bodies.of([memoryview(payload)[HEADER_BYTES:] for payload in payloads]))
        for number in records.wrong(doc_ids):
            raise _problem(payloads[number], names[number])
        records.require_one_width()
        return records

    def wrong(self, doc_ids: Sequence[str] | None) -> list[int]:
        """Return the numbers of the records that are not whole and undamaged records of their documents.

        Args:
            doc_ids: ids of the documents that the records should belong to; None skips this check.
        """
        fields = self._fields
        if doc_ids is None:
            hashes = [each[4] for each in fields]
        else:
            digest = xxhash.xxh3_64_intdigest
            hashes = [digest(doc_id.encode("utf-8", "surrogatepass")) & 0xFFFFFFFF for doc_id in doc_ids]
        heads, start, wrong = memoryview(self.heads), 0, []
        for (begin, n_mem, dim, size, doc_hash, checksum), expected, body in zip(
            fields, hashes, self.bodies.parts, strict=True
        ):
            if (
                checksum != crc32(body, crc32(heads[start : start + _CHECKED.size]))
                or doc_hash != expected
                or begin & _START_MASK != _START
                or size != len(body)
                # Every codec spends at least a byte on a vector.
                or n_mem > size
                or dim > MAX_DIM
            ):
                wrong.append(start // HEADER_BYTES)
            start += HEADER_BYTES
        return wrong

    def require_one_width(self) -> None:
        """Check that all records have the same width.

        Raises:
            CorruptStoreError: showing the widths.
        """
        if len(widths := {each[2] for each in self._fields}) > 1:
            raise CorruptStoreError(f"payloads of one store have different widths: {sorted(widths)}.")

    @property
    def codec_ids(self) -> list[int]:
        """Codec id of each record."""
        return [each[0] >> _CODEC_SHIFT for each in self._fields]

    @property
    def dim(self) -> int:
        """Width of the memory in all records."""
        return self._fields[0][2]

    def __len__(self) -> int:
        return len(self._fields)

    def payloads(self) -> list[bytes]:
        """Return the bytes of each record."""
        starts = range(0, len(self.heads), HEADER_BYTES)
        return [
            bytes(self.heads[start : start + HEADER_BYTES]) + bytes(body)
            for start, body in zip(starts, self.bodies.parts, strict=True)
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).checked, (self.payloads(), None)

    def select(self, numbers: Sequence[int]) -> Self:
        """Return some of the records."""
        heads = [self.heads[number * HEADER_BYTES :][:HEADER_BYTES] for number in numbers]
        return type(self)(b"".join(heads), Bodies.of([self.bodies.parts[number] for number in numbers]))


def make_record(codec_id: int, n_mem: int, dim: int, doc_id: str, body: bytes) -> bytes:
    """Return the record of a document, given the body that its codec made."""
    doc_hash = xxhash.xxh3_64_intdigest(doc_id.encode()) & 0xFFFFFFFF
    checked = _CHECKED.pack(MAGIC, RECORD_VERSION, codec_id, n_mem, dim, len(body), doc_hash)
    return checked + _CRC.pack(crc32(body, crc32(checked))) + body


def _problem(payload: bytes, doc_id: str | None) -> CorruptStoreError:
    """Return the error about a payload that is not a whole and undamaged record of a document."""
    whose = "" if doc_id is None else f"document {doc_id!r}: "
    try:
        read_header(payload)
    except CorruptStoreError as error:
        return CorruptStoreError(f"{whose}{error}")
    (stored,) = _CRC.unpack_from(payload, _CHECKED.size)
    if stored != crc32(payload[HEADER_BYTES:], crc32(payload[: _CHECKED.size])):
        return CorruptStoreError(f"{whose}a payload fails its checksum.")
    return CorruptStoreError(f"{whose}the payload is whole but belongs to another document.")
