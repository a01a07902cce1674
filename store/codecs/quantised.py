"""The calibrated codecs: normalised memory in 8, 4, 3 or 2 bits per value.

A body has the reference of its calibration (u32), then a scale for each vector (fp16), then a row of packed numbers for
each vector.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from .bits import pack, packed_bytes, unpack
from .calibration import REFERENCE_BYTES, Calibration, fit_channels, fit_rotation, fit_transform
from .codec import Bodies, chunks, error_of_documents, require_sizes
from .rotation import rotate, rotate_back

SCALE = np.dtype("<f2")
# Vectors in a sample for means and standard deviations. With this many they are right to within a few percent, and the
# scale of each vector makes up for the rest.
CHANNEL_VECTORS = 1024
# The look-up table for quantising has 512 steps per standard deviation and reaches 8 deviations to either side.
_STEPS, _REACH = 512, 8


class Quantised(ABC):
    """Base of the calibrated codecs.

    Attributes:
        bound: largest error of a document that the codec accepts, averaged over its normalised values.
        needs: names of the arrays of a calibration, apart from ``mean`` and ``std``, that decoding requires.
    """

    bound: float
    needs: tuple[str, ...] = ()

    @abstractmethod
    def _row_bytes(self, dim: int, calibration: Calibration) -> int:
        """Return the size of a vector's packed numbers in bytes."""

    def _bodies(
        self,
        calibration: Calibration,
        scales: np.ndarray,
        rows: np.ndarray,
        errors: np.ndarray,
        lengths: Sequence[int],
    ) -> Sequence[bytes | None]:
        """Return the bodies of the documents; None for a document whose error is above the bound."""
        reference = calibration.reference.to_bytes(REFERENCE_BYTES, "little")
        ends = np.cumsum(np.asarray(lengths, dtype=np.int64)).tolist()
        # An error that is NaN fails this comparison too.
        taken = (error_of_documents(errors, lengths) <= self.bound).tolist()
        return [
            b"".join([reference, scales[end - n : end].data, rows[end - n : end].data]) if is_taken else None
            for end, n, is_taken in zip(ends, lengths, taken, strict=True)
        ]

    def _parts(
        self, bodies: Bodies, n_mem: np.ndarray, dim: int, calibration: Calibration
    ) -> tuple[np.ndarray, np.ndarray]:
        """Split bodies into scales ``(Σ n_mem, 1)`` float32 and packed rows ``(Σ n_mem, bytes)``."""
        row_bytes = self._row_bytes(dim, calibration)
        require_sizes(bodies, n_mem, dim, REFERENCE_BYTES + n_mem * (SCALE.itemsize + row_bytes))
        begins = (REFERENCE_BYTES + n_mem * SCALE.itemsize).tolist()
        heads = b"".join([body[REFERENCE_BYTES:begin] for body, begin in zip(bodies.parts, begins, strict=True)])
        tails = b"".join([body[begin:] for body, begin in zip(bodies.parts, begins, strict=True)])
        scales = np.frombuffer(heads, SCALE).astype(np.float32)
        return scales[:, None], np.frombuffer(tails, np.uint8).reshape(len(scales), row_bytes)


