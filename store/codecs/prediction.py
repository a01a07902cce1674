"""What a codec will make of a corpus: tried on a sample of its memory before a build begins."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import Codec, is_calibrated
from .calibration import Calibration, fit_channels
from .payload import CODEC_OFFSET, decode_batch, encode_batch

# The decoder's divergence was this much of the normalised error for calibrated codecs, while that was below -12 dB.
_KL_OF_ERROR = (0.4, 0.9)
_KL_HOLDS_BELOW_DB = -12.0


@dataclass(frozen=True)
class Prediction:
    """What a codec costs and loses.

    Attributes:
        codec: its name.
        vectors: of the sample that it was tried on.
        bits_per_value: of the payloads, headers included.
        error_db: normalised error (each channel's squared error over its variance, mean over all) in decibels; None for
            no error at all, or where the sample is too small to tell.
        lossy: whether the codec loses anything of memory that was computed in bfloat16.
        kl: estimate of the divergence of the decoder's distribution over the next token, in nats: lowest and highest;
            None where there is no ground for one.
        fallbacks: share of the sample's documents that are stored by a codec that keeps more.
    """

    codec: str
    vectors: int
    bits_per_value: float
    error_db: float | None
    lossy: bool
    kl: tuple[float, float] | None
    fallbacks: float


def predict(
    codec: Codec,
    values: np.ndarray,
    lengths: Sequence[int],
    calibration: Calibration | None,
    *,
    is_enough: bool = True,
) -> Prediction:
    """Encode and decode a sample.

    Args:
        codec: what to try.
        values: memory of the sample's documents, ``(Σ n_mem, dim)``.
        lengths: memory tokens of each document.
        calibration: of the codec.
        is_enough: whether a calibration fitted to this sample holds for others too; else no error is told.
    """
    values = np.asarray(values, np.float32)
    names = [""] * len(lengths)
    payloads = encode_batch(names, values, lengths, codec, calibration)
    error = None
    if is_calibrated(codec) and is_enough:
        assert calibration is not None
        decoded, _ = decode_batch(payloads, None, lambda _: calibration)
        error = normalised_error_db(values, decoded)
    kl = None
    if error is not None and error < _KL_HOLDS_BELOW_DB:
        kl = _KL_OF_ERROR[0] * 10 ** (error / 10), _KL_OF_ERROR[1] * 10 ** (error / 10)
    others = sum(payload[CODEC_OFFSET] != codec.codec_id for payload in payloads)
    return Prediction(
        codec=codec.name,
        vectors=len(values),
        bits_per_value=sum(map(len, payloads)) * 8 / max(values.size, 1),
        error_db=error,
        lossy=is_calibrated(codec),
        kl=kl,
        fallbacks=others / max(len(payloads), 1),
    )


def normalised_error_db(values: np.ndarray, decoded: np.ndarray) -> float | None:
    """Squared error of each channel over its variance, mean over all, in decibels; None for no error.

    Both are ``(n, dim)``; vectors that hold what is no number do not count.
    """
    finite = np.isfinite(values).all(axis=1)
    std = fit_channels(values).std
    error = (
        float(np.mean(np.square((values[finite] - decoded[finite]) / std), dtype=np.float64)) if finite.any() else 0.0
    )
    return 10 * math.log10(error) if error > 0 else None
