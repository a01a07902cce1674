"""Codecs that keep memory as it is: float32, and bfloat16 with and without entropy coding."""

from collections.abc import Sequence

import numpy as np
import zstandard

from ...errors import CorruptStoreError
from .calibration import Calibration
from .codec import chunks, join

# No matches but for long repeats: what is left is zstd's Huffman coder, which is all that exponents gain from.
_ZSTD = zstandard.ZstdCompressionParameters.from_level(
    1, min_match=7, hash_log=6, write_content_size=True, write_checksum=False
)


class _Exact:
    """What codecs without calibration share: they refuse nothing, and their latents are the memory."""

    fallback: str | None = None
    needs: tuple[str, ...] = ()

    def sample_vectors(self, dim: int) -> int:  # noqa: ARG002
        """None."""
        return 0

    def calibrate(self, sample: np.ndarray) -> None:
        """Nothing to fit."""

    def restore(self, latents: np.ndarray, calibration: Calibration | None) -> np.ndarray:  # noqa: ARG002
        """The latents are the memory."""
        return latents

    def inverse(self, calibration: Calibration | None) -> None:
        """The latents are the memory."""


class Fp32(_Exact):
    """The float32 values themselves."""

    name = "fp32"
    codec_id = 2
    fidelity = 5

    def encode(
        self,
        values: np.ndarray,
        lengths: Sequence[int],
        calibration: Calibration | None,  # noqa: ARG002
    ) -> Sequence[bytes | None]:
        """Encode the memory of k documents."""
        return _split(values.astype("<f4", copy=False), lengths)

    def latents(
        self,
        bodies: Sequence[memoryview],
        n_mem: np.ndarray,
        dim: int,
        calibration: Calibration | None,  # noqa: ARG002
    ) -> np.ndarray:
        """Decode the bodies of k documents into ``(Σ n_mem, dim)`` float32."""
        joined = join(bodies, n_mem, dim, n_mem * dim * 4)
        return joined.view("<f4").astype(np.float32).reshape(-1, dim)


class Bf16(_Exact):
    """The upper half of each float32: exact for memory computed in bfloat16, else rounded to nearest, ties to even."""

    name = "bf16"
    codec_id = 1
    fidelity = 4

    def encode(
        self,
        values: np.ndarray,
        lengths: Sequence[int],
        calibration: Calibration | None,  # noqa: ARG002
    ) -> Sequence[bytes | None]:
        """Encode the memory of k documents; NaN stays NaN."""
        return _split(to_bf16(values), lengths)

    def latents(
        self,
        bodies: Sequence[memoryview],
        n_mem: np.ndarray,
        dim: int,
        calibration: Calibration | None,  # noqa: ARG002
    ) -> np.ndarray:
        """Decode the bodies of k documents into ``(Σ n_mem, dim)`` float32."""
        bits = join(bodies, n_mem, dim, n_mem * dim * 2).view("<u2").astype(np.uint32)
        # In place: a second array of this size costs several times the shift.
        np.left_shift(bits, 16, out=bits)
        return bits.view(np.float32).reshape(-1, dim)


class Bf16z(_Exact):
    """The values of ``bf16``: sign and mantissa as they are, the exponents in one zstd frame a document.

    Mantissas are as good as random; exponents of a corpus are few, and Huffman coding takes them to about 3 bits.
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
        """Encode the memory of k documents."""
        halves = to_bf16(values)
        exponents, rest = np.empty(halves.shape, np.uint8), np.empty(halves.shape, np.uint8)
        for part in chunks(halves):
            bits = halves[part]
            exponents[part] = (bits >> 7).astype(np.uint8)
            rest[part] = bits & 0x7F | (bits >> 8) & 0x80
        # Made here, since threads may not share one.
        compressor = zstandard.ZstdCompressor(compression_params=_ZSTD)
        plain, packed = _split(rest, lengths), _split(exponents, lengths)
        return [each + compressor.compress(frame) for each, frame in zip(plain, packed, strict=True)]

    def latents(
        self,
        bodies: Sequence[memoryview],
        n_mem: np.ndarray,
        dim: int,
        calibration: Calibration | None,  # noqa: ARG002
    ) -> np.ndarray:
        """Decode the bodies of k documents into ``(Σ n_mem, dim)`` float32."""
        sizes = (n_mem * dim).tolist()
        rest = join([body[:size] for body, size in zip(bodies, sizes, strict=True)], n_mem, dim, n_mem * dim)
        decompressor = zstandard.ZstdDecompressor()
        frames = []
        for body, size in zip(bodies, sizes, strict=True):
            frame = body[size:]
            try:
                if zstandard.frame_content_size(frame) != size:
                    raise CorruptStoreError(f"a payload's exponents are not the {size} that its header says.")
                frames.append(decompressor.decompress(frame))
            except zstandard.ZstdError as error:
                raise CorruptStoreError(f"a payload's exponents cannot be decompressed: {error}.") from None
        exponents = np.frombuffer(b"".join(frames), dtype=np.uint8).reshape(-1, dim)
        rest = rest.reshape(-1, dim)
        decoded = np.empty(rest.shape, np.uint32)
        for part in chunks(rest):
            halves = exponents[part].astype(np.uint16)
            halves <<= 7
            halves |= rest[part] & 0x7F
            halves |= (rest[part] & 0x80).astype(np.uint16) << 8
            decoded[part] = halves
            decoded[part] <<= 16
        return decoded.view(np.float32)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """The upper halves, little-endian uint16, of float32 rounded to nearest, ties to even; NaN stays NaN."""
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
        # Rounding could carry a NaN into infinity or zero; its quiet bit keeps it one.
        halves[strange] = (every[strange] >> 16) | 0x40
    return halves


def _split(rows: np.ndarray, lengths: Sequence[int]) -> list[bytes]:
    """The bytes of each document's rows."""
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64)).tolist()
    return [rows[end - n : end].tobytes() for end, n in zip(ends, lengths, strict=True)]
