"""The calibrated codecs: normalised memory in 8, 4, 3 or 2 bits a value.

Every body begins with the reference of its calibration (u32), then a scale for each vector (fp16), then the vectors'
rows of packed numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from .bits import pack, packed_bytes, unpack
from .calibration import Calibration, fit_channels, fit_rotation, fit_transform
from .codec import chunks, error_of_documents, join
from .rotation import rotate, rotate_back

REFERENCE_BYTES = 4
_SCALE = np.dtype("<f2")
# Enough vectors for means and deviations to within some hundredths, which the vectors' own scales make up for.
_CHANNEL_VECTORS = 1024
# Numbers are quantised by look-up in steps of 1 / 512 of a standard deviation up to 8 of them.
_STEPS, _REACH = 512, 8


class _Quantised(ABC):
    """What the calibrated codecs share.

    Attributes:
        bound: greatest error of a document that it takes, mean over its normalised values.
        needs: arrays of a calibration beside means and deviations.
    """

    bound: float
    needs: tuple[str, ...] = ()

    @abstractmethod
    def _row_bytes(self, dim: int, calibration: Calibration) -> int:
        """Bytes of a vector's packed numbers."""

    def _bodies(
        self,
        calibration: Calibration,
        scales: np.ndarray,
        rows: np.ndarray,
        errors: np.ndarray,
        lengths: Sequence[int],
    ) -> Sequence[bytes | None]:
        """Put bodies together, for the documents that do not lose too much."""
        reference = calibration.reference.to_bytes(REFERENCE_BYTES, "little")
        ends = np.cumsum(np.asarray(lengths, dtype=np.int64)).tolist()
        # A comparison that an error that is no number fails too.
        taken = (error_of_documents(errors, lengths) <= self.bound).tolist()
        return [
            reference + scales[end - n : end].tobytes() + rows[end - n : end].tobytes() if whether else None
            for end, n, whether in zip(ends, lengths, taken, strict=True)
        ]

    def _parts(
        self, bodies: Sequence[memoryview], n_mem: np.ndarray, dim: int, calibration: Calibration
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scales ``(Σ n_mem, 1)`` float32 and packed rows ``(Σ n_mem, bytes)`` of bodies."""
        row_bytes = self._row_bytes(dim, calibration)
        begins = (REFERENCE_BYTES + n_mem * _SCALE.itemsize).tolist()
        heads = [body[REFERENCE_BYTES:begin] for body, begin in zip(bodies, begins, strict=True)]
        tails = [body[begin:] for body, begin in zip(bodies, begins, strict=True)]
        scales = join(heads, n_mem, dim, n_mem * _SCALE.itemsize).view(_SCALE).astype(np.float32)
        return scales[:, None], join(tails, n_mem, dim, n_mem * row_bytes).reshape(len(scales), row_bytes)


class Int8(_Quantised):
    """Normalised memory in steps of a 127th of the largest number of its vector."""

    name = "int8"
    codec_id = 4
    fallback: str | None = "bf16"
    fidelity = 3
    # -30 dB: an ordinary document has about -42.
    bound = 1e-3

    def sample_vectors(self, dim: int) -> int:  # noqa: ARG002
        """Enough for the channels' means and standard deviations."""
        return _CHANNEL_VECTORS

    def calibrate(self, sample: np.ndarray) -> Calibration:
        """The channels' means and standard deviations."""
        return fit_channels(sample)

    def encode(
        self, values: np.ndarray, lengths: Sequence[int], calibration: Calibration | None
    ) -> Sequence[bytes | None]:
        """Encode the memory of k documents."""
        assert calibration is not None
        codes = np.empty(values.shape, np.int8)
        scales = np.empty(len(values), _SCALE)
        with np.errstate(all="ignore"):
            for part in chunks(values):
                normalised = calibration.normalise(values[part])
                peaks = np.maximum(normalised.max(axis=1), -normalised.min(axis=1))
                # Up to the next fp16, so that no number passes 127.
                stored = np.nextafter((peaks / 127).astype(_SCALE), _SCALE.type(np.inf))
                scales[part] = np.where(peaks == 0, _SCALE.type(0), stored)
                normalised *= (1 / stored.astype(np.float32))[:, None]
                codes[part] = np.rint(normalised, out=normalised)
            # Of a number rounded to steps of s the mean squared error is s²/12.
            errors = scales.astype(np.float64) ** 2 / 12
        return self._bodies(calibration, scales, codes, errors, lengths)

    def latents(
        self, bodies: Sequence[memoryview], n_mem: np.ndarray, dim: int, calibration: Calibration | None
    ) -> np.ndarray:
        """Normalised memory ``(Σ n_mem, dim)``."""
        assert calibration is not None
        scales, rows = self._parts(bodies, n_mem, dim, calibration)
        latents = rows.view(np.int8).astype(np.float32)
        latents *= scales
        return latents

    def restore(self, latents: np.ndarray, calibration: Calibration | None) -> np.ndarray:
        """Undo the normalisation."""
        assert calibration is not None
        return calibration.denormalise(latents)

    def inverse(self, calibration: Calibration | None) -> tuple[np.ndarray, np.ndarray]:
        """The standard deviations on a diagonal, and the means."""
        assert calibration is not None
        return np.diag(calibration.std), calibration.mean

    def _row_bytes(self, dim: int, calibration: Calibration) -> int:  # noqa: ARG002
        return dim


class Int4(_Quantised):
    """Normalised memory, rotated so that its numbers are near normally distributed, in Lloyd's and Max's 16 levels."""

    name = "int4"
    codec_id = 5
    fallback: str | None = "int8"
    fidelity = 2
    # -16 dB: an ordinary document has about -20.
    bound = 10**-1.6
    needs: tuple[str, ...] = ("signs", "levels")
    _BITS = 4

    def sample_vectors(self, dim: int) -> int:  # noqa: ARG002
        """Enough for the channels' means and standard deviations."""
        return _CHANNEL_VECTORS

    def calibrate(self, sample: np.ndarray) -> Calibration:
        """The channels, random signs and the levels."""
        return fit_rotation(sample)

    def encode(
        self, values: np.ndarray, lengths: Sequence[int], calibration: Calibration | None
    ) -> Sequence[bytes | None]:
        """Encode the memory of k documents."""
        assert calibration is not None
        assert calibration.signs is not None
        levels = calibration.levels_of(self._BITS)
        signs = calibration.signs.astype(np.float32)
        rows = np.empty((len(values), self._row_bytes(values.shape[1], calibration)), np.uint8)
        scales = np.empty(len(values), _SCALE)
        errors = np.empty(len(values))
        with np.errstate(all="ignore"):
            for part in chunks(values):
                rotated = rotate(calibration.normalise(values[part]), signs)
                energy = np.einsum("ij,ij->i", rotated, rotated)
                root = np.sqrt(energy / max(values.shape[1], 1))
                rotated *= np.where(root > 0, 1 / root, 0)[:, None]
                codes = _nearest(rotated, levels)
                taken = levels.take(codes, mode="clip")
                # The scale that makes the levels lie nearest, which is a little less than the root mean square.
                both = np.einsum("ij,ij->i", rotated, taken)
                norm = np.einsum("ij,ij->i", taken, taken)
                scales[part] = root * both / norm
                rows[part] = pack(codes, self._BITS)
                scale = scales[part].astype(np.float64)
                lost = energy - 2 * scale * root * both + scale**2 * norm
                errors[part] = lost / max(values.shape[1], 1)
        return self._bodies(calibration, scales, rows, errors, lengths)

    def latents(
        self, bodies: Sequence[memoryview], n_mem: np.ndarray, dim: int, calibration: Calibration | None
    ) -> np.ndarray:
        """Normalised and rotated memory ``(Σ n_mem, dim)``."""
        assert calibration is not None
        scales, rows = self._parts(bodies, n_mem, dim, calibration)
        levels = calibration.levels_of(self._BITS)
        # One look-up a byte gives both of its numbers.
        pairs = np.stack([np.tile(levels, 16), np.repeat(levels, 16)], axis=1).view(np.uint64).ravel()
        latents = pairs.take(rows, mode="clip").view(np.float32)[:, :dim]
        latents *= scales
        return latents

    def restore(self, latents: np.ndarray, calibration: Calibration | None) -> np.ndarray:
        """Rotate back, and undo the normalisation."""
        assert calibration is not None
        assert calibration.signs is not None
        return calibration.denormalise(rotate_back(latents, calibration.signs.astype(np.float32)))

    def inverse(self, calibration: Calibration | None) -> tuple[np.ndarray, np.ndarray]:
        """The rotation back, times the standard deviations; and the means."""
        assert calibration is not None
        assert calibration.signs is not None
        identity = np.eye(calibration.dim, dtype=np.float32)
        return rotate_back(identity, calibration.signs.astype(np.float32)) * calibration.std, calibration.mean

    def _row_bytes(self, dim: int, calibration: Calibration) -> int:  # noqa: ARG002
        return packed_bytes(dim, self._BITS)


class Klt(_Quantised):
    """Normalised memory in the basis of its Karhunen-Loève transform, more bits where it varies more.

    Args:
        codec_id: its number.
        bits: that a value takes, on average.
        bound: greatest error of a document.
        fidelity: its place among the codecs.
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
        """Enough for a covariance that other vectors have too."""
        return max(16 * dim, _CHANNEL_VECTORS)

    def calibrate(self, sample: np.ndarray) -> Calibration:
        """The channels, the transform, the widths and the levels."""
        return fit_transform(sample, self._bits)

    def encode(
        self, values: np.ndarray, lengths: Sequence[int], calibration: Calibration | None
    ) -> Sequence[bytes | None]:
        """Encode the memory of k documents."""
        assert calibration is not None
        assert calibration.transform is not None
        dim = max(values.shape[1], 1)
        energies = np.square(calibration.transform).sum(axis=1)
        rows = np.empty((len(values), self._row_bytes(values.shape[1], calibration)), np.uint8)
        scales = np.empty(len(values), _SCALE)
        errors = np.empty(len(values))
        with np.errstate(all="ignore"):
            for part in chunks(values):
                normalised = calibration.normalise(values[part])
                numbers = normalised @ calibration.analysis
                energy = np.einsum("ij,ij->i", normalised, normalised)
                root = np.sqrt(np.square(numbers).mean(axis=1)) if numbers.shape[1] else np.zeros(len(numbers))
                scaled = numbers * np.where(root > 0, 1 / root, 0)[:, None]
                taken = np.empty_like(scaled)
                start = 0
                for bits, numbers_of in _groups(calibration):
                    codes = _nearest(scaled[:, numbers_of], calibration.levels_of(bits))
                    taken[:, numbers_of] = calibration.levels_of(bits).take(codes, mode="clip")
                    size = packed_bytes(codes.shape[1], bits)
                    rows[part, start : start + size] = pack(codes, bits)
                    start += size
                weighted = taken * energies
                both = np.einsum("ij,ij->i", numbers, weighted)
                norm = np.einsum("ij,ij->i", taken, weighted)
                scales[part] = np.where(norm > 0, both / norm, 0)
                scale = scales[part].astype(np.float64)
                errors[part] = (energy - 2 * scale * both + scale**2 * norm) / dim
        return self._bodies(calibration, scales, rows, errors, lengths)

    def latents(
        self, bodies: Sequence[memoryview], n_mem: np.ndarray, dim: int, calibration: Calibration | None
    ) -> np.ndarray:
        """Coefficients of the transform ``(Σ n_mem, m)``."""
        assert calibration is not None
        assert calibration.widths is not None
        scales, rows = self._parts(bodies, n_mem, dim, calibration)
        latents = np.empty((len(rows), len(calibration.widths)), np.float32)
        start = 0
        for bits, numbers_of in _groups(calibration):
            count = numbers_of.stop - numbers_of.start
            size = packed_bytes(count, bits)
            codes = unpack(rows[:, start : start + size], bits, count)
            np.multiply(calibration.levels_of(bits).take(codes, mode="clip"), scales, out=latents[:, numbers_of])
            start += size
        return latents

    def restore(self, latents: np.ndarray, calibration: Calibration | None) -> np.ndarray:
        """Apply the transform, and undo the normalisation."""
        assert calibration is not None
        assert calibration.transform is not None
        return calibration.denormalise(latents @ calibration.transform)

    def inverse(self, calibration: Calibration | None) -> tuple[np.ndarray, np.ndarray]:
        """The transform, times the standard deviations; and the means."""
        assert calibration is not None
        assert calibration.transform is not None
        return calibration.transform * calibration.std, calibration.mean

    def _row_bytes(self, dim: int, calibration: Calibration) -> int:  # noqa: ARG002
        return sum(packed_bytes(each.stop - each.start, bits) for bits, each in _groups(calibration))


def _groups(calibration: Calibration) -> list[tuple[int, slice]]:
    """Widths that occur, falling, each with the numbers that have it."""
    widths = calibration.widths
    assert widths is not None
    begins = [0, *(np.flatnonzero(np.diff(widths.astype(np.int16))) + 1).tolist(), len(widths)]
    return [(int(widths[start]), slice(start, stop)) for start, stop in pairwise(begins) if stop > start]


def _nearest(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """For each value the number of the level nearest to it, uint8, up to the step of the look-up table.

    Values are at most as large as the root of their vector's length; what is no number gets some level.
    """
    places = values * np.float32(_STEPS)
    places += np.float32(_REACH * _STEPS)
    return _table(levels.tobytes()).take(places.astype(np.int32), mode="clip")


@lru_cache(maxsize=32)
def _table(levels: bytes) -> np.ndarray:
    found = np.frombuffer(levels, np.float32)
    middles = (np.arange(2 * _REACH * _STEPS) + 0.5) / _STEPS - _REACH
    return np.searchsorted((found[1:] + found[:-1]) / 2, middles).astype(np.uint8)
