"""Bytes of text files: decompressed, transcoded to UTF-8, and reachable by offset.

An offset is one into the decompressed, transcoded stream. Plain files seek to it. A compressed file of several
members (multistream bz2, bgzip, multi-frame zstd) is entered at the last member that begins at or before it, which the
table ``TextFile.points`` knows once the file has been read through. A file of one member can only be read forward, so
a stream that was left in the middle of a file is kept for the next reader: rising offsets decompress a file once per
process.

This is the one module outside ``store/`` that imports zstandard: corpora come zstd-compressed, too.
"""

import bz2
import codecs
import os
import threading
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import zstandard

from ..errors import CorpusError
from .document import RecordError, UnreadableError

Compression = Literal["none", "gzip", "bz2", "zstd"]
Encoding = Literal["utf-8", "utf-16-le", "utf-16-be"]

MAX_RECORD_BYTES = 64 << 20
POINT_SPACING = 4 << 20
"""Decompressed bytes between two entries of a file's member table, so that the table of a 100 GB dump stays small."""

MAGIC: dict[Compression, bytes] = {"gzip": b"\x1f\x8b", "bz2": b"BZh", "zstd": b"\x28\xb5\x2f\xfd"}

_BLOCK = 1 << 20
# Input is fed in small pieces because a decompressor may return a thousand times what it is given, that of zstd 32,000
# times. They end at multiples of this, so that damage is met at the same byte of the text wherever reading began.
_PIECE = 16 << 10
_ZSTD_PIECE = 1 << 10
_MAX_IDLE = 16
_UTF8_BOM = codecs.BOM_UTF8


def magic_compression(head: bytes) -> Compression:
    """Tell a file's compression by its first bytes."""
    # Skippable zstd frames, which pzstd and seekable archives begin with, have 16 magic numbers of their own.
    if len(head) >= 4 and 0x50 <= head[0] <= 0x5F and head[1:4] == b"\x2a\x4d\x18":
        return "zstd"
    return next((name for name, magic in MAGIC.items() if head.startswith(magic)), "none")


@dataclass(slots=True)
class TextFile:
    """A text file of a corpus and what is known about how to read it.

    Attributes:
        path: absolute path.
        name: the path shown in messages.
        compression: how its bytes are compressed.
        encoding: how its text is encoded.
        points: (file offset, stream offset) pairs where reading can begin; grows while the file is first read.
    """

    path: str
    name: str
    compression: Compression = "none"
    encoding: Encoding = "utf-8"
    points: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])

    @property
    def spec(self) -> dict[str, Any]:
        """The JSON-able form; its member table is complete once the file has been read to the end."""
        return {
            "path": self.path,
            "name": self.name,
            "compression": self.compression,
            "encoding": self.encoding,
            "points": [list(point) for point in self.points],
        }

    @classmethod
    def from_spec(cls, spec: Any) -> "TextFile":
        """Rebuild from ``spec``."""
        points = [(file_offset, offset) for file_offset, offset in spec["points"]]
        return cls(spec["path"], spec["name"], spec["compression"], spec["encoding"], points)


class Cursor(Protocol):
    """A place in an open file, from which reading goes forward."""

    @property
    def at_end(self) -> bool:
        """Whether the file was read to its end."""
        ...

    def seek(self, position: int) -> None:
        """Go to a position, forward from here where that is the shorter way."""
        ...

    def close(self) -> None:
        """Give back the file."""
        ...


_Cursor = TypeVar("_Cursor", bound=Cursor)
_idle: OrderedDict[tuple[object, ...], Cursor] = OrderedDict()
_idle_lock = threading.Lock()


@contextmanager
def cursor_at(key: tuple[object, ...], open_cursor: Callable[[], _Cursor], position: int) -> Iterator[_Cursor]:
    """Lend a cursor at ``position``: the idle one that was left under ``key``, or a new one.

    Two readers of one file never share a cursor. At most a few idle ones are kept in a process.
    """
    with _idle_lock:
        cursor: Any = _idle.pop(key, None)
    cursor = cursor or open_cursor()
    try:
        cursor.seek(position)
        yield cursor
    except BaseException:  # also where a reader stops in the middle: the cursor's place is unknown then
        cursor.close()
        raise
    if cursor.at_end:
        cursor.close()
        return
    with _idle_lock:
        spare: list[Cursor] = [_idle.pop(key)] if key in _idle else []
        _idle[key] = cursor
        spare += [_idle.popitem(last=False)[1] for _ in range(len(_idle) - _MAX_IDLE)]
    for unwanted in spare:
        unwanted.close()


