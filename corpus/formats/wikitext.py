"""Wikitext to prose: the paragraphs and lists of an article without their markup.

Dropped: templates, tables, references, comments, headings, file and category links, galleries, formulas, code and
behaviour switches. Kept: running text, list items, the text of links. Broken markup costs no prose: what is not closed
loses its mark or stays as it is.

The text is read in MediaWiki's order: what its preprocessor resolves, then tables, tags, links and lines. Each step is
a regular expression or one walk along the text, in time linear in its length.
"""

import html
import re
from collections.abc import Iterable

from .wiki.names import CATEGORIES, normalised
from .wiki.preprocessor import (
    ATTRIBUTES,
    LITERAL_TAGS,
    unhidden,
    with_one_variant,
    without_literals,
    without_templates,
)

_TABLE_BEGIN = re.compile(r"[ :]*\{\|")
_TABLE_END = re.compile(r"\s*\|\}")
# An attribute of a table's cell. Prose in which an equals sign stands is none.
_CELL_ATTRIBUTE = r"""\s*+(?:nowrap(?=[\s|])|[\w:-]++\s*+=\s*+(?:"[^"|\n]*+"|'[^'|\n]*+'|[^\s|\[\]<>"']++))"""
# The marks of a table's line, with the attributes of its first cell.
_TABLE_LINE = re.compile(rf"^[ :]*(?:\{{\|.*|\|-.*|\|\}}|(?:\|\+?|!)(?:(?:{_CELL_ATTRIBUTE})++\s*+\|(?!\|))?)")
_HTML_TABLE = re.compile(rf"<table(?![\w-]){ATTRIBUTES}>(?:[^<]|<(?!/?table(?![\w-])))*+</table\s*>", re.IGNORECASE)

# Tags that MediaWiki or a browser shows as the beginning of a line.
# fmt: off
_LINE_TAGS = frozenset((
    "article", "blockquote", "br", "center", "dd", "div", "dl", "dt", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li",
    "ol", "p", "poem", "pre", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul",
))
# All other tags of HTML and MediaWiki. What is no tag, such as a comparison, stays.
_TAGS = _LINE_TAGS | LITERAL_TAGS | frozenset((
    "a", "abbr", "acronym", "address", "applet", "area", "aside", "audio", "b", "base", "bdi", "bdo", "big", "blink",
    "body", "button", "canvas", "caption", "cite", "code", "col", "colgroup", "data", "del", "details", "dfn", "em",
    "embed", "fieldset", "figcaption", "figure", "font", "footer", "form", "frame", "head", "header", "html", "i",
    "iframe", "img", "input", "ins", "kbd", "label", "languages", "link", "listing", "main", "map", "mark", "meta",
    "nav", "nobr", "noinclude", "noscript", "object", "onlyinclude", "option", "param", "phonos", "picture", "q",
    "rb", "rp", "rt", "rtc", "ruby", "s", "samp", "section", "select", "small", "span", "strike", "strong", "sub",
    "summary", "sup", "svg", "textarea", "time", "title", "translate", "tt", "tvar", "u", "var", "video", "wbr", "xmp",
))
# fmt: on
_TAG = re.compile(rf"<(?:/\s*)?([a-z][a-z0-9]*)(?![\w-])({ATTRIBUTES})>", re.IGNORECASE)

_LINK = re.compile(r"\[\[((?:[^\[\]]|\[(?!\[)|\](?!\]))*+)\]\]")
# Depth to which links are resolved: captions of files contain links, and seldom files with captions.
_LINK_DEPTH = 20
_EXTERNAL_LINK = re.compile(
    r"\[(?:(?:[a-z][a-z0-9+.-]{0,20}:)?//|(?:mailto|news|tel|sip|urn|geo|magnet):)(?:(?!'')[^\s\[\]])*+"
    r"[^\S\n]*([^\[\]\n]*)\]",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"\[?\b(?:https?|ftps?)://(?:[^\s\[\]<>\"()]|\([^\s\[\]<>\"()]*\))+(?<![.,:;!?'])", re.IGNORECASE)
# A file is named by its extension, whatever the wiki calls its namespace.
_FILE = re.compile(
    r"[^:/|]+:[^:|]*\.(?:jpe?g|jpe|png|gif|svgz?|tiff?|webp|avif|heic|apng|xcf|bmp|ico|psd|pdf|djvu?|og[agvx]|opus|mp[34g]"
    r"|mpeg|m4[av]|wav|flac|midi?|webm|mov|avi|stl)\s*",
    re.IGNORECASE,
)
_INTERLANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*|simple", re.IGNORECASE)

_STYLE = re.compile(r"''{1,4}")
_SWITCH = re.compile(
    r"(?:__|＿＿)(?:(?i:(?:no|force)?toc|no(?:editsection|gallery|index|title|tc|cc)|index|hiddencat|newsectionlink)"
    r"|[^\s\da-z_＿]+(?:_[^\s\da-z_＿]+)*)(?:__|＿＿)"
)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});", re.IGNORECASE)
_OTHER_SPACE = re.compile(r"[^\S\n ]")
_SPACES = re.compile(r"  +")
# Parentheses such as "( , )" or "(; born 1815)", left when templates for pronunciation and script are cut out.
_HOLLOW_PARENTHESIS = re.compile(r"(?:\((?=[\s,;:/]*\))|（(?=[\s,;:、；]*）))[\s,;:/、；]*[)）]")
_OPENING_SEPARATOR = re.compile(r"([(（])[\s,;:、；]+")
_STOP_BEHIND_SPACE = re.compile(r"[,.;:!?)](?<= .)")
_LIST_MARK = re.compile(r"([*#:;]+)[^\S\n]*")


