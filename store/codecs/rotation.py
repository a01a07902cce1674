"""An orthonormal rotation that spreads every channel over all others, of any width, in few operations.

For the width ``dim = m × b``, b the largest power of two that divides it, it is the Kronecker product of the DCT-II
matrix of m and the Hadamard matrix of b, both orthonormal, after a change of some channels' signs.
"""

from functools import cache

import numpy as np


def rotate(values: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Rotate the rows of ``(n, dim)`` float32; signs are 1 or -1, ``(dim,)``."""
    return _apply(values * signs, forward=True)


def rotate_back(rotated: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """The opposite of rotate."""
    restored = _apply(rotated, forward=False)
    restored *= signs
    return restored


def _apply(values: np.ndarray, *, forward: bool) -> np.ndarray:
    rows, dim = values.shape
    if not rows:
        return values
    dct, left, right = _factors(dim)
    # H_b is the product of two smaller ones: two small products cost far less than one with H_b.
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
    """Sylvester's matrix of the order 2 ** power, orthonormal and symmetric."""
    matrix = np.ones((1, 1))
    for _ in range(power):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) / np.sqrt(2)
    return matrix.astype(np.float32)


def _dct(order: int) -> np.ndarray:
    k, i = np.ogrid[:order, :order]
    matrix = np.sqrt(2 / order) * np.cos(np.pi * (2 * i + 1) * k / (2 * order))
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)
