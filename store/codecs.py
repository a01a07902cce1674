"""How memory is stored as bytes: a small registry of codecs, each with a name and a number that never change.

A codec turns the memory of one document, ``(n_mem, dim)`` float32, into the body of its payload record and back. To
add one, write a class with the methods of `Codec` and list an instance in CODECS under an id that was never used.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..errors import CorruptStoreError, StoreError


class Codec(Protocol):
    """What the payload record asks of a codec."""

    @property
    def name(self) -> str:
        """What configurations call it."""
        ...

    @property
    def codec_id(self) -> int:
        """Its number in a payload's header, 0-255."""
        ...

    @property
    def bits_per_value(self) -> float:
        """Size of a stored value, on average, for estimates."""
        ...

    def encode_body(self, values: np.ndarray) -> bytes:
        """Encode memory ``(n_mem, dim)`` float32."""
        ...

    def decode_bodies(self, bodies: Sequence[memoryview], n_mem: np.ndarray, dim: int) -> np.ndarray:
        """Decode the bodies of k documents.

        Args:
            bodies: as encode_body made them, k of them.
            n_mem: memory tokens of each, ``(k,)`` int64.
            dim: width of a memory embedding.

        Returns:
            All memory in order, ``(Σ n_mem, dim)`` float32.

        Raises:
            CorruptStoreError: a body does not fit its document.
        """
        ...


class Bf16:
    """The upper half of each float32: exact for memory computed in bfloat16, else rounded to nearest, ties to even."""

    name = "bf16"
    codec_id = 1
    bits_per_value = 16.0

    def encode_body(self, values: np.ndarray) -> bytes:
        """Encode memory ``(n_mem, dim)`` float32; NaN stays NaN."""
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        upper = bits >> 16
        rounded = (bits + (0x7FFF + (upper & 1))) >> 16
        # Rounding could carry a NaN into infinity or zero; its quiet bit keeps it one.
        return np.where(np.isnan(values), upper | 0x40, rounded).astype("<u2").tobytes()

    def decode_bodies(self, bodies: Sequence[memoryview], n_mem: np.ndarray, dim: int) -> np.ndarray:
        """Decode the bodies of k documents into ``(Σ n_mem, dim)`` float32."""
        bits = _joined(bodies, n_mem, dim, np.dtype("<u2")).astype(np.uint32)
        # In place: a second array of this size costs several times the shift.
        np.left_shift(bits, 16, out=bits)
        return bits.view(np.float32)


class Fp32:
    """The float32 values themselves."""

    name = "fp32"
    codec_id = 2
    bits_per_value = 32.0

    def encode_body(self, values: np.ndarray) -> bytes:
        """Encode memory ``(n_mem, dim)`` float32."""
        return values.astype("<f4").tobytes()

    def decode_bodies(self, bodies: Sequence[memoryview], n_mem: np.ndarray, dim: int) -> np.ndarray:
        """Decode the bodies of k documents into ``(Σ n_mem, dim)`` float32."""
        return _joined(bodies, n_mem, dim, np.dtype("<f4")).astype(np.float32)


CODECS: tuple[Codec, ...] = (Bf16(), Fp32())

_BY_NAME = {codec.name: codec for codec in CODECS}
_BY_ID = {codec.codec_id: codec for codec in CODECS}


def codec_by_name(name: str) -> Codec:
    """The codec that configurations call ``name``.

    Raises:
        StoreError: this version has no such codec.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise StoreError(f"no codec is called {name!r}; there are {', '.join(_BY_NAME)}.") from None


def codec_by_id(codec_id: int) -> Codec:
    """The codec that payloads name by number.

    Raises:
        CorruptStoreError: this version has no such codec.
    """
    try:
        return _BY_ID[codec_id]
    except KeyError:
        raise CorruptStoreError(
            f"a payload names codec {codec_id}, which this version does not know; it knows "
            f"{', '.join(f'{codec.codec_id} ({codec.name})' for codec in CODECS)}."
        ) from None


def _joined(bodies: Sequence[memoryview], n_mem: np.ndarray, dim: int, dtype: np.dtype) -> np.ndarray:
    sizes = np.fromiter(map(len, bodies), dtype=np.int64, count=len(bodies))
    wrong = np.flatnonzero(sizes != n_mem * dim * dtype.itemsize)
    if wrong.size:
        first = wrong[0]
        raise CorruptStoreError(
            f"a payload body of {sizes[first]} bytes cannot hold {n_mem[first]} memory tokens of width {dim}."
        )
    return np.frombuffer(b"".join(bodies), dtype=dtype).reshape(-1, dim)
