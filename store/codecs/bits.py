"""Pack whole numbers of 1 to 8 bits into bytes, and unpack them by table look-up.

A number of b bits is cut into fields of 8, 4, 2 and 1 bits: one for each 1 in the binary digits of b, the lowest bits
in the smallest field. The same field of all numbers in a row forms a plane. Planes follow one another, the one of the
smallest field first. Within a plane, numbers fill each byte from its lowest bits.
"""

from functools import cache

import numpy as np


def packed_bytes(count: int, bits: int) -> int:
    """Return the size of a packed row of numbers. Each plane is padded to whole bytes."""
    return sum(-(-count * field // 8) for field in _fields(bits))


def pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Pack the rows of ``(n, count)`` uint8 into ``(n, packed_bytes(count, bits))`` uint8."""
    rows, count = numbers.shape
    planes, shift = [], 0
    for field in _fields(bits):
        plane = numbers if field == bits else (numbers >> shift) & ((1 << field) - 1)
        shift += field
        planes.append(_pack_field(plane, field) if field < 8 else plane)
    return np.concatenate(planes, axis=1) if planes else np.zeros((rows, packed_bytes(count, bits)), np.uint8)


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the numbers ``(n, count)`` uint8 in rows that ``pack`` made."""
    numbers = None
    start = shift = 0
    for field in _fields(bits):
        size = -(-count * field // 8)
        plane = packed[:, start : start + size]
        if field < 8:
            # One look-up gives all numbers in a byte.
            table = _bytes_of(field)
            plane = table[plane].view(np.uint8).reshape(len(packed), size * 8 // field)[:, :count]
        numbers = plane if numbers is None else numbers | (plane << shift)
        start, shift = start + size, shift + field
    return np.zeros((len(packed), count), np.uint8) if numbers is None else numbers


def _fields(bits: int) -> list[int]:
    return [field for field in (1, 2, 4, 8) if bits & field]


def _pack_field(numbers: np.ndarray, bits: int) -> np.ndarray:
    count = numbers.shape[1]
    each = 8 // bits
    if count % each:
        numbers = np.pad(numbers, ((0, 0), (0, each - count % each)))
    packed = numbers[:, ::each].copy()
    for place in range(1, each):
        packed |= numbers[:, place::each] << (place * bits)
    return packed


@cache
def _bytes_of(bits: int) -> np.ndarray:
    """Return for each byte the numbers in it, lowest bits first, as one integer of 8 / bits bytes: ``(256,)``."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (np.arange(256, dtype=np.uint8)[:, None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(numbers).view(f"u{8 // bits}").ravel()
