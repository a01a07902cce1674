"""Wikimedia's ``pages-articles`` exports: pages framed by bytes, cleaned to prose, cut into pieces with their title.

Pages are found by searching for ``<page>`` and ``</page>``: inside the text of an export every ``<`` is escaped. Each
is parsed by itself, so no document type declaration ever reaches the XML parser. Format:
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
from .. import streams
from ..document import Document, OnRejected, Record, RecordError, Refusals, Tolerance, check_doc_id
from ..split import max_id_bytes, split_document
from ..streams import ByteStream, TextFile, read_more, stream_at, too_long
from .wikitext import lowered, prose

PASSAGE_WORDS = 100
"""Words a document where the configuration names no number, as in DPR and KILT."""

_ROOT = re.compile(rb"<([A-Za-z_][\w.:-]*)")
_DECLARED_ENCODING = re.compile(rb"<\?xml[^>]*encoding=[\"']([\w.-]+)[\"']")
_PAGE, _PAGE_END = b"<page>", b"</page>"
_INTEGER = re.compile(r"\s*-?[0-9]{1,9}\s*")
_BROKEN = "broken XML"
_MAX_HEADER_BYTES = 1 << 20
_TAIL_BYTES = 1 << 10
_MEDIA, _FILE, _CATEGORY = -2, 6, 14
# English names work in every wiki, whatever its language; Image is File's old name.
_ENGLISH_NAMES = ("media", "file", "image", "category")


class Page(NamedTuple):
    """What an export says of a page; ``wikitext`` is None where the text is deleted or no wikitext."""

    page_id: str
    namespace: int
    title: str
    redirect: bool
    wikitext: str | None


class MediaWikiSource:
    """A Wikimedia export; positions are offsets of ``<page>``, record ids are page ids.

    Its ``spec`` is complete once ``scan`` has run to the end, as that of other text files.
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
        self.file = file
        self.tolerance = tolerance
        self.namespaces = dict(namespaces)
        self.kept = kept
        self.passage_words = passage_words
        local = [name for name, key in self.namespaces.items() if key in (_MEDIA, _FILE, _CATEGORY)]
        self._dropped_links = lowered((*_ENGLISH_NAMES, *local))

    @classmethod
    def begin(cls, file: TextFile, config: CorpusConfig) -> Self:
        """Make a source by the file's ``<siteinfo>`` and the configuration.

        Raises:
            CorpusError: when the file is no MediaWiki export.
        """
        with stream_at(file, 0) as stream:
            namespaces = read_namespaces(stream)
        words = config.passage_words or PASSAGE_WORDS
        return cls(file, namespaces, config.namespaces, words, Tolerance(config.on_error))

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Rebuild from ``spec``."""
        return cls(
            TextFile.from_spec(spec["file"]),
            spec["namespaces"],
            tuple(spec["kept"]),
            spec["passage_words"],
            Tolerance.from_spec(spec),
        )

    @property
    def name(self) -> str:
        """The path shown in messages."""
        return self.file.name

    @property
    def path(self) -> str:
        """The file's absolute path."""
        return self.file.path

    @property
    def spec(self) -> dict[str, Any]:
        """All that another process needs to open this source: JSON-able."""
        return {
            "format": self.format,
            "file": self.file.spec,
            "namespaces": self.namespaces,
            "kept": list(self.kept),
            "passage_words": self.passage_words,
            **self.tolerance.spec,
        }

    def scan(self, dropped: Counter[str], on_rejected: OnRejected = bool) -> Iterator[Record]:
        """Parse every page but not its wikitext, and yield the records of those that are kept."""
        refusals = Refusals(self.name, self.tolerance, on_rejected)
        for position, number, _, page in refusals.until_damage(self._pages(0, None, refusals)):
            reason = self._reason_to_drop(page)
            if reason is None and page.wikitext is not None:
                yield Record(position, page.page_id, len(page.wikitext), number)
            elif reason is not None:
                dropped[reason] += 1

    def read(
        self, start: int, stop: int | None, on_rejected: OnRejected = bool, dropped: Counter[str] | None = None
    ) -> Iterator[Document]:
        """Yield the documents of the pages from position ``start`` up to, not including, ``stop``.

        A page of templates and tables only yields nothing, which shows when it is cleaned and not before; ``dropped``
        counts such pages as "empty article". Nor does ``scan`` see that a page's wikitext cannot be parsed.
        """
        refusals = Refusals(self.name, self.tolerance, on_rejected)
        for position, _, where, page in refusals.until_damage(self._pages(start, stop, refusals)):
            if self._reason_to_drop(page) is not None or page.wikitext is None:
                continue
            if refusals.is_repeated(position, page.page_id, where):
                continue
            try:
                text = self._prose(page, page.wikitext, where)
            except RecordError as error:
                refusals.record(error, position)
                continue
            if text:
                yield from split_document(Document(page.page_id, text, page.title), self.passage_words)
            elif dropped is not None:
                dropped["empty article"] += 1

    def _pages(self, start: int, stop: int | None, refusals: Refusals) -> Iterator[tuple[int, int, str, Page]]:
        """Yield (position, number counted from where reading begins, place, page) of each page that can be parsed."""
        with stream_at(self.file, start) as stream:
            for number, (position, raw) in enumerate(pages(stream, stop), 1):
                where = f"{self.name}, page {number}" if start == 0 else f"{self.name}, byte {position:,}"
                try:
                    page = self._parse(raw, where)
                except RecordError as error:
                    refusals.record(error, position)
                    continue
                yield position, number, where, page

    def _prose(self, page: Page, wikitext: str, where: str) -> str:
        try:
            return prose(wikitext, self._dropped_links)
        # Whatever goes wrong inside the parser is a matter of this page.
        except (ParserError, RecursionError, ValueError, TypeError, AttributeError, LookupError) as error:
            what = (
                f"its wikitext cannot be parsed ({type(error).__name__}: {error}). Report it, and leave the page out."
            )
            raise RecordError(f"{where} ({page.title!r})", what, "unparsable wikitext", page.page_id) from error

    def _reason_to_drop(self, page: Page) -> str | None:
        if page.redirect:
            return "redirect"
        if page.namespace not in self.kept:
            return "other namespace"
        if page.wikitext is None:
            return "not wikitext"
        return None if page.wikitext.strip() else "empty article"

    def _parse(self, raw: bytes | None, where: str) -> Page:
        if raw is None:
            raise too_long(where)
        if not raw.endswith(_PAGE_END):
            what = "the page is not closed before the next one begins; fetch the file again."
            raise RecordError(f"{where}{_title_hint(raw)}", what, _BROKEN)
        try:
            page = ElementTree.fromstring(raw)  # noqa: S314  begins with <page>: no DTD can be in it
        except ElementTree.ParseError as error:
            what = f"broken XML ({error}); fetch the file again."
            raise RecordError(f"{where}{_title_hint(raw)}", what, _BROKEN) from None
        title = page.findtext("title") or ""
        where = f"{where} ({title[:200]!r})"
        page_id = check_doc_id((page.findtext("id") or "").strip(), where, max_id_bytes(self.passage_words))
        namespace = page.findtext("ns")
        if namespace is None:  # exports before version 0.6
            namespace = str(self.namespaces.get(title.partition(":")[0], 0))
        if not _INTEGER.fullmatch(namespace):
            raise RecordError(where, f"the namespace {namespace[:20]!r} is no number.", _BROKEN, page_id)
        revision = next(reversed(page.findall("revision")), None)
        if revision is None:
            what = "the page has no revision; use a pages-articles export, which holds text."
            raise RecordError(where, what, "no revision", page_id)
        return Page(page_id, int(namespace), title, page.find("redirect") is not None, _wikitext(revision))


