"""Wikimedia's ``pages-articles`` exports: pages cleaned to prose and cut into pieces that keep their title.

Each page is parsed on its own, so that no document type declaration ever reaches the XML parser. Format:
https://www.mediawiki.org/wiki/Help:Export#Export_format
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self
from xml.etree import ElementTree

from ...configs.corpus import CorpusConfig
from ...errors import CorpusError
from ..document import Document, Dropped, Event, Record, check_doc_id
from ..framing import too_long
from ..recognise import Recognised
from ..rejected import OnRejected, RecordError, Tolerance
from ..split import max_id_bytes
from ..streams import ByteStream, TextFile, stream_at
from .cleaning import cleaning_of
from .text_source import FileSource
from .wiki.names import is_redirect, namespace_numbers, normalised
from .wiki.pages import PAGE_END, SeenIds, Version, newest_versions, version
from .wikitext import prose

PASSAGE_WORDS = 100
"""Words of a document if the configuration sets no number, as in DPR and KILT."""

_ROOT = re.compile(rb"<([A-Za-z_][\w.:-]*)")
_DECLARED_ENCODING = re.compile(rb"<\?xml[^>]*encoding=[\"']([\w.-]+)[\"']")
_LANGUAGE = re.compile(rb"<mediawiki\b[^>]*\bxml:lang=[\"']([\w-]+)[\"']")
_INTEGER = re.compile(r"\s*-?[0-9]{1,9}\s*")
_BROKEN = "broken XML"
# Bytes in which the header with the namespaces has to end; that of the English Wikipedia has 3 KB.
_MAX_HEADER_BYTES = 1 << 20
# Largest number of pages with versions behind other pages: each worker keeps some 100 bytes for one.
_MAX_SCATTERED = 100_000
_OLDER = "older revision"
_MEDIA, _FILE, _CATEGORY = -2, 6, 14


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
    """A Wikimedia export. Positions are offsets of ``<page>``; of several versions in succession, that of the first.

    As for other text files, the ``spec`` is complete once ``scan`` has run to its end, and ``keep_newest`` after it.

    Args:
        file: file to read.
        namespaces: numbers of the namespaces by their names in the header.
        kept: numbers of the namespaces whose pages are kept.
        passage_words: number of words of a document.
        tolerance: treatment of pages that cannot be used.
        language: code of the wiki's language; empty if it is unknown.
        newest: positions of the newest versions, by page id, of the pages that the file holds more than once.
    """

    format: ClassVar[str] = "mediawiki"
    enters_anywhere: ClassVar[bool] = True

    def __init__(
        self,
        file: TextFile,
        namespaces: Mapping[str, int],
        kept: tuple[int, ...],
        passage_words: int,
        tolerance: Tolerance = Tolerance(),  # noqa: B008
        language: str = "",
        newest: Mapping[str, int] = MappingProxyType({}),
    ):
        super().__init__(file, passage_words, tolerance)
        self.namespaces = dict(namespaces)
        self.kept = kept
        self.language = language
        self.newest = dict(newest)
        self._numbers = namespace_numbers(namespaces, language)
        dropped = (_MEDIA, _FILE, _CATEGORY)
        self._dropped_links = frozenset(name for name, number in self._numbers.items() if number in dropped)
        self._pages = SeenIds()
        self._cleaning = cleaning_of([self.format, passage_words, sorted(self._dropped_links)])

    @property
    def cleaning(self) -> str | None:
        """Identity of the cleaning of wikitext."""
        return self._cleaning

    @classmethod
    def begin(cls, found: Recognised, config: CorpusConfig) -> Self:
        """Open a recognised file; its ``<siteinfo>`` names the namespaces.

        Raises:
            CorpusError: if the file is not a MediaWiki export.
        """
        with stream_at(found.text, 0) as stream:
            namespaces, language = read_header(stream)
        words = config.passage_words or PASSAGE_WORDS
        return cls(found.text, namespaces, config.namespaces, words, Tolerance(config.on_error), language)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Rebuild the source from its ``spec``."""
        return cls(
            TextFile.from_spec(spec["file"]),
            spec["namespaces"],
            tuple(spec["kept"]),
            spec["passage_words"],
            Tolerance.from_spec(spec),
            # Plans of earlier versions lack both.
            spec.get("language", ""),
            spec.get("newest", {}),
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
            "language": self.language,
            "newest": self.newest,
            **self.tolerance.spec,
        }

    def scan(self, dropped: Counter[str], on_rejected: OnRejected = bool) -> Iterator[Record]:
        """Parse every page except for its wikitext, and yield the records of the pages that are kept."""
        self._pages = SeenIds()
        yield from super().scan(dropped, on_rejected)

    def see(self, ids: Iterable[str]) -> None:
        """Note the ids of further pages, so that ``keep_newest`` finds those that occur again."""
        self._pages.add(ids)

    def keep_newest(self) -> bool:
        """Keep the newest version of each page that occurs again behind other pages, under the same title.

        Returns:
            True if there are such pages. The records are other ones then: scan them again.

        Raises:
            CorpusError: there are too many of them.
        """
        scattered, self._pages = self._pages.repeated, SeenIds()
        if not scattered:
            return False
        if len(scattered) > _MAX_SCATTERED:
            raise CorpusError(
                f"{self.name}: more than {_MAX_SCATTERED:,} pages occur again behind other pages. Sort the pages by"
                " their ids, or use an export of the current revisions."
            )
        newest: dict[str, tuple[Version, int]] = {}
        titles: dict[str, str] = {}
        with stream_at(self.file, 0) as stream, suppress(CorpusError):
            for raw in newest_versions(stream, None):
                if (page_id := raw.page_id) in scattered:
                    found = version(raw.xml), raw.position
                    newest[page_id] = max(newest.get(page_id, found), found)
                    # Two pages that share an id are not versions of each other: the id is repeated.
                    if titles.setdefault(page_id, raw.title) != raw.title:
                        scattered.remove(page_id)
                        del newest[page_id]
        self.newest = {page_id: position for page_id, (_, position) in newest.items()}
        return bool(self.newest)

    def walk(self, start: int, stop: int | None) -> Iterator[Event]:
        """Yield the pages between two positions in their newest versions: the source text of those that are kept.

        Wikitext is not cleaned here. So only ``documents`` finds that it cannot be parsed, or has no prose.
        """
        with stream_at(self.file, start) as stream:
            for raw in newest_versions(stream, stop):
                number = raw.number + self.before(start)
                place = self.place(start, number, raw.position)
                is_newest = self.newest.get(raw.page_id, raw.position) == raw.position
                if older := raw.older + (not is_newest):
                    yield raw.position, number, place, Dropped(_OLDER, older)
                if is_newest:
                    yield raw.position, number, place, self._item(raw.xml, raw.page_id, place)

    def documents(self, document: Document, place: str) -> Iterable[Document]:
        """Cut the prose of a page into documents; there are none if the page only consists of templates and tables.

        Raises:
            RecordError: if its wikitext cannot be parsed.
        """
        text = self._prose(document, place)
        return super().documents(replace(document, text=text), place) if text else ()

    def numbered(self, number: int) -> str:
        """Return the place of a page by its number, for messages."""
        return f"{self.name}, page {number}"

    def _item(self, xml: bytes | None, page_id: str, place: str) -> Document | RecordError | Dropped:
        try:
            page = self._parse(xml, place)
        except RecordError as error:
            return error
        reason = self._reason_to_drop(page)
        if reason is not None or page.wikitext is None:
            return Dropped(reason or "not wikitext", doc_id=page_id)
        return Document(page.page_id, page.wikitext, page.title)

    def _prose(self, page: Document, place: str) -> str:
        try:
            return prose(page.text, self._dropped_links)
        # Any error inside the cleaner concerns this page only.
        except (RecursionError, ValueError, TypeError, AttributeError, LookupError) as error:
            problem = (
                f"its wikitext cannot be parsed ({type(error).__name__}: {error})."
                " Skip the page with --on-error skip, and report this error."
            )
            raise RecordError(f"{place} ({page.title!r})", problem, "unparsable wikitext", page.doc_id) from error

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
        if not raw.endswith(PAGE_END):
            problem = "the page has no </page>. Download the file again."
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
            prefix, colon, _ = title.partition(":")
            namespace = str(self._numbers.get(normalised(prefix), 0) if colon else 0)
        if not _INTEGER.fullmatch(namespace):
            raise RecordError(
                place, f"the namespace {namespace[:20]!r} is not a number. Download the file again.", _BROKEN, page_id
            )
        revision = page.find("revision")
        if revision is None:
            problem = "the page has no revision. Use a pages-articles export, which holds the text."
            raise RecordError(place, problem, "no revision", page_id)
        wikitext = _wikitext(revision)
        # Exports before version 0.4 have no element for it.
        redirect = page.find("redirect") is not None or (wikitext is not None and is_redirect(wikitext))
        return WikiPage(page_id, int(namespace), title, redirect, wikitext)


