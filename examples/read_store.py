"""Read a store without pisco-index: lancedb, numpy, safetensors and zstandard are all it takes.

This follows docs/format.md and leaves out one check, the hash of the document's id.
"""

import json
import struct
import zlib

import lancedb
import numpy as np
import zstandard
from safetensors.numpy import load

HEADER = struct.Struct("<2sBBIIIII")


def decode(payload: bytes, calibrations: dict[int, dict[str, np.ndarray]]) -> np.ndarray:
    """Return the memory ``(n_mem, dim)`` float32 of one payload record."""
    magic, version, codec, n_mem, dim, length, _doc_hash, checksum = HEADER.unpack_from(payload)
    body = payload[HEADER.size :]
    if (magic, version, len(body)) != (b"pi", 1, length):
        raise ValueError("not a whole payload record of version 1")
    if zlib.crc32(payload[:20] + body) != checksum:
        raise ValueError("a damaged payload record")
    if n_mem == 0:
        return np.zeros((0, dim), np.float32)
    if codec == 1:
        halves = np.frombuffer(body, dtype="<u2")
        return (halves.astype(np.uint32) << 16).view(np.float32).reshape(n_mem, dim)
    if codec == 2:
        return np.frombuffer(body, dtype="<f4").reshape(n_mem, dim)
    if codec == 3:
        plain = np.frombuffer(body, dtype=np.uint8, count=n_mem * dim).astype(np.uint32)
        exponents = np.frombuffer(zstandard.ZstdDecompressor().decompress(body[n_mem * dim :]), dtype=np.uint8)
        bits = (plain & 0x80) << 24 | exponents.astype(np.uint32) << 23 | (plain & 0x7F) << 16
        return bits.view(np.float32).reshape(n_mem, dim)
    if codec in (4, 5, 6, 7):
        known = calibrations[int.from_bytes(body[:4], "little")]
        scales = np.frombuffer(body, dtype="<f2", count=n_mem, offset=4).astype(np.float32)[:, None]
        rows = np.frombuffer(body, dtype=np.uint8, offset=4 + 2 * n_mem).reshape(n_mem, -1)
        return known["mean"] + known["std"] * normalised(codec, scales, rows, known, dim)
    if codec in (8, 9, 10):
        known = calibrations[int.from_bytes(body[:4], "little")]
        scales = np.frombuffer(body, dtype="<f2", count=n_mem, offset=4).astype(np.float32)[:, None]
        rows = np.frombuffer(body, dtype=np.uint8, offset=4 + 2 * n_mem)
        return known["mean"] + known["std"] * (in_metric(scales, rows, known, dim) @ known["transform"])
    raise ValueError(f"unknown codec {codec}")


def normalised(codec: int, scales: np.ndarray, rows: np.ndarray, known: dict, dim: int) -> np.ndarray:
    """Return the normalised vectors of a calibrated codec's rows."""
    if codec == 4:
        return scales * rows.view(np.int8)
    if codec == 5:
        return known["signs"] * (scales * known["levels"][14:30][unpack(rows, 4, dim)] @ rotation(dim))
    return scales * by_widths(rows, known) @ known["transform"]


def in_metric(scales: np.ndarray, rows: np.ndarray, known: dict, dim: int) -> np.ndarray:
    """Return the numbers ``(n_mem, dim)`` of a fisher codec's rows: those of near vectors, then those of far ones."""
    is_far = scales[:, 0] < 0
    end = len(rows) - is_far.sum() * dim
    near, far = rows[:end].reshape((~is_far).sum(), -1), rows[end:].view(np.int8).reshape(-1, dim)
    numbers = np.zeros((len(scales), dim), np.float32)
    if len(near):
        levels = by_widths(near, known)
        numbers[~is_far, : levels.shape[1]] = scales[~is_far] * levels
    numbers[is_far] = -scales[is_far] * far @ rotation(dim) / np.sqrt(known["energies"])
    return numbers


def by_widths(rows: np.ndarray, known: dict) -> np.ndarray:
    """Return the levels that the numbers in packed rows stand for; those of 0 bits are left out."""
    levels = [known["levels"][2**b - 2 : 2 ** (b + 1) - 2] for b in range(9)]
    parts, start = [], 0
    for b in sorted(set(known["widths"].tolist()) - {0}, reverse=True):
        count = int((known["widths"] == b).sum())
        size = sum(-(-count * field // 8) for field in fields(b))
        parts.append(levels[b][unpack(rows[:, start : start + size], b, count)])
        start += size
    return np.concatenate(parts, axis=1)


def fields(b: int) -> list[int]:
    """Return the widths of the fields that numbers of b bits are cut into, the smallest first."""
    return [field for field in (1, 2, 4, 8) if b & field]


def unpack(rows: np.ndarray, b: int, count: int) -> np.ndarray:
    """Return the numbers of b bits in packed rows, ``(rows, count)`` uint8."""
    numbers, start, shift = np.zeros((len(rows), count), np.uint8), 0, 0
    for field in fields(b):
        size = -(-count * field // 8)
        bits = np.unpackbits(rows[:, start : start + size], axis=1, bitorder="little")[:, : count * field]
        plane = bits.reshape(len(rows), count, field) @ (1 << np.arange(field, dtype=np.uint8))
        numbers |= plane.astype(np.uint8) << shift
        start, shift = start + size, shift + field
    return numbers


def rotation(dim: int) -> np.ndarray:
    """Return the rotation matrix of codec int4, ``(dim, dim)``."""
    b = dim & -dim
    m = dim // b
    hadamard = np.array([[(-1.0) ** (i & j).bit_count() for j in range(b)] for i in range(b)]) / b**0.5
    k, i = np.ogrid[:m, :m]
    dct = np.cos(np.pi * (2 * i + 1) * k / (2 * m)) * (2 / m) ** 0.5
    dct[0] /= 2**0.5
    return np.kron(dct, hadamard)


def read_store(uri: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Return the store's description, and the memory ``(n_mem, dim)`` of every document that has some, by id."""
    database = lancedb.connect(uri)
    assets = {row["name"]: row["value"] for row in database.open_table("assets").search().limit(None).to_list()}
    kept = [name for name in assets if name.startswith("calibration/")]
    calibrations = {int(name[-8:], 16): load(assets[name]) for name in kept}
    rows = database.open_table("memory").search().where("payload IS NOT NULL").select(["doc_id", "payload"])
    memory = {row["doc_id"]: decode(row["payload"], calibrations) for row in rows.limit(None).to_list()}
    return json.loads(assets["meta"]), memory
