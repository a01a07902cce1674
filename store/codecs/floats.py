"""Numbers of memory: float32, or bfloat16 as its bits in uint16, which numpy has no type for."""

import numpy as np


def as_float32(values: np.ndarray) -> np.ndarray:
    """Return numbers, or bits of bfloat16, as float32; float32 itself is not copied."""
    return from_bf16(values) if values.dtype == np.uint16 else values.astype(np.float32, copy=False)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """Return the float32 numbers that bits of bfloat16, uint16, stand for."""
    wide = bits.astype(np.uint32)
    # In place, because allocating a second array of this size takes several times as long as the shift.
    np.left_shift(wide, 16, out=wide)
    return wide.view(np.float32)