def file_identity(path: str, name: str) -> tuple[object, ...]:
    """Tell a file from another one that is written to the same path later.

    Raises:
        CorpusError: when there is no such file.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise UnreadableError(f"{name}: cannot be opened ({error.strerror}).") from None
    return path, status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def stream_at(file: TextFile, offset: int) -> Iterator["ByteStream"]:
    """Lend a stream of ``file`` at ``offset``."""
    with cursor_at(
        (*file_identity(file.path, file.name), file.compression, file.encoding), lambda: ByteStream(file), offset
    ) as stream:
        # An idle stream may come from another source object of the same file, whose table may be shorter.
        stream.file = file
        yield stream


class ByteStream:
    """The decompressed, transcoded bytes of one file, read forward in blocks of some 100 KB to 1 MB."""

    def __init__(self, file: TextFile):
        self.file = file
        try:
            self._descriptor = os.open(file.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise UnreadableError(f"{file.name}: cannot be opened ({error.strerror}).") from None
        self.at_end = False
        self._begin((0, 0))

    def _begin(self, point: tuple[int, int]) -> None:
        file_offset, self._decoded = point
        self._held = b""
        self._damage: CorpusError | None = None
        self.at_end = False
        encoding = self.file.encoding
        self._transcoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)()
        self._blocks = self._plain(file_offset) if self.file.compression == "none" else self._members(file_offset)

    @property
    def offset(self) -> int:
        """Offset of the next byte that ``read`` returns."""
        return self._decoded - len(self._held)

    def seek(self, position: int) -> None:
        """Go to an offset: forward from here, or from the nearest point before it.

        Raises:
            CorpusError: when the file ends before it, or its bytes cannot be decompressed.
        """
        if self.file.compression == "none" and self.file.encoding == "utf-8":
            size = os.fstat(self._descriptor).st_size
            if position and position >= size:
                raise self._too_short(size, position)
            point = (position, position)
        else:
            points = self.file.points
            point = points[bisect_right(points, position, key=lambda pair: pair[1]) - 1]
        if not point[1] <= self.offset <= position:
            self._begin(point)
        while self.offset < position:
            block = self.read()
            if not block:
                raise self._too_short(self.offset, position)
            if self.offset > position:
                self.unread(block[position - self.offset :])

    def read(self) -> bytes:
        """Return the next block; empty at the end of the file.

        Raises:
            CorpusError: for truncated, damaged or foreign bytes, naming the offset, once all before them was returned;
                and again each time.
        """
        if self._held:
            block, self._held = self._held, b""
            return block
        block = self._next()
        self._decoded += len(block)
        self.at_end = not block
        return block

    def unread(self, tail: bytes) -> None:
        """Give back the last bytes that ``read`` returned."""
        self._held = tail
        self.at_end = False

    def _next(self) -> bytes:
        """What is decoded next; empty at the end of the file."""
        if self._damage is not None:
            raise self._damage
        try:
            for raw in self._blocks:
                if block := self._transcode(raw):
                    return block
            return self._transcode(b"", final=True)
        except CorpusError as error:
            # The iterator has ended with it: without this the next call would take that for the end of the file.
            self._damage = error
            raise

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            self.close()

    def _pread(self, size: int, file_offset: int) -> bytes:
        # pread leaves the descriptor's own position alone, so a forked process may go on with an inherited stream.
        try:
            return os.pread(self._descriptor, size, file_offset)
        except OSError as error:
            raise UnreadableError(f"{self.file.name}: cannot be read ({error.strerror}).") from None

    def _plain(self, file_offset: int) -> Iterator[bytes]:
        while block := self._pread(_BLOCK, file_offset):
            self._note_point(file_offset)
            file_offset += len(block)
            yield block

    def _members(self, file_offset: int) -> Iterator[bytes]:
        data = b""
        first = file_offset == 0
        fed_at_once = _ZSTD_PIECE if self.file.compression == "zstd" else _PIECE
        while True:
            data = data.lstrip(b"\0")  # archives from tapes are padded with zeros
            if not data:
                data = self._pread(_PIECE - file_offset % _PIECE, file_offset)
                file_offset += len(data)
                if not data:
                    return
                continue
            self._note_point(file_offset - len(data))
            member_offset = file_offset - len(data)
            decompressor = self._decompressor()
            decoded = self._decoded
            while True:
                try:
                    data = yield from _inflate(decompressor, data, fed_at_once)
                except (zlib.error, OSError, EOFError, zstandard.ZstdError) as error:
                    foreign = not first and self._decoded == decoded
                    raise self._damaged(error, member_offset if foreign else None) from None
                if decompressor.eof:
                    break
                data = self._pread(_PIECE - file_offset % _PIECE, file_offset)
                file_offset += len(data)
                if not data:
                    raise CorpusError(
                        f"{self.file.name}, byte {self._decoded:,} of the decompressed text: the file ends in the"
                        f" middle of its {self.file.compression} stream. It is truncated; fetch it again."
                    )
            first = False

    def _decompressor(self) -> Any:
        match self.file.compression:
            case "gzip":
                return zlib.decompressobj(wbits=31)
            case "bz2":
                return bz2.BZ2Decompressor()
            case _:
                return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()

    def _too_short(self, size: int, position: int) -> CorpusError:
        return UnreadableError(
            f"{self.file.name}: has {size:,} bytes of text, but a record was planned at byte {position:,}."
            " The file has changed; plan the build again."
        )

    def _damaged(self, error: Exception, foreign_from: int | None) -> CorpusError:
        name, kind = self.file.name, self.file.compression
        if foreign_from is not None:
            return CorpusError(
                f"{name}, byte {foreign_from:,} of the file, byte {self._decoded:,} of the decompressed text: after the"
                f" end of the {kind} stream come bytes that are not {kind}. Fetch the file again or cut them off."
            )
        return CorpusError(
            f"{name}, byte {self._decoded:,} of the decompressed text: the {kind} stream is damaged ({error});"
            " fetch the file again."
        )

    def _note_point(self, file_offset: int) -> None:
        points = self.file.points
        if self._decoded < points[-1][1] + POINT_SPACING:
            return
        if self._transcoder is None:
            if self.file.compression != "none":
                points.append((file_offset, self._decoded))
        elif not self._transcoder.getstate()[0]:  # no half character is pending
            points.append((file_offset, self._decoded))

    def _transcode(self, block: bytes, final: bool = False) -> bytes:
        if self._transcoder is None:
            return block
        try:
            return self._transcoder.decode(block, final).encode()
        except UnicodeDecodeError as error:
            sound = error.object[: error.start].decode(self.file.encoding).encode()
            self._damage = CorpusError(
                f"{self.file.name}, byte {self._decoded + len(sound):,} of the text: invalid"
                f" {self.file.encoding.upper()} ({error.reason}). Convert the file to UTF-8."
            )
            if not sound:
                raise self._damage from None
            return sound


def _inflate(decompressor: Any, data: bytes, fed_at_once: int) -> Generator[bytes, None, bytes]:
    """Yield what input becomes; returns what of it comes after the end of the member."""
    if isinstance(decompressor, bz2.BZ2Decompressor):
        yield decompressor.decompress(data, _BLOCK)
        while not decompressor.needs_input and not decompressor.eof:
            yield decompressor.decompress(b"", _BLOCK)
        return decompressor.unused_data
    fed = 0
    while fed < len(data) and not decompressor.eof:
        piece = data[fed : fed + fed_at_once]
        block = decompressor.decompress(piece)
        yield from (block[begin : begin + _BLOCK] for begin in range(0, len(block), _BLOCK))
        fed += len(piece)
    return decompressor.unused_data + data[fed:]


def lines(stream: ByteStream, stop: int | None) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (number, offset, line) for the lines that begin before ``stop``, without their line feeds.

    Numbers count from 1 where reading begins. A byte order mark at the beginning of the file is no part of its first
    line. The stream is left at ``stop``. A line of more than 64 MiB is passed over, and None stands in its place.
    """
    offset, number = stream.offset, 1
    unfinished: list[bytes] = []
    size = 0
    is_skipped = False
    while stop is None or offset < stop:
        block = stream.read()
        if not block:
            break
        end = block.find(b"\n")
        if size + (len(block) if end < 0 else end) > MAX_RECORD_BYTES and not is_skipped:
            yield number, offset, None
            is_skipped = True
        if end < 0:
            size += len(block)
            unfinished = [] if is_skipped else [*unfinished, block]
            continue
        if is_skipped:
            offset, number = offset + size + end + 1, number + 1
            unfinished, size, is_skipped = [], 0, False
            block = block[end + 1 :]
        buffer = b"".join([*unfinished, block])
        pieces = buffer.split(b"\n")
        rest = pieces.pop()
        first = offset
        for line in pieces:
            if stop is not None and offset >= stop:
                break
            yield number, offset, line if offset else line.removeprefix(_UTF8_BOM)
            offset, number = offset + len(line) + 1, number + 1
        if stop is not None and offset >= stop:
            stream.unread(buffer[offset - first :])
            return
        unfinished, size = [rest], len(rest)
    last = b"".join(unfinished)
    if last and (stop is None or offset < stop):
        yield number, offset, last if offset else last.removeprefix(_UTF8_BOM)


def read_more(stream: ByteStream, pending: int) -> bytes:
    """Read at least as many bytes as are pending, so that a record is found in time linear in its length."""
    blocks: list[bytes] = []
    while True:
        try:
            block = stream.read()
        except CorpusError:
            if not blocks:
                raise
            # What was read before the damage counts; the stream will raise again.
            break
        blocks.append(block)
        pending -= len(block)
        if pending <= 0 or not block:
            break
    return b"".join(blocks)


def too_long(where: str) -> RecordError:
    """The error of a record that has outgrown what a record may be."""
    what = (
        f"a record of more than {MAX_RECORD_BYTES >> 20} MiB begins here."
        " Is the file one record a line, as its format wants?"
    )
    return RecordError(where, what, "too long")


def decode_line(line: bytes, where: str) -> str:
    """Decode UTF-8, or raise ``RecordError`` naming the offending byte and its place in the line."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        what = (
            f"invalid UTF-8, byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line."
            " Convert the file to UTF-8."
        )
        raise RecordError(where, what, "invalid UTF-8") from None
