"""Fit a codec to a sample of memory, and predict what it costs and loses by trying it on the sample."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ...errors import SUMMARY_CHARACTERS, CheckpointError, PromptError, error_summary
from .calibration import Calibration, fit_channels
from .codec import Codec
from .payload import decode_batch, encode_batch
from .record import CODEC_OFFSET
from .registry import is_calibrated, uses_sensitivity

SENSITIVITY_DOCUMENTS = 256
"""Largest number of documents that a decoder reads for its sensitivity."""

KL_DOCUMENTS = 64
"""Largest number of documents that a decoder reads to measure a codec's KL divergence."""


@dataclass(frozen=True, eq=False)
class MemorySample:
    """Memory of some documents, with their texts.

    Attributes:
        values: memory of all documents in order, ``(Σ n_mem, dim)`` float32.
        lengths: number of memory tokens of each document.
        texts: text that each document's memory was made from; empty where it is not known.
    """

    values: np.ndarray
    lengths: list[int]
    texts: list[str]

    def spread(self, documents: int) -> "MemorySample":
        """Return a sample of at most this many documents, spread evenly over this one."""
        if documents >= len(self.lengths):
            return self
        ends = np.cumsum(self.lengths)
        chosen = np.linspace(0, len(ends) - 1, documents).round().astype(int).tolist()
        parts = [self.values[ends[place] - self.lengths[place] : ends[place]] for place in chosen]
        lengths, texts = ([each[place] for place in chosen] for each in (self.lengths, self.texts))
        return MemorySample(np.concatenate(parts), lengths, texts)


class MeasuredDivergence(Protocol):
    """Comparison of a decoder's predictions from decoded memory with its predictions from the exact memory."""

    @property
    def kl(self) -> float:
        """KL divergence of the next token's distribution in nats per token, the mean over the documents."""
        ...

    @property
    def kl_worst(self) -> float:
        """The largest KL divergence of a document."""
        ...

    @property
    def top1_kept(self) -> float:
        """Share of the tokens at which the most probable token stays the same."""
        ...

    @property
    def delta_nll(self) -> float:
        """Change of the text's negative log-likelihood, in nats per token."""
        ...

    @property
    def documents(self) -> int:
        """Number of documents that were read."""
        ...


class MemoryReader(Protocol):
    """A decoder that reads the documents of a sample, wherever it runs."""

    def sensitivity(self, sample: MemorySample) -> np.ndarray:
        """Return the Fisher matrix of memory ``(dim, dim)`` float64, in units of the stored memory."""
        ...

    def divergence(self, sample: MemorySample, decoded: np.ndarray) -> MeasuredDivergence:
        """Compare decoded memory ``(Σ n_mem, dim)`` with the sample's own."""
        ...


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
        kl: measured KL divergence of the decoder's next-token distribution in nats per token, the mean over documents
            of the sample; None if it was not measured.
        fallbacks: share of the sample's documents that fell back to a codec that keeps more.
        kl_worst: the largest KL divergence of one of these documents; None if it was not measured.
        top1_kept: share of tokens at which the decoder's most probable next token stays the same; None likewise.
        delta_nll: change of the negative log-likelihood of the documents' text, in nats per token; None likewise.
        kl_documents: number of documents that the decoder read.
        kl_missing: reason for which no KL divergence was measured.
        fitted_to_decoder: True if the codec was fitted to the decoder's sensitivity, False if it should have been; None
            if the codec needs no decoder.
    """

    codec: str
    vectors: int
    bits_per_value: float
    error_db: float | None
    lossy: bool
    kl: float | None
    fallbacks: float
    kl_worst: float | None = None
    top1_kept: float | None = None
    delta_nll: float | None = None
    kl_documents: int = 0
    kl_missing: str = ""
    fitted_to_decoder: bool | None = None


def fit(
    codec: Codec, sample: MemorySample, reader: MemoryReader | None, *, missing: str = "", is_enough: bool = True
) -> tuple[Calibration | None, Prediction]:
    """Fit a codec to a sample, and measure on it what the codec costs and loses.

    Args:
        codec: the codec.
        sample: memory of at least one vector.
        reader: the decoder that reads the sample; None if there is none.
        missing: reason for which there is no reader.
        is_enough: False if the sample is too small for its calibration to suit other documents. Nothing is read then.

    Raises:
        Exception: the decoder fails while its sensitivity is computed, other than by not being there.
    """
    matrix = None
    if not is_enough:
        reader, missing = None, "the sample is too small"
    if reader is not None and uses_sensitivity(codec) and sample.lengths:
        try:
            matrix = reader.sensitivity(sample.spread(SENSITIVITY_DOCUMENTS))
        except (CheckpointError, PromptError) as error:
            reader, missing = None, str(error)
    calibration = codec.calibrate(sample.values, sensitivity=matrix)
    found = predict(codec, sample.values, sample.lengths, calibration, is_enough=is_enough)
    if not is_calibrated(codec):
        return calibration, found
    found = replace(found, fitted_to_decoder=matrix is not None if uses_sensitivity(codec) else None)
    if reader is None or not sample.lengths:
        return calibration, replace(found, kl_missing=missing)
    assert calibration is not None
    read = sample.spread(KL_DOCUMENTS)
    payloads = encode_batch([""] * len(read.lengths), read.values, read.lengths, codec, calibration)
    decoded = decode_batch(payloads, None, lambda _: calibration)[0]
    try:
        measured = reader.divergence(read, decoded)
    except Exception as error:  # noqa: BLE001  the decoder may fail in any way, and nothing depends on the figure
        return calibration, replace(found, kl_missing=error_summary(error, SUMMARY_CHARACTERS))
    return calibration, replace(
        found,
        kl=measured.kl,
        kl_worst=measured.kl_worst,
        top1_kept=measured.top1_kept,
        delta_nll=measured.delta_nll,
        kl_documents=measured.documents,
    )


def predict(
    codec: Codec,
    values: np.ndarray,
    lengths: Sequence[int],
    calibration: Calibration | None,
    *,
    is_enough: bool = True,
) -> Prediction:
    """Encode and decode a sample, and measure what that costs and loses, without a decoder.

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
    others = sum(payload[CODEC_OFFSET] != codec.codec_id for payload in payloads)
    return Prediction(
        codec=codec.name,
        vectors=len(values),
        bits_per_value=sum(map(len, payloads)) * 8 / max(values.size, 1),
        error_db=error,
        lossy=is_calibrated(codec),
        kl=None,
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
