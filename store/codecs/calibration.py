"""Calibrations: statistics of a corpus's memory, fitted once to a sample and kept in the store.

In large language models some channels are tens of times as large as the others. Plain squared error counts these
channels and hardly anything else. Calibrated codecs therefore work on normalised memory, in which each channel has mean
0 and standard deviation 1, and errors are measured there: a normalised error of 1 equals the channels' own variance.
"""

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property
from statistics import NormalDist
from typing import Self

import numpy as np
import xxhash
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ...errors import CorruptStoreError
from .floats import as_float32

CALIBRATION_PREFIX = "calibration/"
"""Prefix of calibration assets; its reference follows in 8 hexadecimal digits."""

REFERENCE_BYTES = 4
"""Size of a reference to a calibration, in payloads."""

MAX_BITS = 8
"""Most bits that a quantised number has: its code is stored in a byte."""

# Smallest standard deviation, as a share of the median one. Dividing by less would turn the rounding noise of a channel
# that is nearly constant into a signal.
_STD_FLOOR = 0.01


@dataclass(frozen=True, eq=False)
class Calibration:
    """The statistics of a corpus that a codec needs.

    Attributes:
        mean: mean of each channel, ``(dim,)`` float32.
        std: standard deviation of each channel, ``(dim,)`` float32, positive.
        signs: random 1 or -1 for each channel, ``(dim,)`` int8; the rotation of ``int4`` begins with them.
        levels: values that a quantised number can stand for, ``(510,)`` float32: 2 for 1 bit, then 4 for 2 bits, up to
            256 for 8 bits, each group ascending.
        transform: basis of a transform, ``(m, dim)`` float32: a vector for each number that is stored. The ``fisher``
            codecs have a basis of the whole space: m = dim.
        widths: bits of each number, ``(m,)`` uint8, descending; only the ``fisher`` codecs have numbers of 0 bits.
        energies: variance of each number in the metric of a ``fisher`` codec, ``(dim,)`` float32, positive, descending;
            the sum is dim.
        dual: dual basis of ``transform``, ``(dim, dim)`` float32: the product of a vector with row i is its number i.
            None if the rows of ``transform`` are orthogonal.
        limit: largest error of a vector in the metric, over dim, that a ``fisher`` codec accepts before it stores the
            vector in 8 bits per number, ``(1,)`` float32.
    """

    mean: np.ndarray
    std: np.ndarray
    signs: np.ndarray | None = None
    levels: np.ndarray | None = None
    transform: np.ndarray | None = None
    widths: np.ndarray | None = None
    energies: np.ndarray | None = None
    dual: np.ndarray | None = None
    limit: np.ndarray | None = None

    @property
    def is_sensitive(self) -> bool:
        """True if the calibration was fitted to the sensitivity of a decoder."""
        return self.dual is not None

    @property
    def dim(self) -> int:
        """Width of the memory that the calibration was fitted to."""
        return len(self.mean)

    @cached_property
    def reference(self) -> int:
        """Number by which payloads refer to the calibration: the low 32 bits of XXH3-64 of its bytes."""
        return reference_of(self.to_bytes())

    @property
    def asset(self) -> str:
        """Name of the asset in which a store keeps the calibration."""
        return asset_name(self.reference)

    @cached_property
    def per_std(self) -> np.ndarray:
        """Reciprocal of ``std``: multiplying by it is faster than dividing."""
        return 1 / self.std

    @cached_property
    def analysis(self) -> np.ndarray:
        """Matrix ``(dim, m)`` float32 that maps a normalised vector to its numbers in the basis ``transform``."""
        if self.dual is not None:
            return np.ascontiguousarray(self.dual.T)
        assert self.transform is not None
        energy = np.square(self.transform).sum(axis=1, keepdims=True)
        return np.ascontiguousarray((self.transform / energy).T)

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """Return memory ``(n, dim)`` less the mean, divided by the standard deviation, as a new float32 array.

        Args:
            values: float32, or bits of bfloat16 as uint16.
        """
        normalised = as_float32(values) - self.mean
        normalised *= self.per_std
        return normalised

    def denormalise(self, normalised: np.ndarray) -> np.ndarray:
        """Undo ``normalise`` in place."""
        normalised *= self.std
        normalised += self.mean
        return normalised

    def levels_of(self, bits: int) -> np.ndarray:
        """Return the levels for numbers of this many bits, ``(2 ** bits,)`` float32."""
        assert self.levels is not None
        return self.levels[2**bits - 2 : 2 ** (bits + 1) - 2]

    def to_bytes(self) -> bytes:
        """Return the arrays as a safetensors file."""
        arrays = {name: value for name, value in self._arrays().items() if value is not None}
        return save({name: np.ascontiguousarray(value) for name, value in arrays.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what ``to_bytes`` wrote.

        Raises:
            CorruptStoreError: the bytes are not a calibration, or its arrays do not fit together.
        """
        try:
            arrays = load(data)
        # For a dtype that NumPy does not have, load raises errors of other kinds than SafetensorError.
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptStoreError(f"a calibration cannot be read: {error}.") from None
        dim = arrays["mean"].size if "mean" in arrays else 0
        count = arrays["widths"].size if "widths" in arrays else 0
        expected = {"mean": (dim,), "std": (dim,), "signs": (dim,), "levels": (2 ** (MAX_BITS + 1) - 2,)}
        expected |= {"transform": (count, dim), "widths": (count,)}
        expected |= {"energies": (count,), "dual": (count, count), "limit": (1,)}
        shapes = {name: array.shape for name, array in arrays.items()}
        # A basis of the whole space has its energies and a limit.
        is_whole = "energies" in arrays
        if (
            {"mean", "std"} - shapes.keys()
            or any(shapes[name] != expected.get(name) for name in shapes)
            or ("limit" in arrays) != is_whole
            or ("dual" in arrays and not is_whole)
            or (is_whole and (count != dim or "transform" not in arrays))
        ):
            raise CorruptStoreError(f"a calibration has arrays that do not fit together: their shapes are {shapes}.")
        kinds = {"signs": np.int8, "widths": np.uint8}
        sound = all(
            array.dtype == kinds.get(name, np.float32) and np.isfinite(array).all() for name, array in arrays.items()
        )
        positive = all((arrays[name] > 0).all() for name in ("std", "energies") if name in arrays)
        widths = arrays.get("widths", np.ones(1, np.uint8))
        lowest = 0 if is_whole else 1
        if (
            not (sound and positive)
            or not np.isin(widths, np.arange(lowest, MAX_BITS + 1)).all()
            or (is_whole and (np.diff(widths.astype(np.int16)) > 0).any())
        ):
            raise CorruptStoreError("a calibration has values or dtypes that no calibration can have.")
        return cls(**arrays)

    def _arrays(self) -> dict[str, np.ndarray | None]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def reference_of(data: bytes) -> int:
    """Return the number by which payloads refer to the calibration with these bytes."""
    return xxhash.xxh3_64_intdigest(data) & 0xFFFFFFFF


def asset_name(reference: int) -> str:
    """Return the name of the asset in which a store keeps a calibration."""
    return f"{CALIBRATION_PREFIX}{reference:08x}"


def fit_channels(sample: np.ndarray) -> Calibration:
    """Fit the mean and standard deviation of each channel to a sample ``(n, dim)``.

    Vectors with NaN or infinity are ignored. No standard deviation is less than a hundredth of the median one. If that
    is zero too, as for a sample of one vector, all standard deviations are 1.
    """
    sample = np.asarray(sample, dtype=np.float32)
    finite = sample[np.isfinite(sample).all(axis=1)]
    if not len(finite):
        return Calibration(np.zeros(sample.shape[1], np.float32), np.ones(sample.shape[1], np.float32))
    mean = finite.mean(axis=0, dtype=np.float64)
    with np.errstate(over="ignore"):
        std = np.sqrt(np.mean(np.square(finite - mean), axis=0))
    mean, std = mean.astype(np.float32), std.astype(np.float32)
    std = np.maximum(std, np.float32(_STD_FLOOR) * np.median(std))
    return Calibration(mean, np.where(np.isfinite(std) & (std > 0), std, np.float32(1)))


def fit_rotation(sample: np.ndarray, seed: int = 0) -> Calibration:
    """Fit what ``int4`` needs: the channels' statistics, random signs, and the levels."""
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), sample.shape[1])
    return replace(fit_channels(sample), signs=signs, levels=gaussian_levels())


