"""Wikimedia's ``pages-articles`` exports: pages cleaned to prose and cut into pieces that keep their title.

Pages are found by searching the bytes for ``<page>`` and ``</page>``, because every ``<`` in a page's text is escaped.
Each page is parsed on its own, so that no document type declaration ever reaches the XML parser. Format:
https://www.mediawiki.org/wiki/Help:Export#Export_format
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self
from xml.etree import ElementTree

from mwparserfromhell.parser import ParserError

from ...configs.corpus import CorpusConfig
from ...errors import CorpusError
from .. import framing
from ..document import Document, Record, check_doc_id
from ..framing import read_more, too_long
from ..recognise import Recognised
from ..rejected import OnRejected, RecordError, Rejecter, Tolerance
from ..split import max_id_bytes, split_document
from ..streams import ByteStream, TextFile, stream_at
from .text_source import FileSource
from .wikitext import lowered, prose

PASSAGE_WORDS = 100
"""Words of a document if the configuration sets no number, as in DPR and KILT."""

_ROOT = re.compile(rb"<([A-Za-z_][\w.:-]*)")
_DECLARED_ENCODING = re.compile(rb"<\?xml[^>]*encoding=[\"']([\w.-]+)[\"']")
_PAGE, _PAGE_END = b"<page>", b"</page>"
_INTEGER = re.compile(r"\s*-?[0-9]{1,9}\s*")
_BROKEN = "broken XML"
# Bytes in which the header with the namespaces has to end; that of the English Wikipedia has 3 KB.
_MAX_HEADER_BYTES = 1 << 20
# Bytes that are kept of a buffer without a page: more than the longest tag that is searched for.
_TAIL_BYTES = 1 << 10
_MEDIA, _FILE, _CATEGORY = -2, 6, 14
# English names work in the wikis of all languages. Image is the old name of File.
_ENGLISH_NAMES = ("media", "file", "image", "category")


class WikiPage(NamedTuple):
    """A page of an export.

    Attributes:
        page_id: id of the page, which is the id of its record.
        namespace: number of its namespace.
        title: title with the namespace's name.
        redirect: True if the page only points to another one.
        wikitext: source text; None if it is deleted or not wikitext.
    """

    page_id: str
    namespace: int
    title: str
    redirect: bool
    wikitext: str | None


class MediaWikiSource(FileSource):
    """A Wikimedia export. Positions are offsets of ``<page>``.

    As for other text files, the ``spec`` is complete once ``scan`` has run to its end.
    """

    format: ClassVar[str] = "mediawiki"

    def __init__(
        self,
        file: TextFile,
        namespaces: Mapping[str, int],
        kept: tuple[int, ...],
        passage_words: int,
        tolerance: Tolerance = Tolerance(),  # noqa: B008
    ):
        super().__init__(file, tolerance)
        self.namespaces = dict(namespaces)
        self.kept = kept
        self.passage_words = passage_words
        local = [name for name, key in self.namespaces.items() if key in (_MEDIA, _FILE, _CATEGORY)]
        self._dropped_links = lowered((*_ENGLISH_NAMES, *local))

    @classmethod
    def begin(cls, found: Recognised, config: CorpusConfig) -> Self:
        """Open a recognised file; its ``<siteinfo>`` names the namespaces.

        Raises:
            CorpusError: if the file is not a MediaWiki export.
        """
        with stream_at(found.text, 0) as stream:
            namespaces = read_namespaces(stream)
        words = config.passage_words or PASSAGE_WORDS
        return cls(found.text, namespaces, config.namespaces, words, Tolerance(config.on_error))

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Rebuild the source from its ``spec``."""
        return cls(
            TextFile.from_spec(spec["file"]),
            spec["namespaces"],
            tuple(spec["kept"]),
            spec["passage_words"],
            Tolerance.from_spec(spec),
        )

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-able description from which another process opens this source."""
        return {
            "format": self.format,
            "file": self.file.spec,
            "namespaces": self.namespaces,
            "kept": list(self.kept),
            "passage_words": self.passage_words,
            **self.tolerance.spec,
        }

    def scan(self, dropped: Counter[str], on_rejected: OnRejected = bool) -> Iterator[Record]:
        """Parse every page except for its wikitext, and yield the records of the pages that are kept."""
        rejecter = Rejecter(self.name, self.tolerance, on_rejected)
        for position, number, _, page in rejecter.until_damage(self._pages(0, None, rejecter)):
            reason = self._reason_to_drop(page)
            if reason is None and page.wikitext is not None:
                yield Record(position, page.page_id, len(page.wikitext), number)
            elif reason is not None:
                dropped[reason] += 1

    def read(
        self, start: int, stop: int | None, on_rejected: OnRejected = bool, dropped: Counter[str] | None = None
    ) -> Iterator[Document]:
        """Yield the documents of the pages from position ``start`` up to, but not including, ``stop``.

        ``scan`` does not clean wikitext. So only this method finds that a page's wikitext cannot be parsed, or that
        the page consists of templates and tables and yields nothing; ``dropped`` counts it as "empty article".
        """
        rejecter = Rejecter(self.name, self.tolerance, on_rejected)
        for position, _, place, page in rejecter.until_damage(self._pages(start, stop, rejecter)):
            if self._reason_to_drop(page) is not None or page.wikitext is None:
                continue
            if rejecter.rejects_repeated(position, page.page_id, place):
                continue
            try:
                text = self._prose(page, page.wikitext, place)
            except RecordError as error:
                rejecter.reject(error, position)
                continue
            if text:
                yield from split_document(Document(page.page_id, text, page.title), self.passage_words)
            elif dropped is not None:
                dropped["empty article"] += 1

    def _pages(self, start: int, stop: int | None, rejecter: Rejecter) -> Iterator[tuple[int, int, str, WikiPage]]:
        """Yield (position, number from where reading begins, place, page) of each page that can be parsed."""
        with stream_at(self.file, start) as stream:
            for number, (position, raw) in enumerate(pages(stream, stop), 1):
                place = f"{self.name}, page {number}" if start == 0 else f"{self.name}, byte {position:,}"
                try:
                    page = self._parse(raw, place)
                except RecordError as error:
                    rejecter.reject(error, position)
                    continue
                yield position, number, place, page

    def _prose(self, page: WikiPage, wikitext: str, place: str) -> str:
        try:
            return prose(wikitext, self._dropped_links)
        # Any error inside the parser concerns this page only.
        except (ParserError, RecursionError, ValueError, TypeError, AttributeError, LookupError) as error:
            problem = (
                f"its wikitext cannot be parsed ({type(error).__name__}: {error})."
                " Skip the page with --on-error skip, and report this error."
            )
            raise RecordError(f"{place} ({page.title!r})", problem, "unparsable wikitext", page.page_id) from error

    def _reason_to_drop(self, page: WikiPage) -> str | None:
        if page.redirect:
            return "redirect"
        if page.namespace not in self.kept:
            return "other namespace"
        if page.wikitext is None:
            return "not wikitext"
        return None if page.wikitext.strip() else "empty article"

    def _parse(self, raw: bytes | None, place: str) -> WikiPage:
        if raw is None:
            raise too_long(place)
        if not raw.endswith(_PAGE_END):
            problem = "the page is not closed before the next one begins. Download the file again."
            raise RecordError(f"{place}{_title_hint(raw)}", problem, _BROKEN)
        try:
            page = ElementTree.fromstring(raw)  # noqa: S314  begins with <page>: no DTD can be in it
        except ElementTree.ParseError as error:
            problem = f"broken XML ({error}). Download the file again."
            raise RecordError(f"{place}{_title_hint(raw)}", problem, _BROKEN) from None
        title = page.findtext("title") or ""
        place = f"{place} ({title[:200]!r})"
        page_id = check_doc_id((page.findtext("id") or "").strip(), place, max_id_bytes(self.passage_words))
        namespace = page.findtext("ns")
        if namespace is None:  # exports before version 0.6
            namespace = str(self.namespaces.get(title.partition(":")[0], 0))
        if not _INTEGER.fullmatch(namespace):
            raise RecordError(
                place, f"the namespace {namespace[:20]!r} is not a number. Download the file again.", _BROKEN, page_id
            )
        revision = next(reversed(page.findall("revision")), None)
        if revision is None:
            problem = "the page has no revision. Use a pages-articles export, which holds the text."
            raise RecordError(place, problem, "no revision", page_id)
        return WikiPage(page_id, int(namespace), title, page.find("redirect") is not None, _wikitext(revision))


def _wikitext(revision: ElementTree.Element) -> str | None:
    if revision.findtext("model", "wikitext") != "wikitext":
        return None
    return revision.findtext("text", "")


def _title_hint(raw: bytes) -> str:
    title = re.search(rb"<title>([^<]*)</title>", raw)
    return f" ({title[1].decode(errors='replace')!r})" if title else ""


def pages(stream: ByteStream, stop: int | None) -> Iterator[tuple[int, bytes | None]]:
    """Yield (offset, bytes) of the pages that begin before ``stop``.

    A page that is not closed ends where the next one begins. A page of more than 64 MiB is skipped, and None is yielded
    in its place.

    Raises:
        CorpusError: if the file ends before ``</mediawiki>``.
    """
    base, name = stream.offset, stream.file.name
    buffer, cursor = b"", 0
    while True:
        begin = buffer.find(_PAGE, cursor)
        if begin >= 0 and stop is not None and base + begin >= stop:
            stream.unread(buffer[begin:])
            return
        end = _end_of_page(buffer, begin) if begin >= 0 else -1
        if end >= 0:
            yield base + begin, buffer[begin:end] if end - begin <= framing.MAX_RECORD_BYTES else None
            cursor = end
            continue
        if begin >= 0 and len(buffer) - begin > framing.MAX_RECORD_BYTES:
            yield base + begin, None
            # From here on only the next page is searched for.
            cursor, begin = begin + len(_PAGE), -1
        kept = begin if begin >= 0 else max(cursor, len(buffer) - _TAIL_BYTES)
        more = read_more(stream, len(buffer) - kept)
        if not more:
            break
        buffer, base, cursor = buffer[kept:] + more, base + kept, 0
    if begin >= 0 or b"</mediawiki>" not in buffer[cursor:]:
        raise CorpusError(
            f"{name}, byte {base + len(buffer):,} of the text: the export ends before </mediawiki>. It is truncated."
            " Download the file again."
        )


def _end_of_page(buffer: bytes, begin: int) -> int:
    """Return where the page that begins there ends, or the next one begins; -1 if the buffer has neither."""
    end = buffer.find(_PAGE_END, begin)
    following = buffer.find(_PAGE, begin + 1, end if end >= 0 else len(buffer))
    if following >= 0:
        return following
    return end + len(_PAGE_END) if end >= 0 else -1


def read_namespaces(stream: ByteStream) -> dict[str, int]:
    """Return the number of each namespace by its name, read from the header of an export.

    Raises:
        CorpusError: if the XML is not a MediaWiki export. The message names its root element.
    """
    name, head = stream.file.name, b""
    while b"</siteinfo>" not in head and b"<page>" not in head and len(head) < _MAX_HEADER_BYTES:
        block = stream.read()
        if not block:
            break
        head += block
    declared = _DECLARED_ENCODING.search(head[:200])
    if declared and not declared[1].lower().startswith((b"utf-8", b"utf-16")):
        raise CorpusError(f"{name}: the XML is in {declared[1].decode()}. Convert it to UTF-8.")
    root = _ROOT.search(head)
    if root is None or root[1] != b"mediawiki":
        found = f"XML with the root element <{root[1].decode()}>" if root else "XML without a root element"
        raise CorpusError(
            f"{name}: the file is {found}, not a MediaWiki export (<mediawiki>). Write its records as JSONL."
        )
    begin, end = head.find(b"<siteinfo>"), head.find(b"</siteinfo>")
    if begin < 0 or end < begin:
        return {}
    try:
        siteinfo = ElementTree.fromstring(head[begin : end + len(b"</siteinfo>")])  # noqa: S314  as for pages
    except ElementTree.ParseError as error:
        raise CorpusError(f"{name}: broken XML in <siteinfo> ({error}). Download the file again.") from None
    found = ((element.text, element.get("key", "0")) for element in siteinfo.iter("namespace"))
    return {text: int(key) for text, key in found if text is not None and _INTEGER.fullmatch(key)}
