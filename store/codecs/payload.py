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
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from ...errors import CorruptStoreError, StoreError
from . import REFERENCE_BYTES, Codec, codec_by_id, codec_by_name, is_calibrated
from .calibration import Calibration

MAGIC = b"pi"
RECORD_VERSION = 1
CODEC_OFFSET = 3
# Far beyond any model, and small enough that sizes computed from it cannot overflow.
MAX_DIM = 1 << 20

_CHECKED = struct.Struct("<2sBBIIII")
_CRC = struct.Struct("<I")
HEADER_BYTES = _CHECKED.size + _CRC.size
_IDENTITY = struct.Struct("<2sB9xII")


class Header(NamedTuple):
    """What a record says of itself."""

    codec_id: int
    n_mem: int
    dim: int
    body_bytes: int
    doc_hash: int


class Latents(NamedTuple):
    """Records of one codec and calibration, decoded as far as look-up and scales go.

    Attributes:
        values: all latents in order, ``(Σ n_mem, m)`` float32.
        lengths: memory tokens of each record, ``(k,)`` int64.
        codec: of all of them.
        calibration: of all of them; None for a codec that has none.
    """

    values: np.ndarray
    lengths: np.ndarray
    codec: Codec
    calibration: Calibration | None


Calibrations = Callable[[int], Calibration]
"""Finds the calibration that payloads refer to by a number; what it raises is raised."""


def encode(doc_id: str, values: np.ndarray, codec: Codec, calibration: Calibration | None = None) -> bytes:
    """Make the record of one document.

    Args:
        doc_id: the document's id.
        values: its memory, ``(n_mem, dim)``, converted to float32.
        codec: how to store it; a document that would lose too much is stored by a better one.
        calibration: for codecs that need one.

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
    """Make the records of k documents.

    Args:
        doc_ids: their ids, k.
        values: all memory in order, ``(Σ n_mem, dim)``, converted to float32.
        lengths: memory tokens of each, k.
        codec: how to store them; documents that would lose too much are stored by a better one (``Codec.fallback``).
        calibration: for codecs that need one.

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
    """The memory of one record, ``(n_mem, dim)`` float32.

    Args:
        payload: the record.
        doc_id: whose it should be; None does not check.
        calibrations: finds the calibration that it refers to, if it does.

    Raises:
        CorruptStoreError: it is not a whole and undamaged record of that document.
        StoreError: it needs a calibration that is not to be had.
    """
    values, _ = decode_batch([payload], None if doc_id is None else [doc_id], calibrations)
    return values


def decode_batch(
    payloads: Sequence[bytes], doc_ids: Sequence[str] | None = None, calibrations: Calibrations | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The memory of k records as one ragged batch.

    Args:
        payloads: the records, in any mix of codecs.
        doc_ids: whose they should be, in the same order; None does not check.
        calibrations: finds the calibrations that they refer to.

    Returns:
        values ``(Σ n_mem, dim)`` float32 and lengths ``(k,)`` int64. No records give ``(0, 0)`` and ``(0,)``.

    Raises:
        CorruptStoreError: one is not a whole and undamaged record of its document, or widths differ.
        StoreError: one needs a calibration that is not to be had.
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
    """The latents of k records, at least one, if all have one codec and calibration; else None.

    Arguments and errors are those of decode_batch.
    """
    records = _checked(payloads, doc_ids)
    return _latents(records, calibrations) if len(np.unique(records.kinds)) == 1 else None


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
    # Every codec spends a byte or more on a vector.
    if header.dim > MAX_DIM or header.n_mem > header.body_bytes:
        raise CorruptStoreError(
            f"a payload body of {header.body_bytes} bytes cannot hold {header.n_mem} memory tokens of width "
            f"{header.dim}."
        )
    return header


def is_record_of(payload: bytes, doc_id: str) -> bool:
    """Whether bytes look like the record of a document: by magic, version, length and the document's hash."""
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
        bodies: of each.
        lengths: memory tokens of each, ``(k,)`` int64.
        kinds: codec id of each, times 2³², plus its calibration's reference, ``(k,)`` int64.
        dim: width of all of them.
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