class Int8(Quantised):
    """Codec that stores normalised memory as whole multiples of a 127th of the largest number in each vector."""

    name = "int8"
    codec_id = 4
    fallback: str | None = "bf16"
    fidelity = 3
    # -30 dB. The error of an ordinary document is about -42 dB.
    bound = 1e-3

    def sample_vectors(self, dim: int) -> int:  # noqa: ARG002
        """Return the sample size for means and standard deviations of the channels."""
        return CHANNEL_VECTORS

    def calibrate(self, sample: np.ndarray, sensitivity: np.ndarray | None = None) -> Calibration:  # noqa: ARG002
        """Fit the means and standard deviations of the channels."""
        return fit_channels(sample)

    def encode(
        self, values: np.ndarray, lengths: Sequence[int], calibration: Calibration | None
    ) -> Sequence[bytes | None]:
        """Encode the memory of k documents, as `Codec.encode` says."""
        assert calibration is not None
        codes = np.empty(values.shape, np.int8)
        scales = np.empty(len(values), SCALE)
        with np.errstate(all="ignore"):
            for part in chunks(values):
                normalised = calibration.normalise(values[part])
                peaks = np.maximum(normalised.max(axis=1), -normalised.min(axis=1))
                # Rounded up to the next fp16, so that no number exceeds 127.
                stored = np.nextafter((peaks / 127).astype(SCALE), SCALE.type(np.inf))
                scales[part] = np.where(peaks == 0, SCALE.type(0), stored)
                normalised *= (1 / stored.astype(np.float32))[:, None]
                codes[part] = np.rint(normalised, out=normalised)
            # Rounding to steps of s has the mean squared error s²/12.
            errors = scales.astype(np.float64) ** 2 / 12
        return self._bodies(calibration, scales, codes, errors, lengths)

    def latents(self, bodies: Bodies, n_mem: np.ndarray, dim: int, calibration: Calibration | None) -> np.ndarray:
        """Decode the bodies of k documents to normalised memory ``(Σ n_mem, dim)``."""
        assert calibration is not None
        scales, rows = self._parts(bodies, n_mem, dim, calibration)
        latents = rows.view(np.int8).astype(np.float32)
        latents *= scales
        return latents

    def restore(self, latents: np.ndarray, calibration: Calibration | None) -> np.ndarray:
        """Undo the normalisation of latents ``(n, dim)``."""
        assert calibration is not None
        return calibration.denormalise(latents)

    def inverse(self, calibration: Calibration | None) -> tuple[np.ndarray, np.ndarray]:
        """Return a diagonal matrix of the standard deviations, and the means."""
        assert calibration is not None
        return np.diag(calibration.std), calibration.mean

    def _row_bytes(self, dim: int, calibration: Calibration) -> int:  # noqa: ARG002
        return dim


