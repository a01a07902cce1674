"""gzip, bzip2 and zstd: recognised by their first bytes and decompressed in small pieces.

This is the one module outside ``store/`` that imports zstandard, because corpora come zstd-compressed too.
"""

import bz2
import re
import zlib
from collections.abc import Generator
from typing import Any, Literal

import zstandard

Compression = Literal["none", "gzip", "bz2", "zstd"]

MAGIC: dict[Compression, bytes] = {"gzip": b"\x1f\x8b", "bz2": b"BZh", "zstd": b"\x28\xb5\x2f\xfd"}

DECOMPRESSION_ERRORS = (zlib.error, OSError, EOFError, zstandard.ZstdError)
"""Errors that ``inflate`` raises for damaged bytes."""

MAX_BLOCK_BYTES = 1 << 20
"""Largest block of text that is handed on, so that memory stays bounded whatever a file decompresses to."""

_BZ2_BEGINNING = re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)")

# Bytes that zstd is given at once: it may return 32,000 times as many, where gzip returns a thousand times as many.
_ZSTD_PIECE = 1 << 10


def magic_compression(head: bytes) -> Compression:
    """Return the compression of a file by its first bytes."""
    # pzstd and seekable archives begin with a skippable zstd frame, which has one of 16 magic numbers of its own.
    if len(head) >= 4 and 0x50 <= head[0] <= 0x5F and head[1:4] == b"\x2a\x4d\x18":
        return "zstd"
    # The magic number of bzip2 is text. Behind it stands that of a block, or of the end of an empty file.
    if head.startswith(MAGIC["bz2"]) and not _BZ2_BEGINNING.match(head):
        return "none"
    return next((name for name, magic in MAGIC.items() if head.startswith(magic)), "none")


def new_decompressor(compression: Compression) -> Any:
    """Return a decompressor for one member of a compressed file."""
    match compression:
        case "gzip":
            return zlib.decompressobj(wbits=31)
        case "bz2":
            return bz2.BZ2Decompressor()
        case _:
            return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def inflate(decompressor: Any, data: bytes, compression: Compression) -> Generator[bytes, None, bytes]:
    """Yield the decompressed data in blocks; return the data after the end of the member."""
    if isinstance(decompressor, bz2.BZ2Decompressor):
        yield decompressor.decompress(data, MAX_BLOCK_BYTES)
        while not decompressor.needs_input and not decompressor.eof:
            yield decompressor.decompress(b"", MAX_BLOCK_BYTES)
        return decompressor.unused_data
    at_once = _ZSTD_PIECE if compression == "zstd" else len(data)
    fed = 0
    while fed < len(data) and not decompressor.eof:
        piece = data[fed : fed + at_once]
        block = decompressor.decompress(piece)
        yield from (block[begin : begin + MAX_BLOCK_BYTES] for begin in range(0, len(block), MAX_BLOCK_BYTES))
        fed += len(piece)
    return decompressor.unused_data + data[fed:]
