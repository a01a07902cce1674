"""What the calibrated codecs know of a corpus: fitted once to a sample of its memory, and kept in the store.

Plain error misleads where some channels are tens of times as large as others, as large language models have them: it
counts those and nothing else. Every calibrated codec therefore works on normalised memory, each channel less its mean
and divided by its standard deviation, and errors are counted there (`normalised error`, 1 being the channels' own
variance).
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

CALIBRATION_PREFIX = "calibration/"
"""Assets of this name, followed by the reference in 8 hexadecimal digits, are calibrations."""

# A channel that hardly moves must not make of its rounding a signal.
_STD_FLOOR = 0.01
MAX_BITS = 8


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a codec needs to know of a corpus.

    Attributes:
        mean: of each channel, ``(dim,)`` float32.
        std: of each channel, ``(dim,)`` float32, positive.
        signs: 1 or -1 for each channel, ``(dim,)`` int8: what makes the rotation of ``int4`` a random one.
        levels: values that a quantised number may stand for, float32: 2 for 1 bit, then 4 for 2 bits and so on, up to
            256 for 8 bits, each rising: ``(510,)``.
        transform: for each number that ``klt3`` and ``klt2`` store what it adds to the normalised vector,
            ``(m, dim)`` float32.
        widths: bits of each of these numbers, ``(m,)`` uint8, falling.
    """

    mean: np.ndarray
    std: np.ndarray
    signs: np.ndarray | None = None
    levels: np.ndarray | None = None
    transform: np.ndarray | None = None
    widths: np.ndarray | None = None

    @property
    def dim(self) -> int:
        """Width of the memory that it was fitted to."""
        return len(self.mean)

    @cached_property
    def reference(self) -> int:
        """What payloads call it: low 32 bits of XXH3-64 of its bytes."""
        return reference_of(self.to_bytes())

    @property
    def asset(self) -> str:
        """The name under which a store keeps it."""
        return asset_name(self.reference)

    @cached_property
    def per_std(self) -> np.ndarray:
        """One divided by ``std``."""
        return 1 / self.std

    @cached_property
    def analysis(self) -> np.ndarray:
        """What the transform's numbers are read from a normalised vector with: ``(dim, m)`` float32."""
        assert self.transform is not None
        energy = np.square(self.transform).sum(axis=1, keepdims=True)
        return np.ascontiguousarray((self.transform / energy).T)

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """Memory ``(n, dim)`` less the mean, divided by the standard deviation, as a new float32 array."""
        normalised = values - self.mean
        normalised *= self.per_std
        return normalised

    def denormalise(self, normalised: np.ndarray) -> np.ndarray:
        """The opposite, in place."""
        normalised *= self.std
        normalised += self.mean
        return normalised

    def levels_of(self, bits: int) -> np.ndarray:
        """The levels of numbers of so many bits, ``(2 ** bits,)`` float32."""
        assert self.levels is not None
        return self.levels[2**bits - 2 : 2 ** (bits + 1) - 2]

    def to_bytes(self) -> bytes:
        """The arrays as a safetensors file."""
        arrays = {name: value for name, value in self._arrays().items() if value is not None}
        return save({name: np.ascontiguousarray(value) for name, value in arrays.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what to_bytes wrote.

        Raises:
            CorruptStoreError: the arrays are not those of a calibration, or do not fit together.
        """
        try:
            arrays = load(data)
        # Of numbers that NumPy does not know it raises other errors.
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptStoreError(f"a calibration cannot be read: {error}.") from None
        dim = arrays["mean"].size if "mean" in arrays else 0
        count = arrays["widths"].size if "widths" in arrays else 0
        expected = {"mean": (dim,), "std": (dim,), "signs": (dim,), "levels": (2 ** (MAX_BITS + 1) - 2,)}
        expected |= {"transform": (count, dim), "widths": (count,)}
        shapes = {name: array.shape for name, array in arrays.items()}
        if {"mean", "std"} - shapes.keys() or any(shapes[name] != expected.get(name) for name in shapes):
            raise CorruptStoreError(f"a calibration has arrays of the shapes {shapes}, which do not fit together.")
        kinds = {"signs": np.int8, "widths": np.uint8}
        sound = all(
            array.dtype == kinds.get(name, np.float32) and np.isfinite(array).all() for name, array in arrays.items()
        )
        if not sound or (arrays["std"] <= 0).any() or not np.isin(arrays.get("widths", 1), np.arange(1, 9)).all():
            raise CorruptStoreError("a calibration has numbers that none can have.")
        return cls(**arrays)

    def _arrays(self) -> dict[str, np.ndarray | None]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def reference_of(data: bytes) -> int:
    """What payloads call the calibration of these bytes."""
    return xxhash.xxh3_64_intdigest(data) & 0xFFFFFFFF


def asset_name(reference: int) -> str:
    """The name under which a store keeps a calibration."""
    return f"{CALIBRATION_PREFIX}{reference:08x}"


def fit_channels(sample: np.ndarray) -> Calibration:
    """Mean and standard deviation of each channel of a sample ``(n, dim)``; values that are no numbers do not count.

    No standard deviation is less than a hundredth of the median one, so that channels that are (nearly) constant do no
    harm; where that is zero too, as with one vector, all are 1.
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
    """Channels, sign bits and levels: what ``int4`` needs."""
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), sample.shape[1])
    return replace(fit_channels(sample), signs=signs, levels=gaussian_levels())


