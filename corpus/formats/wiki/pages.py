"""The pages of an export, found in its bytes, each in its newest version.

Pages are found by searching for ``<page>`` and ``</page>``, and revisions by theirs, because every ``<`` in a page's
text is escaped. Exports of a wiki's history hold a page in many versions: as the revisions of one page, or as a page
for each revision.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ....errors import CorpusError
from ... import framing
from ...framing import read_more
from ...streams import ByteStream

_PAGE, PAGE_END = b"<page>", b"</page>"
_EXPORT_END = b"</mediawiki>"
_REVISION_BEGIN, _REVISION_END = b"<revision>", b"</revision>"
_REVISION = re.compile(rb"<revision>.*?</revision>", re.DOTALL)
_ID = re.compile(rb"<id>\s*([^<]*?)\s*</id>")
_TITLE = re.compile(rb"<title>([^<]*)</title>")
_TIMESTAMP = re.compile(rb"<timestamp>\s*([^<]*?)\s*</timestamp>")
# Bytes that are kept of a buffer without a page: more than the longest tag that is searched for.
_TAIL_BYTES = 1 << 10

# A page id of more digits is kept as a string: the bits for all shorter ones take 25 MB at most.
_NUMBER = re.compile(r"[1-9][0-9]{0,7}")

Version = tuple[bytes, int]
"""Time stamp and id of a revision. A later revision has a larger one."""


class RawPage(NamedTuple):
    """The bytes of a page.

    Attributes:
        position: offset of its ``<page>`` in the text; of several versions in succession, that of the first.
        number: its number from where reading begins, counted from 1; of several versions, that of the first.
        xml: bytes from ``<page>`` to ``</page>``, with one revision; None if they are too many.
        older: number of older versions that were left out.
        page_id: its id; empty if it has none.
        title: its title; empty if it has none.
    """

    position: int
    number: int
    xml: bytes | None
    older: int
    page_id: str
    title: str


class SeenIds:
    """The ids of the pages of a file: a bit for each number, because MediaWiki counts pages.

    Attributes:
        repeated: ids that were added more than once.
    """

    def __init__(self) -> None:
        self.repeated: set[str] = set()
        self._bits = np.zeros(0, np.uint8)
        self._other: set[str] = set()

    def add(self, ids: Iterable[str]) -> None:
        """Add the ids of further pages."""
        numbers: list[int] = []
        for page_id in ids:
            if _NUMBER.fullmatch(page_id):
                numbers.append(int(page_id))
            elif page_id in self._other:
                self.repeated.add(page_id)
            else:
                self._other.add(page_id)
        found, counts = np.unique(np.array(numbers, np.int64), return_counts=True)
        if not found.size:
            return
        place, bit = found >> 3, np.uint8(1) << (found & 7).astype(np.uint8)
        if place[-1] >= len(self._bits):
            self._bits = np.concatenate([self._bits, np.zeros(2 * place[-1] + 1 - len(self._bits), np.uint8)])
        self.repeated.update(map(str, found[(counts > 1) | (self._bits[place] & bit > 0)].tolist()))
        np.bitwise_or.at(self._bits, place, bit)


def newest_versions(stream: ByteStream, stop: int | None) -> Iterator[RawPage]:
    """Yield the pages that begin before ``stop``. Of pages with one id and title in succession, yield the newest.

    Pages with one id and several titles are of several wikis, or of a page that was moved between two exports.

    Raises:
        CorpusError: as ``pages`` raises it.
    """
    held: RawPage | None = None
    try:
        for page in pages(stream, stop):
            if held is None or not page.page_id or (page.page_id, page.title) != (held.page_id, held.title):
                if held is not None:
                    yield held
                held = page
                continue
            newest = page if version(page.xml) >= version(held.xml) else held
            held = newest._replace(position=held.position, number=held.number, older=held.older + page.older + 1)
    except CorpusError:
        if held is not None:
            yield held
        raise
    if held is not None:
        yield held


def version(xml: bytes | None) -> Version:
    """Return the version of a page with one revision, or of a revision."""
    begin = -1 if xml is None else xml.find(_REVISION_BEGIN)
    if xml is None or begin < 0:
        return b"", 0
    time, number = _TIMESTAMP.search(xml, begin), _ID.search(xml, begin)
    return time[1] if time else b"", int(number[1]) if number and number[1].isdigit() else 0


def _raw_page(position: int, number: int, xml: bytes, older: int) -> RawPage:
    head = max(xml.find(_REVISION_BEGIN), 0)
    page_id, title = (
        found[1].decode(errors="replace") if (found := each.search(xml, 0, head)) else "" for each in (_ID, _TITLE)
    )
    return RawPage(position, number, xml if len(xml) <= framing.MAX_RECORD_BYTES else None, older, page_id, title)


def pages(stream: ByteStream, stop: int | None) -> Iterator[RawPage]:
    """Yield the pages that begin before ``stop``, each with its newest revision.

    A page that is not closed ends where the next one begins, or the export ends. A page of more than 64 MiB is skipped,
    and one without its bytes yielded in its place; older revisions do not count.

    Raises:
        CorpusError: if the file ends before ``</mediawiki>``.
    """
    base, name = stream.offset, stream.file.name
    buffer, cursor = b"", 0
    number = older = 0
    opened: int | None = None  # position of the page that lost revisions before its end was read
    while True:
        begin = buffer.find(_PAGE, cursor)
        position = base + begin if opened is None else opened
        if begin >= 0 and opened is None and stop is not None and position >= stop:
            stream.unread(buffer[begin:])
            return
        end = _end_of_page(buffer, begin) if begin >= 0 else -1
        if begin >= 0 and (end >= 0 or len(buffer) - begin > framing.MAX_RECORD_BYTES):
            whole = buffer[begin:end] if end >= 0 else buffer[begin:]
            xml, dropped = _newest_revision(whole)
            older += dropped
            if end >= 0 or len(xml) > framing.MAX_RECORD_BYTES:
                number += 1
                yield _raw_page(position, number, xml, older)
                # Behind a page that is too long, only the next page is searched for.
                cursor = end if end >= 0 else begin + len(_PAGE)
                opened, older = None, 0
                if end >= 0:
                    continue
                begin = -1
            else:
                base, opened = base + len(whole) - len(xml), position
                buffer = buffer[:begin] + xml
        kept = begin if begin >= 0 else max(cursor, len(buffer) - _TAIL_BYTES)
        more = read_more(stream, len(buffer) - kept)
        if not more:
            break
        buffer, base, cursor = buffer[kept:] + more, base + kept, 0
    if begin >= 0 or _EXPORT_END not in buffer[cursor:]:
        raise CorpusError(
            f"{name}, byte {base + len(buffer):,} of the text: the export ends before </mediawiki>. It is truncated."
            " Download the file again."
        )


def _newest_revision(xml: bytes) -> tuple[bytes, int]:
    """Return the page with its newest revision, and the number of revisions that were left out."""
    if xml.find(_REVISION_END) == xml.rfind(_REVISION_END):
        return xml, 0
    revisions = [revision.span() for revision in _REVISION.finditer(xml)]
    if len(revisions) < 2:  # a tag is damaged
        return xml, 0
    # The last of several equal versions counts.
    begin, end = max(reversed(revisions), key=lambda span: version(xml[slice(*span)]))
    return xml[: revisions[0][0]] + xml[begin:end] + xml[revisions[-1][1] :], len(revisions) - 1


def _end_of_page(buffer: bytes, begin: int) -> int:
    """Return where the page that begins there ends, or the next one begins, or the export ends; -1 if none is there."""
    end = buffer.find(PAGE_END, begin)
    following = buffer.find(_PAGE, begin + 1, end if end >= 0 else len(buffer))
    if following >= 0:
        return following
    return end + len(PAGE_END) if end >= 0 else buffer.find(_EXPORT_END, begin)
