"""How memory is stored as bytes: a small registry of codecs, each with a name and a number that never change.

To add one, write a class with the methods of `Codec` and list an instance in CODECS under an id that was never used.
"""

from ...errors import CorruptStoreError, StoreError
from .codec import Codec
from .exact import Bf16, Bf16z, Fp32
from .quantised import REFERENCE_BYTES, Int4, Int8, Klt

__all__ = ["CODECS", "REFERENCE_BYTES", "Codec", "codec_by_id", "codec_by_name", "is_calibrated"]

# From the best to the smallest, as fp32 is for tests. Bounds: -9 and -6 dB.
CODECS: tuple[Codec, ...] = (
    Fp32(),
    Bf16(),
    Bf16z(),
    Int8(),
    Int4(),
    Klt(6, 3, 10**-0.9, 1),
    Klt(7, 2, 10**-0.6, 0),
)

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


def is_calibrated(codec: Codec) -> bool:
    """Whether a codec needs a calibration."""
    return codec.sample_vectors(1) > 0
