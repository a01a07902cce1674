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
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from ...errors import CorruptStoreError, StoreError
from .calibration import REFERENCE_BYTES, Calibration
from .codec import Codec
from .registry import codec_by_id, codec_by_name, is_calibrated

MAGIC = b"pi"
RECORD_VERSION = 1
CODEC_OFFSET = 3
# Largest width of a memory embedding: far beyond any model, and too small for sizes computed from it to overflow.
MAX_DIM = 1 << 20

_CHECKED = struct.Struct("<2sBBIIII")
_CRC = struct.Struct("<I")
HEADER_BYTES = _CHECKED.size + _CRC.size
_IDENTITY = struct.Struct("<2sB9xII")


class Header(NamedTuple):
    """The fields of a record's header, less magic, version and checksum."""

    codec_id: int
    n_mem: int
    dim: int
    body_bytes: int
    doc_hash: int


class Latents(NamedTuple):
    """The latents of k records that have the same codec and calibration.

    Attributes:
        values: latents of all records in order, ``(Σ n_mem, m)`` float32.
        lengths: number of memory tokens of each record, ``(k,)`` int64.
        codec: codec of the records.
        calibration: calibration of the records; None for a codec that has none.
    """

    values: np.ndarray
    lengths: np.ndarray
    codec: Codec
    calibration: Calibration | None


Calibrations = Callable[[int], Calibration]
"""Function that returns the calibration with a reference. Its exceptions reach the caller."""


def encode(doc_id: str, values: np.ndarray, codec: Codec, calibration: Calibration | None = None) -> bytes:
    """Return the record of one document.

    Args:
        doc_id: id of the document.
        values: memory of the document, ``(n_mem, dim)``, converted to float32.
        codec: codec to use; a document that would lose too much is stored by the fallback codec.
        calibration: the codec's calibration, if it needs one.

    Raises:
        ValueError: ``values`` does not have two dimensions, or the codec needs a calibration.
    """
    if values.ndim != 2:
        raise ValueError(f"memory has shape (n_mem, dim), not {values.shape}")
    (payload,) = encode_batch([doc_id], values, [len(values)], codec, calibration)
    return payload


def encode_batch(
    doc_ids: Sequence[str],
    values: np.ndarray,
    lengths: Sequence[int],
    codec: Codec,
    calibration: Calibration | None = None,
) -> list[bytes]:
    """Return the records of k documents.

    Args:
        doc_ids: ids of the documents, k of them.
        values: memory of all documents in order, ``(Σ n_mem, dim)``, converted to float32.
        lengths: number of memory tokens of each document, k of them.
        codec: codec to use; documents that would lose too much are stored by ``Codec.fallback``.
        calibration: the codec's calibration, if it needs one.

    Raises:
        ValueError: the arguments do not fit together, or the codec needs a calibration.
    """
    dim = values.shape[1]
    if is_calibrated(codec) and (calibration is None or calibration.dim != dim):
        raise ValueError(f"codec {codec.name} needs a calibration of width {dim}")
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
    values = values.astype(np.float32, copy=False)
    payloads: list[bytes] = [b""] * len(doc_ids)
    todo = list(range(len(doc_ids)))
    while todo:
        counts = [lengths[i] for i in todo]
        everything = len(todo) == len(doc_ids)
        rows = values if everything else np.concatenate([values[ends[i] - lengths[i] : ends[i]] for i in todo])
        bodies = codec.encode(rows, counts, calibration)
        for i, n_mem, body in zip(todo, counts, bodies, strict=True):
            if body is not None:
                payloads[i] = _record(codec.codec_id, n_mem, dim, doc_ids[i], body)
        todo = [i for i, body in zip(todo, bodies, strict=True) if body is None]
        if todo:
            assert codec.fallback is not None
            codec = codec_by_name(codec.fallback)
    return payloads


def decode(payload: bytes, doc_id: str | None = None, calibrations: Calibrations | None = None) -> np.ndarray:
    """Return the memory in one record, ``(n_mem, dim)`` float32.

    Args:
        payload: the record.
        doc_id: id of the document that the record should belong to; None skips this check.
        calibrations: function that returns the calibration that the record refers to.

    Raises:
        CorruptStoreError: the payload is not a whole and undamaged record of that document.
        StoreError: the calibration that the record refers to is not available.
    """
    values, _ = decode_batch([payload], None if doc_id is None else [doc_id], calibrations)
    return values


