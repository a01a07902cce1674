"""Codecs, which turn memory into bytes.

A codec has a name, which configurations use, and a number, which payloads carry; neither ever changes. To add a codec,
write a class with the methods of `Codec`, list an instance of it in `registry.CODECS` under a number that was never
used, and add its name to `configs.names.CodecName`.
"""

from .codec import Codec
from .registry import CODECS, codec_by_id, codec_by_name, is_calibrated, uses_sensitivity

__all__ = ["CODECS", "Codec", "codec_by_id", "codec_by_name", "is_calibrated", "uses_sensitivity"]