def fit_transform(sample: np.ndarray, bits: int, block: int = 16) -> Calibration:
    """Channels, the Karhunen-Loève transform of a sample, and how many bits each of its numbers gets.

    Args:
        sample: memory ``(n, dim)``; 16 × dim vectors or more for a transform that holds for others too.
        bits: to spend on a value, on average.
        block: numbers that get the same width.
    """
    channels = fit_channels(sample)
    normalised = channels.normalise(np.asarray(sample, np.float32))
    normalised = normalised[np.isfinite(normalised).all(axis=1)]
    covariance = normalised.T @ normalised / max(len(normalised), 1)
    energies, vectors = np.linalg.eigh(covariance.astype(np.float64))
    # Falling; those that the sample cannot tell from nothing stand for nothing.
    energies, vectors = np.maximum(energies[::-1], 0), vectors[:, ::-1]
    widths = _spend(energies, bits, block)
    kept = (widths > 0) & (energies > energies[0] * 1e-9)
    transform = (vectors[:, kept] * np.sqrt(energies[kept])).T
    return replace(
        channels,
        levels=gaussian_levels(),
        transform=np.ascontiguousarray(transform, dtype=np.float32),
        widths=widths[kept],
    )


def _spend(energies: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Water-filling: bits go, one a number, to the block of numbers whose error that lessens most."""
    dim = len(energies)
    blocks = [slice(start, min(start + block, dim)) for start in range(0, dim, block)]
    gain = -np.diff(gaussian_errors())
    sums = [energies[each].sum() for each in blocks]
    given = [0] * len(blocks)
    left = bits * dim
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
    """The levels of Lloyd (1957) and Max (1960) for a normal distribution, for 1 to 8 bits: ``(510,)`` float32."""
    return np.concatenate([_lloyd_max(bits) for bits in range(1, MAX_BITS + 1)]).astype(np.float32)


@cache
def gaussian_errors() -> np.ndarray:
    """Mean squared error of a standard normal number in 0 to 8 bits: ``(9,)``."""
    errors = [1.0]
    for bits in range(1, MAX_BITS + 1):
        levels = _lloyd_max(bits)
        mass, moment = _cells(levels)
        errors.append(1 + float((mass * levels**2 - 2 * moment * levels).sum()))
    return np.array(errors)


@cache
def _lloyd_max(bits: int) -> np.ndarray:
    count = 2**bits
    # Quantiles of the density to the power of a third, which is where the levels lie for many bits.
    levels = np.sqrt(3) * _normal_quantiles((np.arange(count) + 0.5) / count)
    # For many bits they lie there closely enough, and would move slowly.
    for _ in range(2000 if bits < 6 else 200):
        mass, moment = _cells(levels)
        moved = moment / mass
        if np.abs(moved - levels).max() < 1e-7:
            break
        levels = moved
    return levels


def _cells(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mass and first moment of a normal distribution in the cell of each level."""
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    # From the nearer tail, where differences are exact.
    tail = np.array([math.erfc(abs(edge) / math.sqrt(2)) / 2 for edge in edges])
    below = np.where(edges < 0, tail, 1 - tail)
    mass = np.where(edges[:-1] >= 0, tail[:-1] - tail[1:], below[1:] - below[:-1])
    density = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)
    return mass, density[:-1] - density[1:]


def _normal_quantiles(shares: np.ndarray) -> np.ndarray:
    return np.array([NormalDist().inv_cdf(share) for share in shares])