def decode_batch(
    payloads: Sequence[bytes], doc_ids: Sequence[str] | None = None, calibrations: Calibrations | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the memory in k records as one ragged batch.

    Args:
        payloads: the records, in any mix of codecs.
        doc_ids: ids of the documents that the records should belong to, in the same order; None skips this check.
        calibrations: function that returns the calibrations that the records refer to.

    Returns:
        Values ``(Σ n_mem, dim)`` float32 and lengths ``(k,)`` int64. Without records their shapes are ``(0, 0)`` and
        ``(0,)``.

    Raises:
        CorruptStoreError: a payload is not a whole and undamaged record of its document, or the widths differ.
        StoreError: a calibration that a record refers to is not available.
    """
    if not payloads:
        return np.zeros((0, 0), dtype=np.float32), np.zeros(0, dtype=np.int64)
    records = _checked(payloads, doc_ids)
    if len(kinds := np.unique(records.kinds)) == 1:
        return _restored(_latents(records, calibrations)), records.lengths
    values = np.empty((int(records.lengths.sum()), records.dim), dtype=np.float32)
    kind_of_row = np.repeat(records.kinds, records.lengths)
    for kind in kinds:
        values[kind_of_row == kind] = _restored(_latents(records.select(records.kinds == kind), calibrations))
    return values, records.lengths


def decode_latents(
    payloads: Sequence[bytes], doc_ids: Sequence[str] | None = None, calibrations: Calibrations | None = None
) -> Latents | None:
    """Return the latents of k records, at least one; None if their codecs or calibrations differ.

    Arguments and errors are those of ``decode_batch``.
    """
    records = _checked(payloads, doc_ids)
    return _latents(records, calibrations) if len(np.unique(records.kinds)) == 1 else None


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


def is_record_of(payload: bytes, doc_id: str) -> bool:
    """Return True if bytes look like the record of a document, judged by magic, version, length and document hash."""
    if len(payload) < HEADER_BYTES:
        return False
    magic, version, body_bytes, doc_hash = _IDENTITY.unpack_from(payload)
    return (
        doc_hash == _doc_hash(doc_id)
        and body_bytes + HEADER_BYTES == len(payload)
        and magic == MAGIC
        and version == RECORD_VERSION
    )


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


class _Records(NamedTuple):
    """k records that passed their checks.

    Attributes:
        bodies: bodies of the records.
        lengths: number of memory tokens of each record, ``(k,)`` int64.
        kinds: codec id of each record times 2³², plus the reference of its calibration, ``(k,)`` int64.
        dim: width of the memory in all records.
    """

    bodies: list[memoryview]
    lengths: np.ndarray
    kinds: np.ndarray
    dim: int

    def select(self, which: np.ndarray) -> "_Records":
        chosen = np.flatnonzero(which)
        return _Records([self.bodies[i] for i in chosen], self.lengths[chosen], self.kinds[chosen], self.dim)


def _checked(payloads: Sequence[bytes], doc_ids: Sequence[str] | None) -> _Records:
    names = [None] * len(payloads) if doc_ids is None else doc_ids
    headers = [_checked_header(payload, name) for payload, name in zip(payloads, names, strict=True)]
    if len(widths := {header.dim for header in headers}) > 1:
        raise CorruptStoreError(f"payloads of one store have different widths: {sorted(widths)}.")
    bodies = [memoryview(payload)[HEADER_BYTES:] for payload in payloads]
    calibrated = {i: is_calibrated(codec_by_id(i)) for i in {header.codec_id for header in headers}}
    kinds = [
        (header.codec_id << 32)
        + (int.from_bytes(body[:REFERENCE_BYTES], "little") if calibrated[header.codec_id] else 0)
        for header, body in zip(headers, bodies, strict=True)
    ]
    lengths = np.array([header.n_mem for header in headers], dtype=np.int64)
    return _Records(bodies, lengths, np.array(kinds, dtype=np.int64), widths.pop())


def _latents(records: _Records, calibrations: Calibrations | None) -> Latents:
    codec_id, reference = divmod(int(records.kinds[0]), 1 << 32)
    codec = codec_by_id(codec_id)
    calibration = None
    if is_calibrated(codec):
        if calibrations is None:
            raise StoreError(f"a payload of codec {codec.name} needs calibration {reference:08x}, and none is given.")
        calibration = calibrations(reference)
        if lacking := [name for name in codec.needs if getattr(calibration, name) is None]:
            raise CorruptStoreError(
                f"a payload of codec {codec.name} refers to calibration {reference:08x}, which has no {lacking[0]}."
            )
        if calibration.dim != records.dim:
            raise CorruptStoreError(
                f"a payload of width {records.dim} refers to calibration {reference:08x}, whose width is "
                f"{calibration.dim}."
            )
    return Latents(
        codec.latents(records.bodies, records.lengths, records.dim, calibration), records.lengths, codec, calibration
    )


def _restored(latents: Latents) -> np.ndarray:
    return latents.codec.restore(latents.values, latents.calibration)


def _record(codec_id: int, n_mem: int, dim: int, doc_id: str, body: bytes) -> bytes:
    checked = _CHECKED.pack(MAGIC, RECORD_VERSION, codec_id, n_mem, dim, len(body), _doc_hash(doc_id))
    return checked + _CRC.pack(zlib.crc32(body, zlib.crc32(checked))) + body


def _doc_hash(doc_id: str) -> int:
    return xxhash.xxh3_64_intdigest(doc_id.encode()) & 0xFFFFFFFF
