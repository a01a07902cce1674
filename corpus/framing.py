"""Lines framed in a stream of bytes, and the largest size of a record of any format."""

import codecs
from collections.abc import Iterator

from ..errors import CorpusError
from .rejected import RecordError
from .streams import ByteStream

MAX_RECORD_BYTES = 64 << 20
"""Largest record. A record is in memory as a whole, and without a limit one missing line feed could take all of it."""


def lines(stream: ByteStream, stop: int | None, counted: int = 0) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (number, offset, line) for the lines that begin before ``stop``, without their line feeds.

    Only a line feed ends a line. Numbers count on from ``counted`` where reading begins. Byte order marks at the
    beginning of a line are not part of it: files that begin with one may have been joined. A line of more than 64 MiB
    is skipped, and None is yielded in its place. The stream is left at ``stop``.
    """
    return ((number, offset, line and without_mark(line)) for number, offset, line in raw_lines(stream, stop, counted))


def without_mark(line: bytes) -> bytes:
    """Return a line without the byte order marks that it begins with."""
    begin = 0
    while line.startswith(codecs.BOM_UTF8, begin):
        begin += len(codecs.BOM_UTF8)
    return line[begin:] if begin else line


def raw_lines(stream: ByteStream, stop: int | None, counted: int = 0) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield the lines that ``lines`` yields, with their byte order marks."""
    if stop is not None and stream.offset >= stop:
        return
    number = counted + 1
    for offset, whole, rest in _whole_lines(stream):
        if whole is None:
            yield number, offset, None
            number += 1
            continue
        for index, line in enumerate(whole):
            if stop is not None and offset >= stop:
                stream.unread(b"\n".join([*whole[index:], rest]))
                return
            yield number, offset, line
            offset, number = offset + len(line) + 1, number + 1
        if stop is not None and offset >= stop:
            stream.unread(rest)
            return


def _whole_lines(stream: ByteStream) -> Iterator[tuple[int, list[bytes] | None, bytes]]:
    """Yield (offset, lines, beginning of the next line) for each block; None for the lines if one is too long."""
    offset, size, is_skipping = stream.offset, 0, False
    unfinished: list[bytes] = []
    while block := stream.read():
        end = block.find(b"\n")
        if size + (len(block) if end < 0 else end) > MAX_RECORD_BYTES and not is_skipping:
            yield offset, None, b""
            is_skipping = True
        if end < 0:
            size += len(block)
            unfinished = [] if is_skipping else [*unfinished, block]
            continue
        if is_skipping:
            offset += size + end + 1
            unfinished, block, is_skipping = [], block[end + 1 :], False
        buffer = b"".join([*unfinished, block])
        *whole, rest = buffer.split(b"\n")
        yield offset, whole, rest
        offset += len(buffer) - len(rest)
        unfinished, size = [rest], len(rest)
    if last := b"".join(unfinished):
        yield offset, [last], b""


def read_more(stream: ByteStream, pending: int) -> bytes:
    """Read at least as many bytes as are pending, so that the time to find a record is linear in its length."""
    blocks: list[bytes] = []
    while True:
        try:
            block = stream.read()
        except CorpusError:
            if not blocks:
                raise
            # The bytes before the damage count; the stream raises the error again at the next call.
            break
        blocks.append(block)
        pending -= len(block)
        if pending <= 0 or not block:
            break
    return b"".join(blocks)


def too_long(place: str) -> RecordError:
    """Return the error for a record that is larger than ``MAX_RECORD_BYTES``."""
    problem = (
        f"a record of more than {MAX_RECORD_BYTES >> 20} MiB begins here."
        " Split it, or check whether a line feed, a quote or a closing tag is missing."
    )
    return RecordError(place, problem, "too long")


def decode_line(line: bytes, place: str) -> str:
    """Decode UTF-8.

    Raises:
        RecordError: if the line is not UTF-8. The message names the first wrong byte and its place in the line.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        problem = (
            f"invalid UTF-8, byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line."
            " Convert the file to UTF-8."
        )
        raise RecordError(place, problem, "invalid UTF-8") from None
