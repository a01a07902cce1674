"""Encode documents' memory as payload records, and decode records."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ...errors import CorruptStoreError, StoreError
from .calibration import REFERENCE_BYTES, Calibration
from .codec import Codec
from .record import Records, make_record
from .registry import codec_by_id, codec_by_name, is_calibrated


class Latents(NamedTuple):
    """The latents of k records that have the same codec and calibration.

    Attributes:
        values: latents of all records in order, ``(Σ n_mem, m)``, float32 or the bits of bfloat16 as uint16.
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
        values: memory of the document, ``(n_mem, dim)``: float numbers, or bits of bfloat16 as uint16.
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
        values: memory of all documents in order, ``(Σ n_mem, dim)``: float numbers, or bits of bfloat16 as
            uint16.
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
    values = values if values.dtype == np.uint16 else values.astype(np.float32, copy=False)
    payloads: list[bytes] = [b""] * len(doc_ids)
    todo = list(range(len(doc_ids)))
    while todo:
        counts = [lengths[i] for i in todo]
        everything = len(todo) == len(doc_ids)
        rows = values if everything else np.concatenate([values[ends[i] - lengths[i] : ends[i]] for i in todo])
        bodies = codec.encode(rows, counts, calibration)
        for i, n_mem, body in zip(todo, counts, bodies, strict=True):
            if body is not None:
                payloads[i] = make_record(codec.codec_id, n_mem, dim, doc_ids[i], body)
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
    return decode_records(Records.checked(payloads, doc_ids), calibrations)


def decode_records(records: Records, calibrations: Calibrations | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the memory in k records that were checked, at least one, as ``decode_batch`` does."""
    kinds = _kinds(records)
    lengths = records.lengths
    if len(found := set(kinds)) == 1:
        return restored(_latents(records, kinds[0], calibrations)), lengths
    values = np.empty((int(lengths.sum()), records.dim), dtype=np.float32)
    kind_of_row = np.repeat(np.array(kinds), lengths)
    for kind in found:
        alike = records.select([i for i, each in enumerate(kinds) if each == kind])
        values[kind_of_row == kind] = restored(_latents(alike, kind, calibrations))
    return values, lengths


def latents_of(records: Records, calibrations: Calibrations | None = None) -> Latents | None:
    """Return the latents of k records that were checked, at least one; None if their codecs or calibrations differ.

    Raises:
        CorruptStoreError: the calibration does not fit the records.
        StoreError: a calibration that a record refers to is not available.
    """
    kinds = _kinds(records)
    return _latents(records, kinds[0], calibrations) if len(set(kinds)) == 1 else None


def restored(latents: Latents) -> np.ndarray:
    """Return the memory for latents, ``(Σ n_mem, dim)`` float32. The latents may be overwritten."""
    return latents.codec.restore(latents.values, latents.calibration)


def _kinds(records: Records) -> list[int]:
    """Return the codec id of each record times 2³², plus the reference of its calibration."""
    codec_ids = records.codec_ids
    calibrated = {codec_id for codec_id in set(codec_ids) if is_calibrated(codec_by_id(codec_id))}
    if not calibrated:
        return [codec_id << 32 for codec_id in codec_ids]
    return [
        (codec_id << 32) + (int.from_bytes(body[:REFERENCE_BYTES], "little") if codec_id in calibrated else 0)
        for codec_id, body in zip(codec_ids, records.bodies.parts, strict=True)
    ]


def _latents(records: Records, kind: int, calibrations: Calibrations | None) -> Latents:
    codec_id, reference = divmod(kind, 1 << 32)
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
    lengths = records.lengths
    return Latents(codec.latents(records.bodies, lengths, records.dim, calibration), lengths, codec, calibration)
