"""The codecs that weigh errors by what a decoder notices: a Karhunen-Loève transform in the decoder's metric.

A body has the reference of its calibration (u32), then a scale for each vector (fp16), then a row of packed numbers for
each vector with a positive scale or 0, then a row of 8 bits per number for each vector with a negative scale.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .calibration import REFERENCE_BYTES, Calibration, spend
from .codec import Bodies, chunks, error_of_documents, require_sizes
from .metric import fit_metric
from .quantised import CHANNEL_VECTORS, SCALE, Quantised, numbers_bytes, pack_numbers, unpack_numbers
from .rotation import rotate, rotate_back

# Bits of a number of a vector that is out of range.
_FAR_BITS = 8
# Largest share of a sample's vectors that may be out of range: each takes 2 to 4 times as many bytes as the others.
_MOST_FAR = 0.03
# Number of neighbouring numbers that have the same width.
_BLOCK = 16
# Number of vectors of a sample that are tried to find out which are out of range.
_TRIED_VECTORS = 8192


class Fisher(Quantised):
    """Codec that stores normalised memory in the basis of a Karhunen-Loève transform in the metric of a decoder.

    Numbers that vary more, and that the decoder is more sensitive to, get more bits. A vector that would have a large
    error nonetheless is *far*: it takes 8 bits per number. Some vectors are far from all others in a direction that the
    decoder is sensitive to, and one of them can do more harm than all the others together.

    Args:
        codec_id: number of the codec.
        bits: number of bits per value, on average.
        bound: largest error of a document, in the metric and over dim, that the codec accepts.
        fidelity: rank of the codec by how much of the memory it keeps.
    """

    fallback: str | None = "int8"
    needs: tuple[str, ...] = ("transform", "widths", "levels", "energies")

    def __init__(self, codec_id: int, bits: int, bound: float, fidelity: int):
        self.name = f"fisher{bits}"
        self.codec_id = codec_id
        self.bound = bound
        self.fidelity = fidelity
        self._bits = bits

    def sample_vectors(self, dim: int) -> int:
        """Return the sample size for a covariance that holds for other vectors too."""
        return max(16 * dim, CHANNEL_VECTORS)

    def calibrate(self, sample: np.ndarray, sensitivity: np.ndarray | None = None) -> Calibration:
        """Fit the channels, the transform, the widths of its numbers and the limit.

        A far vector costs bits that all other vectors could have. A bit more per value makes their errors 4 times
        smaller, so a vector should be far if that reduces its error by more than ``2 ln 2`` times the mean error for
        each additional bit per value. The far vectors' bits are taken from the others' widths, so that the sample takes
        the number of bits that the codec is named after.

        Raises:
            ValueError: the sensitivity has another shape, or values that are not finite.
        """
        fitted = fit_metric(sample, sensitivity)
        assert fitted.energies is not None
        tried = np.asarray(sample, np.float32)[:: max(len(sample) // _TRIED_VECTORS, 1)]
        block, share = max(min(_BLOCK, fitted.dim), 1), 0.0
        # The limit and the widths depend on each other; they change little after the second round.
        for _ in range(2):
            lost = share * (_FAR_BITS - self._bits) / (1 - share)
            # Rounded to whole blocks, or a few far vectors would cost all others a bit of a block.
            lost = round(lost * fitted.dim / block) * block / fitted.dim
            fitted = replace(fitted, widths=spend(fitted.energies, self._bits - lost, block))
            _, _, errors = self._quantised(tried, fitted)
            limit = self._limit(errors[np.isfinite(errors)])
            share = np.count_nonzero(errors > limit) / max(len(errors), 1)
        return replace(fitted, limit=np.array([limit], np.float32))

    def encode(
        self, values: np.ndarray, lengths: Sequence[int], calibration: Calibration | None
    ) -> Sequence[bytes | None]:
        """Encode the memory of k documents, as `Codec.encode` says."""
        assert calibration is not None
        assert calibration.limit is not None
        scales, rows, errors = self._quantised(values, calibration)
        is_far = errors > calibration.limit[0]
        far_rows = np.zeros((0, values.shape[1]), np.int8)
        if is_far.any():
            far_scales, far_rows, far_errors = _quantised_far(values[is_far], calibration)
            is_better = far_errors < errors[is_far]
            is_far[is_far] = is_better
            far_rows = far_rows[is_better]
            scales[is_far], errors[is_far] = -far_scales[is_better], far_errors[is_better]
            rows = rows[~is_far]
        reference = calibration.reference.to_bytes(REFERENCE_BYTES, "little")
        ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
        far_ends = np.append(0, np.cumsum(is_far))[ends]
        taken = error_of_documents(errors, lengths) <= self.bound
        bodies: list[bytes | None] = []
        start = far_start = 0
        for end, far_end, is_taken in zip(ends.tolist(), far_ends.tolist(), taken.tolist(), strict=True):
            near = rows[start - far_start : end - far_end].tobytes()
            body = reference + scales[start:end].tobytes() + near + far_rows[far_start:far_end].tobytes()
            bodies.append(body if is_taken else None)
            start, far_start = end, far_end
        return bodies

    def latents(self, bodies: Bodies, n_mem: np.ndarray, dim: int, calibration: Calibration | None) -> np.ndarray:
        """Decode the bodies of k documents to coefficients of the transform ``(Σ n_mem, dim)``."""
        assert calibration is not None
        assert calibration.energies is not None
        row_bytes = self._row_bytes(dim, calibration)
        begins = REFERENCE_BYTES + n_mem * SCALE.itemsize
        parts = list(zip(bodies.parts, begins.tolist(), strict=True))
        heads = b"".join([body[REFERENCE_BYTES:begin] for body, begin in parts])
        if len(heads) != n_mem.sum() * SCALE.itemsize:
            # A body is too short for its scales.
            require_sizes(bodies, n_mem, dim, begins + n_mem * row_bytes)
        scales = np.frombuffer(heads, SCALE)
        is_far = scales < 0
        far = np.diff(np.append(0, np.cumsum(is_far))[np.append(0, np.cumsum(n_mem))])
        middles = begins + (n_mem - far) * row_bytes
        require_sizes(bodies, n_mem, dim, middles + far * dim)
        middle_of = middles.tolist()
        near = b"".join([body[begin:middle] for (body, begin), middle in zip(parts, middle_of, strict=True)])
        rows = np.frombuffer(near, np.uint8).reshape(int((n_mem - far).sum()), row_bytes)
        scales = scales.astype(np.float32)[:, None]
        if not is_far.any():
            return unpack_numbers(rows, scales, calibration)
        # Packed rows are moved to their places because they are much smaller than numbers.
        spread = np.zeros((len(scales), row_bytes), np.uint8)
        spread[~is_far] = rows
        latents = unpack_numbers(spread, scales, calibration)
        tails = b"".join([body[middle:] for body, middle in zip(bodies.parts, middle_of, strict=True)])
        rotated = np.frombuffer(tails, np.int8).reshape(-1, dim) * -scales[is_far]
        latents[is_far] = rotate_back(rotated, _no_signs(dim)) / np.sqrt(calibration.energies)
        return latents

    def restore(self, latents: np.ndarray, calibration: Calibration | None) -> np.ndarray:
        """Apply the transform to latents ``(n, dim)``, and undo the normalisation."""
        assert calibration is not None
        assert calibration.transform is not None
        assert calibration.widths is not None
        kept = np.count_nonzero(calibration.widths)
        normalised = latents[:, :kept] @ calibration.transform[:kept]
        # Only far vectors have numbers of 0 bits.
        is_far = latents[:, kept:].any(axis=1)
        if is_far.any():
            normalised[is_far] += latents[is_far, kept:] @ calibration.transform[kept:]
        return calibration.denormalise(normalised)

    def inverse(self, calibration: Calibration | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the transform times the standard deviations, and the means."""
        assert calibration is not None
        assert calibration.transform is not None
        return calibration.transform * calibration.std, calibration.mean

    def _row_bytes(self, dim: int, calibration: Calibration) -> int:  # noqa: ARG002
        return numbers_bytes(calibration)

    def _limit(self, errors: np.ndarray) -> float:
        """Return the largest error of a vector that is not far, given the errors of a sample's vectors ``(n,)``."""
        if not len(errors):
            return 0.0
        lowest = float(np.quantile(errors, 1 - _MOST_FAR))
        limit = np.inf
        # The mean error is that of the vectors that are not far. Each round lowers the limit, or changes nothing.
        for _ in range(4):
            mean = float(errors[errors <= limit].mean())
            limit = max(2 * np.log(2) * (_FAR_BITS - self._bits) * mean, lowest)
        return limit

    def _quantised(self, values: np.ndarray, calibration: Calibration) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Quantise vectors that are not far.

        Returns:
            Scales ``(n,)`` fp16, packed rows ``(n, bytes)`` uint8, and errors in the metric, divided by dim, ``(n,)``.
        """
        assert calibration.energies is not None
        assert calibration.widths is not None
        dim, kept = calibration.dim, np.count_nonzero(calibration.widths)
        energies = calibration.energies
        rows = np.empty((len(values), self._row_bytes(dim, calibration)), np.uint8)
        scales = np.empty(len(values), SCALE)
        errors = np.empty(len(values))
        with np.errstate(all="ignore"):
            for part in chunks(values):
                numbers = calibration.normalise(values[part]) @ calibration.analysis
                energy = np.square(numbers) @ energies
                numbers = numbers[:, :kept]
                root = np.sqrt(np.square(numbers).mean(axis=1)) if kept else np.zeros(len(numbers))
                scaled = numbers * np.where(root > 0, 1 / root, 0)[:, None]
                taken = pack_numbers(scaled, calibration, rows[part])
                weighted = taken * energies[:kept]
                both = np.einsum("ij,ij->i", numbers, weighted)
                norm = np.einsum("ij,ij->i", taken, weighted)
                # The scale with the smallest error in the metric. A negative one would mean that the vector is far.
                scales[part] = np.where(norm > 0, np.maximum(both / norm, 0), 0)
                scale = scales[part].astype(np.float64)
                errors[part] = (energy - 2 * scale * both + scale**2 * norm) / dim
        return scales, rows, errors


def _quantised_far(values: np.ndarray, calibration: Calibration) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantise far vectors: return scales ``(n,)`` fp16, rows ``(n, dim)`` int8, and errors as ``_quantised`` does.

    Their numbers are rotated in the metric. That spreads a large number over all, so that the error depends only on the
    vector's length.
    """
    assert calibration.energies is not None
    with np.errstate(all="ignore"):
        numbers = calibration.normalise(values) @ calibration.analysis
        rotated = rotate(numbers * np.sqrt(calibration.energies), _no_signs(calibration.dim))
        peaks = np.abs(rotated).max(axis=1)
        # Rounded up to the next fp16, so that no number exceeds 127.
        scales = np.nextafter((peaks / 127).astype(SCALE), SCALE.type(np.inf))
        rotated *= (1 / scales.astype(np.float32))[:, None]
        # Rounding to steps of s has the mean squared error s²/12.
        return scales, np.rint(rotated).astype(np.int8), scales.astype(np.float64) ** 2 / 12


def _no_signs(dim: int) -> np.ndarray:
    return np.ones(dim, np.float32)