class Int4(Quantised):
    """Codec that stores normalised and rotated memory in the 16 levels of Lloyd and Max.

    The rotation makes the numbers nearly normally distributed, which these levels suit best.
    """

    name = "int4"
    codec_id = 5
    fallback: str | None = "int8"
    fidelity = 2
    # -16 dB. The error of an ordinary document is about -20 dB.
    bound = 10**-1.6
    needs: tuple[str, ...] = ("signs", "levels")
    _BITS = 4

    def sample_vectors(self, dim: int) -> int:  # noqa: ARG002
        """Return the sample size for means and standard deviations of the channels."""
        return CHANNEL_VECTORS

    def calibrate(self, sample: np.ndarray, sensitivity: np.ndarray | None = None) -> Calibration:  # noqa: ARG002
        """Fit the channels, and choose random signs."""
        return fit_rotation(sample)

    def encode(
        self, values: np.ndarray, lengths: Sequence[int], calibration: Calibration | None
    ) -> Sequence[bytes | None]:
        """Encode the memory of k documents, as `Codec.encode` says."""
        assert calibration is not None
        assert calibration.signs is not None
        levels = calibration.levels_of(self._BITS)
        signs = calibration.signs.astype(np.float32)
        rows = np.empty((len(values), self._row_bytes(values.shape[1], calibration)), np.uint8)
        scales = np.empty(len(values), SCALE)
        errors = np.empty(len(values))
        with np.errstate(all="ignore"):
            for part in chunks(values):
                rotated = rotate(calibration.normalise(values[part]), signs)
                energy = np.einsum("ij,ij->i", rotated, rotated)
                root = np.sqrt(energy / max(values.shape[1], 1))
                rotated *= np.where(root > 0, 1 / root, 0)[:, None]
                codes = _nearest(rotated, levels)
                taken = levels.take(codes, mode="clip")
                # The scale with the smallest error, which is a little less than the root mean square.
                both = np.einsum("ij,ij->i", rotated, taken)
                norm = np.einsum("ij,ij->i", taken, taken)
                scales[part] = root * both / norm
                rows[part] = pack(codes, self._BITS)
                scale = scales[part].astype(np.float64)
                lost = energy - 2 * scale * root * both + scale**2 * norm
                errors[part] = lost / max(values.shape[1], 1)
        return self._bodies(calibration, scales, rows, errors, lengths)

    def latents(self, bodies: Bodies, n_mem: np.ndarray, dim: int, calibration: Calibration | None) -> np.ndarray:
        """Decode the bodies of k documents to normalised and rotated memory ``(Σ n_mem, dim)``."""
        assert calibration is not None
        scales, rows = self._parts(bodies, n_mem, dim, calibration)
        levels = calibration.levels_of(self._BITS)
        # One look-up gives both numbers in a byte.
        pairs = np.stack([np.tile(levels, 16), np.repeat(levels, 16)], axis=1).view(np.uint64).ravel()
        latents = pairs.take(rows, mode="clip").view(np.float32)[:, :dim]
        latents *= scales
        return latents

    def restore(self, latents: np.ndarray, calibration: Calibration | None) -> np.ndarray:
        """Rotate latents ``(n, dim)`` back, and undo the normalisation."""
        assert calibration is not None
        assert calibration.signs is not None
        return calibration.denormalise(rotate_back(latents, calibration.signs.astype(np.float32)))

    def inverse(self, calibration: Calibration | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the matrix that rotates back and multiplies by the standard deviations, and the means."""
        assert calibration is not None
        assert calibration.signs is not None
        identity = np.eye(calibration.dim, dtype=np.float32)
        return rotate_back(identity, calibration.signs.astype(np.float32)) * calibration.std, calibration.mean

    def _row_bytes(self, dim: int, calibration: Calibration) -> int:  # noqa: ARG002
        return packed_bytes(dim, self._BITS)


class Klt(Quantised):
    """Codec that stores normalised memory in the basis of its Karhunen-Loève transform.

    Numbers that vary more get more bits.

    Args:
        codec_id: number of the codec.
        bits: number of bits per value, on average.
        bound: largest error of a document that the codec accepts.
        fidelity: rank of the codec by how much of the memory it keeps.
    """

    fallback: str | None = "int8"
    needs: tuple[str, ...] = ("transform", "widths", "levels")

    def __init__(self, codec_id: int, bits: int, bound: float, fidelity: int):
        self.name = f"klt{bits}"
        self.codec_id = codec_id
        self.bound = bound
        self.fidelity = fidelity
        self._bits = bits

    def sample_vectors(self, dim: int) -> int:
        """Return the sample size for a covariance that holds for other vectors too."""
        return max(16 * dim, CHANNEL_VECTORS)

    def calibrate(self, sample: np.ndarray, sensitivity: np.ndarray | None = None) -> Calibration:  # noqa: ARG002
        """Fit the channels, the transform and the widths of its numbers."""
        return fit_transform(sample, self._bits)

    def encode(
        self, values: np.ndarray, lengths: Sequence[int], calibration: Calibration | None
    ) -> Sequence[bytes | None]:
        """Encode the memory of k documents, as `Codec.encode` says."""
        assert calibration is not None
        assert calibration.transform is not None
        dim = max(values.shape[1], 1)
        energies = np.square(calibration.transform).sum(axis=1)
        rows = np.empty((len(values), self._row_bytes(values.shape[1], calibration)), np.uint8)
        scales = np.empty(len(values), SCALE)
        errors = np.empty(len(values))
        with np.errstate(all="ignore"):
            for part in chunks(values):
                normalised = calibration.normalise(values[part])
                numbers = normalised @ calibration.analysis
                energy = np.einsum("ij,ij->i", normalised, normalised)
                root = np.sqrt(np.square(numbers).mean(axis=1)) if numbers.shape[1] else np.zeros(len(numbers))
                scaled = numbers * np.where(root > 0, 1 / root, 0)[:, None]
                taken = pack_numbers(scaled, calibration, rows[part])
                weighted = taken * energies
                both = np.einsum("ij,ij->i", numbers, weighted)
                norm = np.einsum("ij,ij->i", taken, weighted)
                scales[part] = np.where(norm > 0, both / norm, 0)
                scale = scales[part].astype(np.float64)
                errors[part] = (energy - 2 * scale * both + scale**2 * norm) / dim
        return self._bodies(calibration, scales, rows, errors, lengths)

    def latents(self, bodies: Bodies, n_mem: np.ndarray, dim: int, calibration: Calibration | None) -> np.ndarray:
        """Decode the bodies of k documents to coefficients of the transform ``(Σ n_mem, m)``."""
        assert calibration is not None
        scales, rows = self._parts(bodies, n_mem, dim, calibration)
        return unpack_numbers(rows, scales, calibration)

    def restore(self, latents: np.ndarray, calibration: Calibration | None) -> np.ndarray:
        """Apply the transform to latents ``(n, m)``, and undo the normalisation."""
        assert calibration is not None
        assert calibration.transform is not None
        return calibration.denormalise(latents @ calibration.transform)

    def inverse(self, calibration: Calibration | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the transform times the standard deviations, and the means."""
        assert calibration is not None
        assert calibration.transform is not None
        return calibration.transform * calibration.std, calibration.mean

    def _row_bytes(self, dim: int, calibration: Calibration) -> int:  # noqa: ARG002
        return numbers_bytes(calibration)


def pack_numbers(scaled: np.ndarray, calibration: Calibration, rows: np.ndarray) -> np.ndarray:
    """Pack numbers in the calibration's widths.

    Args:
        scaled: numbers ``(n, m)`` float32 that vary about as much as a standard normal number; those of 0 bits may be
            left out.
        calibration: calibration with the widths.
        rows: array for the packed rows, ``(n, numbers_bytes)`` uint8.

    Returns:
        The levels that stand for the numbers, ``(n, m)`` float32.
    """
    taken = np.empty_like(scaled)
    start = 0
    for bits, numbers_of in _groups(calibration):
        levels = calibration.levels_of(bits)
        codes = _nearest(scaled[:, numbers_of], levels)
        taken[:, numbers_of] = levels.take(codes, mode="clip")
        size = packed_bytes(codes.shape[1], bits)
        rows[:, start : start + size] = pack(codes, bits)
        start += size
    return taken


def unpack_numbers(rows: np.ndarray, scales: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Return the numbers in packed rows, times the scales ``(n, 1)``: ``(n, m)`` float32. Those of 0 bits are 0."""
    widths = calibration.widths
    assert widths is not None
    latents = np.empty((len(rows), len(widths)), np.float32)
    start = 0
    for bits, numbers_of in _groups(calibration):
        count = numbers_of.stop - numbers_of.start
        size = packed_bytes(count, bits)
        codes = unpack(rows[:, start : start + size], bits, count)
        np.multiply(calibration.levels_of(bits).take(codes, mode="clip"), scales, out=latents[:, numbers_of])
        start += size
    latents[:, np.count_nonzero(widths) :] = 0
    return latents


def numbers_bytes(calibration: Calibration) -> int:
    """Return the size of a vector's packed numbers in bytes."""
    return sum(packed_bytes(each.stop - each.start, bits) for bits, each in _groups(calibration))


def _groups(calibration: Calibration) -> list[tuple[int, slice]]:
    """Return the widths that occur, descending and without 0, each with the slice of the numbers that have it."""
    widths = calibration.widths
    assert widths is not None
    begins = [0, *(np.flatnonzero(np.diff(widths.astype(np.int16))) + 1).tolist(), len(widths)]
    return [(int(widths[start]), slice(start, stop)) for start, stop in pairwise(begins) if widths[start:stop].any()]


def _nearest(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return for each value the number of the nearest level, uint8, to within a step of the look-up table.

    A value is at most as large as the root of its vector's length. NaN gets any level.
    """
    places = values * np.float32(_STEPS)
    places += np.float32(_REACH * _STEPS)
    return _table(levels.tobytes()).take(places.astype(np.int32), mode="clip")


@lru_cache(maxsize=32)
def _table(levels: bytes) -> np.ndarray:
    found = np.frombuffer(levels, np.float32)
    middles = (np.arange(2 * _REACH * _STEPS) + 0.5) / _STEPS - _REACH
    return np.searchsorted((found[1:] + found[:-1]) / 2, middles).astype(np.uint8)
