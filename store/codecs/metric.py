"""The metric of a decoder: the error of memory, weighted by how much it changes the decoder's next token.

To second order, an error d of a memory vector changes the distribution of the decoder's next token by a KL divergence
of ``d @ sensitivity @ d / 2``, where the sensitivity is the Fisher matrix of the decoder (Amari, Natural gradient works
efficiently in learning, 1998). A Karhunen-Loève transform in this metric gives bits to the directions of memory that
vary and that the decoder notices.
"""

import math
from dataclasses import replace

import numpy as np

from .calibration import Calibration, fit_channels, gaussian_levels

# Sensitivity added to all directions, as a share of the mean one. A sample shows no sensitivity in some directions to
# which the decoder is sensitive with other texts.
_RIDGE = 0.01
# Smallest energy of a number, as a share of the largest one: vectors may have components in directions in which the
# sample does not vary.
_ENERGY_FLOOR = 1e-9


def fit_metric(sample: np.ndarray, sensitivity: np.ndarray | None = None) -> Calibration:
    """Fit the basis of the ``fisher`` codecs: a Karhunen-Loève transform of normalised memory in a decoder's metric.

    The metric is scaled so that the mean square of a normalised vector in it, divided by dim, is 1.

    Args:
        sample: memory ``(n, dim)``; at least 16 × dim vectors, or the transform does not suit other memory.
        sensitivity: Fisher matrix of the decoder, ``(dim, dim)``, in units of the memory; its scale does not matter.
            Without it, or if it is 0, all normalised channels are equally important, as for the ``klt`` codecs.

    Returns:
        A calibration without widths and limit.

    Raises:
        ValueError: the sensitivity has another shape, or values that are not finite.
    """
    channels = fit_channels(sample)
    dim = channels.dim
    normalised = channels.normalise(np.asarray(sample, np.float32))
    normalised = normalised[np.isfinite(normalised).all(axis=1)]
    covariance = (normalised.T @ normalised / max(len(normalised), 1)).astype(np.float64)
    root = None if sensitivity is None else _root(sensitivity, channels.std)
    if root is not None:
        covariance = root[0] @ covariance @ root[0].T
    energies, vectors = np.linalg.eigh(covariance)
    # eigh sorts ascending, and rounding makes energies that are zero slightly negative.
    energies, vectors = np.maximum(energies[::-1], 0), vectors[:, ::-1]
    total = energies.sum()
    scale = math.sqrt(dim / total) if total > 0 else 1.0
    energies *= scale**2
    energies = np.maximum(energies, energies[0] * _ENERGY_FLOOR) if total > 0 else np.ones(dim)
    roots = np.sqrt(energies)[:, None]
    basis = vectors.T if root is None else vectors.T @ root[1]
    dual = None if root is None else np.ascontiguousarray(vectors.T @ root[0] * scale / roots, dtype=np.float32)
    return replace(
        channels,
        levels=gaussian_levels(),
        transform=np.ascontiguousarray(basis / scale * roots, dtype=np.float32),
        energies=energies.astype(np.float32),
        dual=dual,
    )


def errors_in_metric(values: np.ndarray, decoded: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Return the error of each decoded vector in the metric of a calibration, divided by dim: ``(n,)`` float64.

    An error of 1 equals the mean square of the sample that the calibration was fitted to. Both arrays are ``(n, dim)``.
    """
    assert calibration.energies is not None
    numbers = (np.asarray(values - decoded, np.float32) * calibration.per_std) @ calibration.analysis
    return np.square(numbers, dtype=np.float64) @ calibration.energies / max(calibration.dim, 1)


def _root(sensitivity: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a root of the metric of normalised memory and its transposed inverse; None if the sensitivity is 0.

    The root R is a matrix for which ``R.T @ R`` is the metric.
    """
    matrix = np.asarray(sensitivity, np.float64)
    if matrix.shape != (len(std), len(std)):
        raise ValueError(
            f"the sensitivity of memory of width {len(std)} has shape {(len(std),) * 2}, not {matrix.shape}"
        )
    if not np.isfinite(matrix).all():
        raise ValueError("the sensitivity has values that are not finite")
    matrix = (matrix + matrix.T) / 2 * np.outer(std, std)
    strengths, vectors = np.linalg.eigh(matrix)
    strengths = np.maximum(strengths, 0)
    if not (mean := strengths.mean()) > 0:
        return None
    roots = np.sqrt(strengths / mean + _RIDGE)[:, None]
    return vectors.T * roots, vectors.T / roots
