"""What the payload record and a build ask of a codec, and what several codecs share."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ...errors import CorruptStoreError
from .calibration import Calibration

# Rows that are worked on together: 64 of width 1024 are 256 KiB, which stay in a core's cache from step to step.
_CHUNK_VALUES = 1 << 16


class Codec(Protocol):
    """Turns the memory of documents, ``(n_mem, dim)`` each, into the bodies of their payload records and back.

    A calibrated codec stores *latents*, from which an affine map that all documents share makes the memory
    (``inverse``). A connector whose first layer has taken that map in eats latents as they are.
    """

    @property
    def name(self) -> str:
        """What configurations call it."""
        ...

    @property
    def codec_id(self) -> int:
        """Its number in a payload's header, 0-255."""
        ...

    @property
    def fallback(self) -> str | None:
        """The codec of documents that this one refuses; None if it refuses none."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Arrays of a calibration, beside means and deviations, that it cannot decode without."""
        ...

    @property
    def fidelity(self) -> int:
        """Its place among the codecs: what is stored by one cannot get better in one of a higher number."""
        ...

    def sample_vectors(self, dim: int) -> int:
        """Vectors of that width that a calibration should see; 0 for a codec that has none."""
        ...

    def calibrate(self, sample: np.ndarray) -> Calibration | None:
        """Fit what it needs to know of a corpus, from a sample ``(n, dim)`` float32 of its memory, n at least 1."""
        ...

    def encode(
        self, values: np.ndarray, lengths: Sequence[int], calibration: Calibration | None
    ) -> Sequence[bytes | None]:
        """Encode the memory of k documents.

        Args:
            values: all memory in order, ``(Σ n_mem, dim)`` float32.
            lengths: memory tokens of each document, k.
            calibration: what ``calibrate`` made of the corpus.

        Returns:
            k bodies; None for a document that would lose more than this codec may.
        """
        ...

    def latents(
        self, bodies: Sequence[memoryview], n_mem: np.ndarray, dim: int, calibration: Calibration | None
    ) -> np.ndarray:
        """Decode the bodies of k documents as far as look-up and scales go.

        Args:
            bodies: as encode made them, k of them.
            n_mem: memory tokens of each, ``(k,)`` int64.
            dim: width of a memory embedding.
            calibration: the one that the bodies refer to.

        Returns:
            All latents in order, ``(Σ n_mem, m)`` float32; for a codec without ``inverse`` the memory itself.

        Raises:
            CorruptStoreError: a body does not fit its document.
        """
        ...

    def restore(self, latents: np.ndarray, calibration: Calibration | None) -> np.ndarray:
        """Make memory ``(n, dim)`` float32 of latents ``(n, m)`` float32, which may be overwritten."""
        ...

    def inverse(self, calibration: Calibration | None) -> tuple[np.ndarray, np.ndarray] | None:
        """What ``restore`` does, as a matrix ``(m, dim)`` and an offset ``(dim,)``: ``latents @ matrix + offset``.

        None if latents are the memory itself.
        """
        ...


def join(bodies: Sequence[memoryview], n_mem: np.ndarray, dim: int, sizes: np.ndarray) -> np.ndarray:
    """The bytes of k bodies one after the other, which must have the given sizes.

    Raises:
        CorruptStoreError: one has another size.
    """
    found = np.fromiter(map(len, bodies), dtype=np.int64, count=len(bodies))
    wrong = np.flatnonzero(found != sizes)
    if wrong.size:
        first = wrong[0]
        raise CorruptStoreError(
            f"a payload body of {found[first]} bytes cannot hold {n_mem[first]} memory tokens of width {dim}."
        )
    return np.frombuffer(b"".join(bodies), dtype=np.uint8)


def chunks(values: np.ndarray) -> list[slice]:
    """Slices of the rows of a matrix, each small enough for a core's cache."""
    rows = max(_CHUNK_VALUES // max(values.shape[1], 1), 1)
    return [slice(start, start + rows) for start in range(0, len(values), rows)]


def error_of_documents(error_of_rows: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Mean error of each document ``(k,)`` from those of its vectors ``(Σ n_mem,)``; 0 for one without any."""
    counts = np.asarray(lengths, dtype=np.int64)
    errors = np.zeros(len(counts))
    some = counts > 0
    if some.any():
        begins = np.cumsum(counts) - counts
        errors[some] = np.add.reduceat(error_of_rows.astype(np.float64), begins[some]) / counts[some]
    return errors
