"""A fast orthonormal rotation, for any width, that spreads every channel over all channels.

Let ``dim = m × b``, where b is the largest power of two that divides the width. The rotation first changes the signs of
some channels. Then it multiplies by the Kronecker product of the DCT-II matrix of order m and the Hadamard matrix of
order b, both orthonormal.
"""

from functools import cache

import numpy as np


def rotate(values: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Rotate the rows of ``(n, dim)`` float32. The signs ``(dim,)`` are 1 or -1."""
    return _apply(values * signs, forward=True)


def rotate_back(rotated: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Undo ``rotate``: return the rows ``(n, dim)`` as they were."""
    restored = _apply(rotated, forward=False)
    restored *= signs
    return restored


def _apply(values: np.ndarray, *, forward: bool) -> np.ndarray:
    rows, dim = values.shape
    if not rows:
        return values
    dct, left, right = _factors(dim)
    # The Hadamard matrix of b is the Kronecker product of two smaller ones, and two small products cost far less.
    shaped = values.reshape(-1, len(right)) @ right
    if len(left) > 1:
        shaped = np.matmul(left, shaped.reshape(-1, len(left), len(right)))
    if len(dct) > 1:
        shaped = np.matmul(dct if forward else dct.T, shaped.reshape(rows, len(dct), -1))
    return shaped.reshape(rows, dim)


@cache
def _factors(dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    power = (dim & -dim).bit_length() - 1
    return _dct(dim >> power), _hadamard(power // 2), _hadamard(power - power // 2)


def _hadamard(power: int) -> np.ndarray:
    """Return Sylvester's matrix of order 2 ** power, orthonormal and symmetric."""
    matrix = np.ones((1, 1))
    for _ in range(power):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) / np.sqrt(2)
    return matrix.astype(np.float32)


def _dct(order: int) -> np.ndarray:
    k, i = np.ogrid[:order, :order]
    matrix = np.sqrt(2 / order) * np.cos(np.pi * (2 * i + 1) * k / (2 * order))
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)