def prose(wikitext: str, dropped_links: frozenset[str]) -> str:
    """Return the prose of an article, one paragraph or list item per line; an empty string if it has none.

    Args:
        wikitext: source text of the page.
        dropped_links: namespaces whose links are dropped ("file", "category", "datei"), as ``lowered`` returns them.
    """
    text = with_one_variant(without_templates(without_literals(wikitext)))
    text = _TAG.sub(_tag, _without_tables(text))
    text = _EXTERNAL_LINK.sub(r"\1", _without_links(text, dropped_links))
    if "://" in text:
        text = _ADDRESS.sub("", text)
    text = _STYLE.sub("", text)
    if "__" in text or "＿＿" in text:
        text = _SWITCH.sub("", text)
    text = _SPACES.sub(" ", _OTHER_SPACE.sub(" ", _ENTITY.sub(_character, text)))
    text = _without_spaces_before_stops(_OPENING_SEPARATOR.sub(r"\1", _without_hollow_parentheses(text)))
    lines = unhidden("\n".join(map(_line, text.split("\n")))).split("\n")
    return "\n".join(line.strip() for line in lines if any(map(str.isalnum, line)))


def lowered(names: Iterable[str]) -> frozenset[str]:
    """Return namespace names in the form that ``prose`` compares."""
    return frozenset(map(normalised, names))


def _without_tables(text: str) -> str:
    """Cut out tables with the tables inside them. Of a table that is not closed, the text of the cells stays."""
    if "<table" in text.lower():
        found = 1
        while found:
            text, found = _HTML_TABLE.subn("", text)
    if "{|" not in text:
        return text
    lines: list[str] = []
    opened: list[int] = []
    for line in text.split("\n"):
        rest = line
        while opened and (end := _TABLE_END.match(rest)):
            rest = rest[end.end() :]
            del lines[opened.pop() :]
        if _TABLE_BEGIN.match(rest):
            opened.append(len(lines))
        lines.append(rest)
    if opened:
        first = opened[0]
        lines[first:] = (_TABLE_LINE.sub("", line, count=1).replace("||", " ") for line in lines[first:])
    return "\n".join(lines)


def _tag(tag: re.Match[str]) -> str:
    name = tag[1].lower()
    # "a <b and c> d" compares.
    if name not in _TAGS or (len(name) == 1 and tag[2].strip(" /\\") and "=" not in tag[2]):
        return tag[0]
    return "\n" if name in _LINE_TAGS else ""


def _without_links(text: str, dropped_links: frozenset[str]) -> str:
    """Replace links by their texts, inner ones first."""

    def label(link: re.Match[str]) -> str:
        target, _, shown = link[1].partition("|")
        target = target.strip()
        prefix, colon, _ = target.partition(":")
        if colon and prefix:
            name = normalised(prefix)
            if (
                name in dropped_links
                or _FILE.fullmatch(target)
                or (not shown and _INTERLANGUAGE.fullmatch(prefix))
                or (name in CATEGORIES and _is_alone(link))
            ):
                return ""
        return shown if shown.strip() else target.removeprefix(":")

    found = 1
    for _ in range(_LINK_DEPTH):
        if not found or "[[" not in text:
            break
        text, found = _LINK.subn(label, text)
    return text


def _is_alone(link: re.Match[str]) -> bool:
    """Return True if the link is a line of its own, as categories are."""
    text, (begin, end) = link.string, link.span()
    return (begin == 0 or text[begin - 1] == "\n") and (end == len(text) or text[end] == "\n")


def _without_hollow_parentheses(text: str) -> str:
    """Cut out parentheses that hold separators only, each with a space before it."""
    pieces: list[str] = []
    begin = 0
    for hollow in _HOLLOW_PARENTHESIS.finditer(text):
        start = hollow.start()
        pieces.append(text[begin : start - 1 if start > begin and text[start - 1] == " " else start])
        begin = hollow.end()
    return "".join((*pieces, text[begin:])) if pieces else text


def _without_spaces_before_stops(text: str) -> str:
    pieces: list[str] = []
    begin = 0
    for stop in _STOP_BEHIND_SPACE.finditer(text):
        pieces.append(text[begin : stop.start()].rstrip(" "))
        begin = stop.start()
    return "".join((*pieces, text[begin:])) if pieces else text


def _character(entity: re.Match[str]) -> str:
    # U+FFFD stands for what is not a character, e.g. half of a surrogate pair.
    return html.unescape(entity[0]).replace("\ufffd", "")


def _line(line: str) -> str:
    """Return a line without its list mark; an empty one for a heading."""
    line = line.strip()
    if line.startswith("=") and line.endswith("="):
        return ""
    if mark := _LIST_MARK.match(line):
        line = line[mark.end() :]
        if ";" in mark[1]:
            # "; term : definition"
            line = re.sub(r"\s*:(?!//)\s*", "\n", line, count=1)
    return line
