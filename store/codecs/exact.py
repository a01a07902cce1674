"""Codecs that store float numbers: float32, and bfloat16 with and without entropy coding."""

from collections.abc import Sequence

import numpy as np
import zstandard

from ...errors import CorruptStoreError
from .calibration import Calibration
from .codec import Bodies, chunks, require_sizes
from .floats import as_float32, from_bf16

# Settings that find only long repeats, which leaves little but zstd's Huffman coder: exponents gain from nothing else.
_ZSTD = zstandard.ZstdCompressionParameters.from_level(
    1, min_match=7, hash_log=6, write_content_size=True, write_checksum=False
)


class _Exact:
    """Base of the codecs without calibration: they refuse no document, and their latents are the memory."""

    fallback: str | None = None
    needs: tuple[str, ...] = ()

    def sample_vectors(self, dim: int) -> int:  # noqa: ARG002
        """Return 0: there is no calibration."""
        return 0

    def calibrate(self, sample: np.ndarray, sensitivity: np.ndarray | None = None) -> None:
        """Return None: there is no calibration."""

    def restore(self, latents: np.ndarray, calibration: Calibration | None) -> np.ndarray:  # noqa: ARG002
        """Return the latents, which are the memory, as new float32 numbers."""
        return latents.astype(np.float32) if latents.dtype != np.uint16 else from_bf16(latents)

    def inverse(self, calibration: Calibration | None) -> None:
        """Return None: the latents are the memory."""


class Fp32(_Exact):
    """Codec that stores float32 values unchanged."""

    name = "fp32"
    codec_id = 2
    fidelity = 5

    def encode(
        self,
        values: np.ndarray,
        lengths: Sequence[int],
        calibration: Calibration | None,  # noqa: ARG002
    ) -> Sequence[bytes | None]:
        """Encode the memory of k documents, as `Codec.encode` says."""
        return _split(as_float32(values).astype("<f4", copy=False), lengths)

    def latents(
        self,
        bodies: Bodies,
        n_mem: np.ndarray,
        dim: int,
        calibration: Calibration | None,  # noqa: ARG002
    ) -> np.ndarray:
        """Decode the bodies of k documents into ``(Σ n_mem, dim)`` float32."""
        require_sizes(bodies, n_mem, dim, n_mem * dim * 4)
        return bodies.joined.view("<f4").astype(np.float32, copy=False).reshape(-1, dim)


class Bf16(_Exact):
    """Codec that rounds values to bfloat16, which is exact for memory that was computed in bfloat16."""

    name = "bf16"
    codec_id = 1
    fidelity = 4

    def encode(
        self,
        values: np.ndarray,
        lengths: Sequence[int],
        calibration: Calibration | None,  # noqa: ARG002
    ) -> Sequence[bytes | None]:
        """Encode the memory of k documents, as `Codec.encode` says; NaN stays NaN."""
        return _split(to_bf16(values), lengths)

    def latents(
        self,
        bodies: Bodies,
        n_mem: np.ndarray,
        dim: int,
        calibration: Calibration | None,  # noqa: ARG002
    ) -> np.ndarray:
        """Decode the bodies of k documents into the bits of bfloat16, ``(Σ n_mem, dim)`` uint16."""
        require_sizes(bodies, n_mem, dim, n_mem * dim * 2)
        return bodies.joined.view("<u2").astype(np.uint16, copy=False).reshape(-1, dim)


class Bf16z(_Exact):
    """Codec that stores the values of ``bf16`` in less space: exponents go into a zstd frame.

    Signs and mantissas are stored as they are, because they are as good as random. A corpus has few different
    exponents, so Huffman coding needs about 3 bits for one.
    """

    name = "bf16z"
    codec_id = 3
    fidelity = 4

    def encode(
        self,
        values: np.ndarray,
        lengths: Sequence[int],
        calibration: Calibration | None,  # noqa: ARG002
    ) -> Sequence[bytes | None]:
        """Encode the memory of k documents, as `Codec.encode` says."""
        halves = to_bf16(values)
        exponents, rest = np.empty(halves.shape, np.uint8), np.empty(halves.shape, np.uint8)
        for part in chunks(halves):
            bits = halves[part]
            exponents[part] = (bits >> 7).astype(np.uint8)
            rest[part] = bits & 0x7F | (bits >> 8) & 0x80
        # Made here because threads must not share a compressor.
        compressor = zstandard.ZstdCompressor(compression_params=_ZSTD)
        plain, packed = _split(rest, lengths), _split(exponents, lengths)
        return [each + compressor.compress(frame) for each, frame in zip(plain, packed, strict=True)]

    def latents(
        self,
        bodies: Bodies,
        n_mem: np.ndarray,
        dim: int,
        calibration: Calibration | None,  # noqa: ARG002
    ) -> np.ndarray:
        """Decode the bodies of k documents into the bits of bfloat16, ``(Σ n_mem, dim)`` uint16."""
        sizes = (n_mem * dim).tolist()
        planes = Bodies.of([body[:size] for body, size in zip(bodies.parts, sizes, strict=True)])
        require_sizes(planes, n_mem, dim, n_mem * dim)
        decompressor = zstandard.ZstdDecompressor()
        frames = []
        for body, size in zip(bodies.parts, sizes, strict=True):
            frame = body[size:]
            try:
                if zstandard.frame_content_size(frame) != size:
                    raise CorruptStoreError(f"a payload does not hold the {size} exponents that its header says.")
                frames.append(decompressor.decompress(frame))
            except zstandard.ZstdError as error:
                raise CorruptStoreError(f"a payload's exponents cannot be decompressed: {error}.") from None
        exponents = np.frombuffer(b"".join(frames), dtype=np.uint8).reshape(-1, dim)
        rest = planes.joined.reshape(-1, dim)
        decoded = np.empty(rest.shape, np.uint16)
        for part in chunks(rest):
            halves = exponents[part].astype(np.uint16)
            halves <<= 7
            halves |= rest[part] & 0x7F
            halves |= (rest[part] & 0x80).astype(np.uint16) << 8
            decoded[part] = halves
        return decoded


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, ties to even, and return the bits as little-endian uint16; NaN stays NaN.

    Bits of bfloat16 are returned as they are.
    """
    if values.dtype == np.uint16:
        return values.astype("<u2", copy=False)
    every = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    halves = np.empty(every.shape, "<u2")
    for part in chunks(every):
        bits = every[part]
        rounded = bits >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        halves[part] = rounded
    if (strange := np.isnan(values)).any():
        # Rounding could carry a NaN into infinity or zero; with the quiet bit set it stays NaN.
        halves[strange] = (every[strange] >> 16) | 0x40
    return halves


def _split(rows: np.ndarray, lengths: Sequence[int]) -> list[bytes]:
    """Return the bytes of each document's rows."""
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64)).tolist()
    return [rows[end - n : end].tobytes() for end, n in zip(ends, lengths, strict=True)]