def fit_transform(sample: np.ndarray, bits: int, block: int = 16) -> Calibration:
    """Fit what ``klt3`` and ``klt2`` need: the channels' statistics, a Karhunen-Loève transform, widths and levels.

    Args:
        sample: memory ``(n, dim)``; at least 16 × dim vectors, or the transform does not suit other memory.
        bits: number of bits to spend on a value, on average.
        block: count of neighbouring numbers that have the same width.
    """
    channels = fit_channels(sample)
    normalised = channels.normalise(np.asarray(sample, np.float32))
    normalised = normalised[np.isfinite(normalised).all(axis=1)]
    covariance = normalised.T @ normalised / max(len(normalised), 1)
    energies, vectors = np.linalg.eigh(covariance.astype(np.float64))
    # eigh sorts ascending, and rounding makes energies that are zero slightly negative.
    energies, vectors = np.maximum(energies[::-1], 0), vectors[:, ::-1]
    widths = spend(energies, bits, block)
    kept = (widths > 0) & (energies > energies[0] * 1e-9)
    transform = (vectors[:, kept] * np.sqrt(energies[kept])).T
    return replace(
        channels,
        levels=gaussian_levels(),
        transform=np.ascontiguousarray(transform, dtype=np.float32),
        widths=widths[kept],
    )


