"""Begin to read a part of a source."""

import copy
from dataclasses import replace

from ..document import Source
from ..formats.text_source import FileSource
from ..streams import TextFile, stream_at
from .cutting import Part, first_member


def enter_part(source: Source, part: Part) -> tuple[Source, int] | None:
    """Return a source of a part's own, and the position of its first record.

    If the part is not exact, the record is the first one that seems to begin in the part, and positions in a compressed
    file count from the member that it is entered at.

    Returns:
        None if no record seems to begin in the part or behind it.

    Raises:
        CorpusError: if the file cannot be read.
    """
    if not isinstance(source, FileSource):
        return source, part.start or 0
    own = copy.copy(source)
    own.counted = part.counted
    if part.start is not None:
        own.file = replace(source.file, until=part.end, crossed=None)
        if part.entry is not None:
            own.file.points = [part.entry]
        own.origin = part.start
        _cross(own.file)
        return own, part.start
    offset = part.begin
    entry = offset, offset
    if source.file.compression != "none":
        member = first_member(source.path, source.name, source.file.compression, part.begin, part.end)
        if member is None:
            return None
        entry, offset = (member, 0), 0
    own.file = replace(source.file, points=[entry], until=part.end, crossed=None)
    _cross(own.file)
    own.forget_earlier()
    with stream_at(own.file, offset) as stream:
        if not own.enter(stream):
            return None
        own.origin = stream.offset
    return own, own.origin


def _cross(file: TextFile) -> None:
    if file.compression == "none" and file.until is not None:
        # Offsets in the file are offsets in the text.
        file.crossed = file.until, file.until
