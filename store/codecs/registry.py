"""The codecs that exist, by name and by number."""

from ...errors import CorruptStoreError, StoreError
from .codec import Codec
from .exact import Bf16, Bf16z, Fp32
from .fisher import Fisher
from .quantised import Int4, Int8, Klt

# From the codec that keeps most to the one that keeps least, and then those that use the sensitivity of a decoder. The
# bounds are -9 and -6 dB of normalised error for klt3 and klt2, and -12, -9 and -6 dB in the metric for the codecs
# fisher4, fisher3 and fisher2. A document that would lose more is stored by the fallback codec.
CODECS: tuple[Codec, ...] = (
    Fp32(),
    Bf16(),
    Bf16z(),
    Int8(),
    Int4(),
    Klt(6, 3, 10**-0.9, 1),
    Klt(7, 2, 10**-0.6, 0),
    Fisher(8, 4, 10**-1.2, 2),
    Fisher(9, 3, 10**-0.9, 1),
    Fisher(10, 2, 10**-0.6, 0),
)

_BY_NAME = {codec.name: codec for codec in CODECS}
_BY_ID = {codec.codec_id: codec for codec in CODECS}


def codec_by_name(name: str) -> Codec:
    """Return the codec with a name.

    Raises:
        StoreError: there is no such codec.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise StoreError(f"no codec is called {name!r}. Choose one of {', '.join(_BY_NAME)}.") from None


def codec_by_id(codec_id: int) -> Codec:
    """Return the codec with the number that a payload carries.

    Raises:
        CorruptStoreError: there is no such codec.
    """
    try:
        return _BY_ID[codec_id]
    except KeyError:
        known = ", ".join(f"{codec.codec_id} ({codec.name})" for codec in CODECS)
        raise CorruptStoreError(
            f"a payload is in codec {codec_id}, which this version of pisco-index does not know. It knows {known}."
        ) from None


def is_calibrated(codec: Codec) -> bool:
    """Return True if a codec needs a calibration."""
    return codec.sample_vectors(1) > 0


def uses_sensitivity(codec: Codec) -> bool:
    """Return True if a codec's calibration should be fitted with the sensitivity of a decoder."""
    return isinstance(codec, Fisher)
