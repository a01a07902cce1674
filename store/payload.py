"""The payload record: the memory of one document as self-describing, self-checking bytes.

Little-endian, a header of 24 bytes and a body that the codec defines::

    offset  size
     0      2     magic, "pi"
     2      1     version of this record, 1
     3      1     codec id
     4      4     n_mem, memory tokens
     8      4     dim, width of a memory embedding
    12      4     length of the body in bytes
    16      4     document: low 32 bits of XXH3-64 of the id in UTF-8
    20      4     CRC-32 (zlib's) of bytes 0-19 and the body
    24      …     body

All counts have 32 bits, because a book has more than 65,535 memory tokens and must not be lost; that is eight bytes in
about nine thousand. The document's hash tells a payload that landed in another row from one that is damaged.
"""

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from ..errors import CorruptStoreError
from .codecs import Codec, codec_by_id

MAGIC = b"pi"
RECORD_VERSION = 1

_CHECKED = struct.Struct("<2sBBIIII")
_CRC = struct.Struct("<I")
HEADER_BYTES = _CHECKED.size + _CRC.size


class Header(NamedTuple):
    """What a record says of itself."""

    codec_id: int
    n_mem: int
    dim: int
    body_bytes: int
    doc_hash: int


def encode(doc_id: str, values: np.ndarray, codec: Codec) -> bytes:
    """Make the record of one document.

    Args:
        doc_id: the document's id.
        values: its memory, ``(n_mem, dim)``, converted to float32.
        codec: how to store it.

    Raises:
        ValueError: ``values`` does not have two dimensions.
    """
    if values.ndim != 2:
        raise ValueError(f"memory has shape (n_mem, dim), not {values.shape}")
    n_mem, dim = values.shape
    body = codec.encode_body(values.astype(np.float32, copy=False))
    checked = _CHECKED.pack(MAGIC, RECORD_VERSION, codec.codec_id, n_mem, dim, len(body), _doc_hash(doc_id))
    return checked + _CRC.pack(zlib.crc32(body, zlib.crc32(checked))) + body


def decode(payload: bytes, doc_id: str | None = None) -> np.ndarray:
    """The memory of one record, ``(n_mem, dim)`` float32.

    Args:
        payload: the record.
        doc_id: whose it should be; None does not check.

    Raises:
        CorruptStoreError: it is not a whole and undamaged record of that document.
    """
    values, _ = decode_batch([payload], None if doc_id is None else [doc_id])
    return values


def decode_batch(payloads: Sequence[bytes], doc_ids: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The memory of k records as one ragged batch.

    Args:
        payloads: the records, in any mix of codecs.
        doc_ids: whose they should be, in the same order; None does not check.

    Returns:
        values ``(Σ n_mem, dim)`` float32 and lengths ``(k,)`` int64. No records give ``(0, 0)`` and ``(0,)``.

    Raises:
        CorruptStoreError: one is not a whole and undamaged record of its document, or widths differ.
    """
    if not payloads:
        return np.zeros((0, 0), dtype=np.float32), np.zeros(0, dtype=np.int64)
    names = [None] * len(payloads) if doc_ids is None else doc_ids
    headers = [_checked_header(payload, name) for payload, name in zip(payloads, names, strict=True)]
    if len(widths := {header.dim for header in headers}) > 1:
        raise CorruptStoreError(f"payloads of one store have different widths: {sorted(widths)}.")
    bodies = [memoryview(payload)[HEADER_BYTES:] for payload in payloads]
    lengths = np.array([header.n_mem for header in headers], dtype=np.int64)
    codecs = np.array([header.codec_id for header in headers], dtype=np.uint8)
    return _decode_bodies(bodies, lengths, codecs, widths.pop()), lengths


def read_header(payload: bytes) -> Header:
    """Read the header of a record and check what needs no pass over its body.

    Raises:
        CorruptStoreError: it is no record, is cut short, or is of a newer version.
    """
    if len(payload) < HEADER_BYTES:
        raise CorruptStoreError(f"a payload has {len(payload)} bytes, less than its header of {HEADER_BYTES}.")
    magic, version, *fields = _CHECKED.unpack_from(payload)
    if magic != MAGIC:
        raise CorruptStoreError(f"a payload begins with {magic!r}, not {MAGIC!r}.")
    if version != RECORD_VERSION:
        raise CorruptStoreError(f"a payload has version {version}; this version reads {RECORD_VERSION}.")
    header = Header(*fields)
    if len(payload) != HEADER_BYTES + header.body_bytes:
        raise CorruptStoreError(
            f"a payload has {len(payload) - HEADER_BYTES} bytes of body; its header says {header.body_bytes}."
        )
    return header


def _checked_header(payload: bytes, doc_id: str | None) -> Header:
    whose = "" if doc_id is None else f"document {doc_id!r}: "
    try:
        header = read_header(payload)
    except CorruptStoreError as error:
        raise CorruptStoreError(f"{whose}{error}") from None
    view = memoryview(payload)
    (stored,) = _CRC.unpack_from(payload, _CHECKED.size)
    if stored != zlib.crc32(view[HEADER_BYTES:], zlib.crc32(view[: _CHECKED.size])):
        raise CorruptStoreError(f"{whose}a payload fails its checksum.")
    if doc_id is not None and header.doc_hash != _doc_hash(doc_id):
        raise CorruptStoreError(f"{whose}the payload is whole but belongs to another document.")
    return header


def _decode_bodies(bodies: Sequence[memoryview], lengths: np.ndarray, codecs: np.ndarray, dim: int) -> np.ndarray:
    kinds = np.unique(codecs)
    if kinds.size == 1:
        return codec_by_id(int(kinds[0])).decode_bodies(bodies, lengths, dim)
    values = np.empty((int(lengths.sum()), dim), dtype=np.float32)
    codec_of_row = np.repeat(codecs, lengths)
    for kind in kinds:
        chosen = np.flatnonzero(codecs == kind).tolist()
        rows = codec_by_id(int(kind)).decode_bodies([bodies[i] for i in chosen], lengths[chosen], dim)
        values[codec_of_row == kind] = rows
    return values


def _doc_hash(doc_id: str) -> int:
    return xxhash.xxh3_64_intdigest(doc_id.encode()) & 0xFFFFFFFF
