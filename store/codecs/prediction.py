"""Predict what a codec costs and loses, by trying it on a sample of a corpus's memory before a build begins."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .calibration import Calibration, fit_channels
from .codec import Codec
from .payload import decode_batch, encode_batch
from .record import CODEC_OFFSET
from .registry import is_calibrated

# Measured with calibrated codecs: the divergence of the decoder was between these multiples of the normalised error, as
# long as that was below -12 dB.
_KL_OF_ERROR = (0.4, 0.9)
_KL_HOLDS_BELOW_DB = -12.0


@dataclass(frozen=True)
class Prediction:
    """The cost and the loss of a codec, measured on a sample.

    Attributes:
        codec: name of the codec.
        vectors: number of vectors in the sample.
        bits_per_value: size of the payloads per value, headers included.
        error_db: normalised error in decibels (each channel's squared error over its variance, averaged over the
            channels); None if there is no error at all, or if the sample is too small to tell.
        lossy: True if the codec loses something of memory that was computed in bfloat16.
        kl: estimated divergence of the decoder's next-token distribution in nats, as lowest and highest value; None if
            the error gives no basis for an estimate.
        fallbacks: share of the sample's documents that fell back to a codec that keeps more.
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
    """Encode and decode a sample, and measure what that costs and loses.

    Args:
        codec: the codec to try.
        values: memory of the sample's documents, ``(Σ n_mem, dim)``.
        lengths: number of memory tokens of each document.
        calibration: the codec's calibration.
        is_enough: False if the sample is too small for its calibration to suit other documents; no error is given then.
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
    """Return the normalised error of decoded memory in decibels; None if there is no error.

    The error is each channel's squared error over its variance, averaged over the channels. Both arrays are
    ``(n, dim)``. Vectors with NaN or infinity are ignored.
    """
    finite = np.isfinite(values).all(axis=1)
    std = fit_channels(values).std
    error = (
        float(np.mean(np.square((values[finite] - decoded[finite]) / std), dtype=np.float64)) if finite.any() else 0.0
    )
    return 10 * math.log10(error) if error > 0 else None
