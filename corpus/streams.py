"""The bytes of a text file: decompressed, transcoded to UTF-8, and reachable by offset.

Offsets count bytes of the decompressed, transcoded text. A plain file is entered at any offset. A compressed file of
several members (multistream bz2, bgzip, multi-frame zstd) is entered at the last member that begins at or before the
offset; the member table ``TextFile.points`` has these members once the file has been read to its end. A file of one
member can only be read forward. The table may begin with another member than the first: then offsets count from there.
"""

import codecs
import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import CorpusError
from .compression import DECOMPRESSION_ERRORS, MAX_BLOCK_BYTES, Compression, inflate, new_decompressor
from .cursors import cursor_at, file_identity
from .rejected import UnreadableError, unreadable

Encoding = Literal["utf-8", "utf-16-le", "utf-16-be", "cp1252", "latin-1"]

POINT_SPACING = 1 << 20
"""Bytes of a compressed file of which a member table has the first member, so that a dump of 25 GB has some 25,000."""

# Compressed bytes that are read at once: few, because a decompressor may return a thousand times as many. A piece ends
# at a multiple of this, so that damage is found at the same byte of the text wherever reading began.
_PIECE = 16 << 10


@dataclass(slots=True)
class TextFile:
    """A text file of a corpus: its compression, its encoding, and the offsets where it can be entered.

    Attributes:
        path: absolute path.
        name: path as messages show it.
        compression: compression of its bytes.
        encoding: encoding of its text.
        points: member table: (offset in the file, offset in the text) pairs where reading can begin. It grows while
            the file is first read.
        until: offset in a compressed file; None if the next attribute is not needed.
        crossed: the first member that begins at ``until`` or behind it, as in ``points``; None until it is met.
    """

    path: str
    name: str
    compression: Compression = "none"
    encoding: Encoding = "utf-8"
    points: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    until: int | None = None
    crossed: tuple[int, int] | None = None

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able form. Its member table is complete once the file has been read to its end."""
        return {
            "path": self.path,
            "name": self.name,
            "compression": self.compression,
            "encoding": self.encoding,
            "points": [list(point) for point in self.points],
        }

    @classmethod
    def from_spec(cls, spec: Any) -> "TextFile":
        """Rebuild the file from its ``spec``."""
        points = [(file_offset, offset) for file_offset, offset in spec["points"]]
        return cls(spec["path"], spec["name"], spec["compression"], spec["encoding"], points)


@contextmanager
def stream_at(file: TextFile, offset: int) -> Iterator["ByteStream"]:
    """Lend a stream of the file at an offset."""
    key = (*file_identity(file.path, file.name), file.compression, file.encoding, file.points[0])
    with cursor_at(key, lambda: ByteStream(file), offset) as stream:
        # An idle stream may come from another source object of the same file, whose member table may be shorter.
        stream.file = file
        yield stream


class ByteStream:
    """The text of a file as UTF-8 bytes, read forward in blocks of at most about 1 MB."""

    def __init__(self, file: TextFile):
        self.file = file
        try:
            self._descriptor = os.open(file.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise unreadable(file.name, error) from None
        self.at_end = False
        self._begin(file.points[0])

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
        """Move to an offset: forward from the current one, or from the nearest point of the member table.

        Raises:
            CorpusError: if the file ends before the offset, or its bytes cannot be decompressed.
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
        """Return the next block; an empty one at the end of the file.

        Raises:
            CorpusError: if the next bytes are truncated, damaged or foreign. All bytes before them are returned first,
                and every further call raises the same error.
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
        self.at_end = self.at_end and not tail

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            self.close()

    def _next(self) -> bytes:
        if self._damage is not None:
            raise self._damage
        try:
            for raw in self._blocks:
                if block := self._transcode(raw):
                    return block
            return self._transcode(b"", final=True)
        except CorpusError as error:
            # The generator ended with this error. The next call would take that for the end of the file.
            self._damage = error
            raise

    def _pread(self, size: int, file_offset: int) -> bytes:
        # pread does not move the descriptor, so that a forked process can use an inherited stream.
        try:
            return os.pread(self._descriptor, size, file_offset)
        except OSError as error:
            raise unreadable(self.file.name, error) from None

    def _plain(self, file_offset: int) -> Iterator[bytes]:
        while block := self._pread(MAX_BLOCK_BYTES, file_offset):
            self._note_point(file_offset)
            file_offset += len(block)
            yield block

    def _members(self, file_offset: int) -> Iterator[bytes]:
        data = b""
        is_first = file_offset == 0
        while True:
            data = data.lstrip(b"\0")  # archives from tapes are padded with zeros
            if not data:
                data = self._read_piece(file_offset)
                file_offset += len(data)
                if not data:
                    return
                continue
            member_offset, text_offset = file_offset - len(data), self._decoded
            self._note_point(member_offset)
            decompressor = new_decompressor(self.file.compression)
            while True:
                try:
                    data = yield from inflate(decompressor, data, self.file.compression)
                except DECOMPRESSION_ERRORS as error:
                    if not is_first and self._decoded == text_offset:
                        raise self._foreign(member_offset) from None
                    raise self._damaged(f"the {self.file.compression} stream is damaged ({error}).") from None
                if decompressor.eof:
                    break
                data = self._read_piece(file_offset)
                file_offset += len(data)
                if not data:
                    raise self._damaged(
                        f"the file ends in the middle of its {self.file.compression} stream. It is truncated."
                    )
            is_first = False

    def _read_piece(self, file_offset: int) -> bytes:
        return self._pread(_PIECE - file_offset % _PIECE, file_offset)

    def _too_short(self, size: int, position: int) -> CorpusError:
        return UnreadableError(
            f"{self.file.name}: the file has {size:,} bytes of text, but a record was planned at byte {position:,}."
            " The file has changed since then. Run the build again."
        )

    def _damaged(self, problem: str) -> CorpusError:
        place = f"{self.file.name}, byte {self._decoded:,} of the decompressed text"
        return CorpusError(f"{place}: {problem} Download the file again.")

    def _foreign(self, member_offset: int) -> CorpusError:
        place = f"{self.file.name}, byte {member_offset:,} of the file, byte {self._decoded:,} of the decompressed text"
        kind = self.file.compression
        return CorpusError(
            f"{place}: the {kind} stream is followed by bytes that are not {kind}. Download the file again, or cut"
            " these bytes off."
        )

    def _note_point(self, file_offset: int) -> None:
        file, point = self.file, (file_offset, self._decoded)
        if file.until is not None and file.crossed is None and file_offset >= file.until:
            file.crossed = point
        last = file.points[-1]
        if self._transcoder is not None:
            # A point must not stand within a character.
            if self._decoded >= last[1] + POINT_SPACING and not self._transcoder.getstate()[0]:
                file.points.append(point)
        elif file.compression != "none" and file_offset // POINT_SPACING > last[0] // POINT_SPACING:
            # The same members are chosen wherever reading begins, since this depends on their places in the file.
            file.points.append(point)

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