def _wikitext(revision: ElementTree.Element) -> str | None:
    if revision.findtext("model", "wikitext") != "wikitext":
        return None
    return revision.findtext("text", "")


def _title_hint(raw: bytes) -> str:
    title = re.search(rb"<title>([^<]*)</title>", raw)
    return f" ({title[1].decode(errors='replace')!r})" if title else ""


def read_header(stream: ByteStream) -> tuple[dict[str, int], str]:
    """Return what the header of an export says of its wiki.

    Returns:
        The number of each namespace by its name, and the code of the language; empty if the header lacks them.

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
    found = _LANGUAGE.search(head)
    language = found[1].decode() if found else ""
    begin, end = head.find(b"<siteinfo>"), head.find(b"</siteinfo>")
    if begin < 0 or end < begin:
        return {}, language
    try:
        siteinfo = ElementTree.fromstring(head[begin : end + len(b"</siteinfo>")])  # noqa: S314  as for pages
    except ElementTree.ParseError as error:
        raise CorpusError(f"{name}: broken XML in <siteinfo> ({error}). Download the file again.") from None
    named = ((element.text, element.get("key", "0")) for element in siteinfo.iter("namespace"))
    return {text: int(key) for text, key in named if text is not None and _INTEGER.fullmatch(key)}, language