def _wikitext(revision: ElementTree.Element) -> str | None:
    if revision.findtext("model", "wikitext") != "wikitext":
        return None
    return revision.findtext("text", "")


def _title_hint(raw: bytes) -> str:
    title = re.search(rb"<title>([^<]*)</title>", raw)
    return f" ({title[1].decode(errors='replace')!r})" if title else ""


def pages(stream: ByteStream, stop: int | None) -> Iterator[tuple[int, bytes | None]]:
    """Yield (offset, bytes) of the pages that begin before ``stop``.

    A page that is not closed ends where the next one begins. One of more than 64 MiB is passed over, and None stands in
    its place.

    Raises:
        CorpusError: when the file ends before ``</mediawiki>``.
    """
    base, name = stream.offset, stream.file.name
    buffer, cursor = b"", 0
    while True:
        begin = buffer.find(_PAGE, cursor)
        if begin >= 0 and stop is not None and base + begin >= stop:
            stream.unread(buffer[begin:])
            return
        end = buffer.find(_PAGE_END, begin) if begin >= 0 else -1
        following = buffer.find(_PAGE, begin + 1, end if end >= 0 else len(buffer)) if begin >= 0 else -1
        if following >= 0 or end >= 0:
            cursor = following if following >= 0 else end + len(_PAGE_END)
            size = cursor - begin
            yield base + begin, buffer[begin:cursor] if size <= streams.MAX_RECORD_BYTES else None
            continue
        if begin >= 0 and len(buffer) - begin > streams.MAX_RECORD_BYTES:
            yield base + begin, None
            # From here on only the next page is looked for.
            cursor, begin = begin + len(_PAGE), -1
        kept = begin if begin >= 0 else max(cursor, len(buffer) - _TAIL_BYTES)
        more = read_more(stream, len(buffer) - kept)
        if not more:
            break
        buffer, base, cursor = buffer[kept:] + more, base + kept, 0
    if begin >= 0 or b"</mediawiki>" not in buffer[cursor:]:
        raise CorpusError(
            f"{name}, byte {base + len(buffer):,} of the text: the export ends before </mediawiki>. It is truncated;"
            " fetch it again."
        )


def read_namespaces(stream: ByteStream) -> dict[str, int]:
    """Read the names of the namespaces from an export's header.

    Raises:
        CorpusError: for XML that is no MediaWiki export, saying what its root element is.
    """
    name, head = stream.file.name, b""
    while b"</siteinfo>" not in head and b"<page>" not in head and len(head) < _MAX_HEADER_BYTES:
        block = stream.read()
        if not block:
            break
        head += block
    declared = _DECLARED_ENCODING.search(head[:200])
    if declared and not declared[1].lower().startswith((b"utf-8", b"utf-16")):
        raise CorpusError(f"{name}: the XML is in {declared[1].decode()}; convert it to UTF-8.")
    root = _ROOT.search(head)
    if root is None or root[1] != b"mediawiki":
        found = root[1].decode() if root else "none"
        raise CorpusError(
            f"{name}: XML whose root element is <{found}>, no MediaWiki export (<mediawiki>)."
            " Write its records as JSONL."
        )
    begin, end = head.find(b"<siteinfo>"), head.find(b"</siteinfo>")
    if begin < 0 or end < begin:
        return {}
    try:
        siteinfo = ElementTree.fromstring(head[begin : end + len(b"</siteinfo>")])  # noqa: S314  as for pages
    except ElementTree.ParseError as error:
        raise CorpusError(f"{name}: broken XML in <siteinfo> ({error}); fetch the file again.") from None
    found = ((element.text, element.get("key", "0")) for element in siteinfo.iter("namespace"))
    return {text: int(key) for text, key in found if text is not None and _INTEGER.fullmatch(key)}