def spend(energies: np.ndarray, bits: float, block: int = 16) -> np.ndarray:
    """Return the width of each number, descending, by water-filling.

    One bit for each of its numbers goes to the block whose error this reduces most, until the budget is spent.
    """
    dim = len(energies)
    blocks = [slice(start, min(start + block, dim)) for start in range(0, dim, block)]
    gain = -np.diff(gaussian_errors())
    sums = [energies[each].sum() for each in blocks]
    given = [0] * len(blocks)
    left = int(bits * dim)
    while True:
        gains = [
            total * gain[n] if n < MAX_BITS and each.stop - each.start <= left else 0.0
            for each, total, n in zip(blocks, sums, given, strict=True)
        ]
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            break
        given[best] += 1
        left -= blocks[best].stop - blocks[best].start
    widths = np.zeros(dim, np.uint8)
    for each, n in zip(blocks, given, strict=True):
        widths[each] = n
    return np.sort(widths)[::-1]


@cache
def gaussian_levels() -> np.ndarray:
    """Return Lloyd's (1957) and Max's (1960) levels for a normal distribution, for 1 to 8 bits: ``(510,)`` float32."""
    return np.concatenate([_lloyd_max(bits) for bits in range(1, MAX_BITS + 1)]).astype(np.float32)


@cache
def gaussian_errors() -> np.ndarray:
    """Return the mean squared error of a standard normal number that is stored in 0 to 8 bits: ``(9,)``."""
    errors = [1.0]
    for bits in range(1, MAX_BITS + 1):
        levels = _lloyd_max(bits)
        mass, moment = _cells(levels)
        errors.append(1 + float((mass * levels**2 - 2 * moment * levels).sum()))
    return np.array(errors)


@cache
def _lloyd_max(bits: int) -> np.ndarray:
    count = 2**bits
    # Quantiles of the density to the power of a third: the levels approach these as the bits increase.
    levels = np.sqrt(3) * _normal_quantiles((np.arange(count) + 0.5) / count)
    # With many bits the start is close enough, and the iteration would converge slowly.
    for _ in range(2000 if bits < 6 else 200):
        mass, moment = _cells(levels)
        moved = moment / mass
        if np.abs(moved - levels).max() < 1e-7:
            break
        levels = moved
    return levels


def _cells(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mass and the first moment of a normal distribution in the cell of each level."""
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    # Computed from the nearer tail: there the mass is not the difference of two numbers near 1.
    tail = np.array([math.erfc(abs(edge) / math.sqrt(2)) / 2 for edge in edges])
    below = np.where(edges < 0, tail, 1 - tail)
    mass = np.where(edges[:-1] >= 0, tail[:-1] - tail[1:], below[1:] - below[:-1])
    density = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)
    return mass, density[:-1] - density[1:]


def _normal_quantiles(shares: np.ndarray) -> np.ndarray:
    return np.array([NormalDist().inv_cdf(share) for share in shares])
