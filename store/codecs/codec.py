"""The interface of codecs, and the functions that several codecs share."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol, Self

import numpy as np

from ...errors import CorruptStoreError
from .calibration import Calibration

# Values that are processed together: 64 vectors of width 1024 take 256 KiB, which stay in a core's cache between steps.
_CHUNK_VALUES = 1 << 16


class Bodies(NamedTuple):
    """The bodies of k payload records, which lie one after another.

    Attributes:
        joined: bytes of all bodies, uint8. Latents may share them.
        parts: bodies, each a view of those bytes.
    """

    joined: np.ndarray
    parts: Sequence[memoryview]

    @classmethod
    def of(cls, parts: Sequence[memoryview]) -> Self:
        """Return a copy of bodies that lie in different places."""
        joined = np.frombuffer(bytearray().join(parts), dtype=np.uint8)
        ends = accumulate(map(len, parts), initial=0)
        return cls(joined, [joined.data[start:end] for start, end in pairwise(ends)])


class Codec(Protocol):
    """Conversion of documents' memory, ``(n_mem, dim)`` each, to the bodies of their payload records and back.

    A calibrated codec stores *latents*. One affine map, the same for all documents, turns latents into memory
    (``inverse``). A connector whose first layer contains that map takes latents as its input.
    """

    @property
    def name(self) -> str:
        """Name of the codec in configurations."""
        ...

    @property
    def codec_id(self) -> int:
        """Number of the codec in the headers of payloads, 0-255."""
        ...

    @property
    def fallback(self) -> str | None:
        """Name of the codec for documents that this one refuses; None if it refuses none."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the arrays of a calibration, apart from ``mean`` and ``std``, that decoding requires."""
        ...

    @property
    def fidelity(self) -> int:
        """Rank of the codec by how much of the memory it keeps; recoding to a higher rank would restore nothing."""
        ...

    def sample_vectors(self, dim: int) -> int:
        """Return the number of vectors of a width that a calibration should be fitted to; 0 if the codec has none."""
        ...

    def calibrate(self, sample: np.ndarray, sensitivity: np.ndarray | None = None) -> Calibration | None:
        """Fit a calibration to a sample of a corpus's memory.

        Args:
            sample: memory ``(n, dim)`` float32; n is at least 1.
            sensitivity: Fisher matrix of a decoder, ``(dim, dim)``, in units of the memory. Only some codecs use it.
        """
        ...

    def encode(
        self, values: np.ndarray, lengths: Sequence[int], calibration: Calibration | None
    ) -> Sequence[bytes | None]:
        """Encode the memory of k documents.

        Args:
            values: memory of all documents in order, ``(Σ n_mem, dim)`` float32, or bits of bfloat16 as uint16.
            lengths: number of memory tokens of each document, k of them.
            calibration: the calibration that ``calibrate`` fitted to the corpus.

        Returns:
            k bodies; None for a document that would lose more than this codec allows.
        """
        ...

    def latents(self, bodies: Bodies, n_mem: np.ndarray, dim: int, calibration: Calibration | None) -> np.ndarray:
        """Decode the bodies of k documents to latents: everything but the affine map.

        Args:
            bodies: bodies that ``encode`` made, k of them.
            n_mem: number of memory tokens of each document, ``(k,)`` int64.
            dim: width of a memory embedding.
            calibration: the calibration that the bodies refer to.

        Returns:
            Latents of all documents in order, ``(Σ n_mem, m)`` float32. If there is no ``inverse``, the memory itself:
            float32, or the bits of bfloat16 as uint16.

        Raises:
            CorruptStoreError: the size of a body does not fit its document.
        """
        ...

    def restore(self, latents: np.ndarray, calibration: Calibration | None) -> np.ndarray:
        """Return the memory ``(n, dim)`` float32 for latents ``(n, m)``, which may be overwritten."""
        ...

    def inverse(self, calibration: Calibration | None) -> tuple[np.ndarray, np.ndarray] | None:
        """Return ``restore`` as a matrix ``(m, dim)`` and an offset ``(dim,)``: ``latents @ matrix + offset``.

        None if the latents are the memory itself.
        """
        ...


def require_sizes(bodies: Bodies, n_mem: np.ndarray, dim: int, sizes: np.ndarray) -> None:
    """Check that k bodies have the given sizes.

    Raises:
        CorruptStoreError: a body has another size.
    """
    found, expected = list(map(len, bodies.parts)), sizes.tolist()
    if found != expected:
        first = next(i for i, (size, right) in enumerate(zip(found, expected, strict=True)) if size != right)
        raise CorruptStoreError(
            f"a payload body of {found[first]} bytes cannot hold {n_mem[first]} memory tokens of width {dim}."
        )


def chunks(values: np.ndarray) -> list[slice]:
    """Return slices that cover the rows of a matrix, each small enough for a core's cache."""
    rows = max(_CHUNK_VALUES // max(values.shape[1], 1), 1)
    return [slice(start, start + rows) for start in range(0, len(values), rows)]


def error_of_documents(error_of_rows: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Return the mean error of each document ``(k,)``, given the errors of all vectors ``(Σ n_mem,)``.

    The error of a document without vectors is 0.
    """
    counts = np.asarray(lengths, dtype=np.int64)
    errors = np.zeros(len(counts))
    some = counts > 0
    if some.any():
        begins = np.cumsum(counts) - counts
        errors[some] = np.add.reduceat(error_of_rows.astype(np.float64), begins[some]) / counts[some]
    return errors
