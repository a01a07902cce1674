"""Wikitext to prose: what a reader of the article sees in its paragraphs and lists, without markup.

Dropped: templates, tables, references, comments, headings, file and category links, galleries, formulas, code and
behaviour switches. Kept: running text, list items, the text of links.
"""

import re
from collections.abc import Iterable

import mwparserfromhell
from mwparserfromhell import nodes
from mwparserfromhell.wikicode import Wikicode

# What can be cut without parsing is cut first: parsing takes 15 times as long as all of this.
_COMMENT_OR_REFERENCE = re.compile(
    r"<!--.*?(?:-->|\Z)|<ref\b[^<>]*/>|<ref\b[^<>]*>(?:(?!<ref\b).)*?</ref\s*>", re.DOTALL | re.IGNORECASE
)
_INNERMOST_TEMPLATE = re.compile(r"\{\{[^{}]*+\}\}")
_INNERMOST_TABLE = re.compile(r"^[ :]*\{\|(?:(?!^[ :]*\{\||^\s*\|\}).)*+^\s*\|\}", re.DOTALL | re.MULTILINE)

# fmt: off
_DROPPED_TAGS = frozenset((
    "ce", "chem", "gallery", "graph", "hiero", "imagemap", "indicator", "inputbox", "mapframe", "maplink", "math",
    "ref", "references", "score", "section", "source", "style", "syntaxhighlight", "table", "templatedata",
    "templatestyles", "timeline",
))
# fmt: on
_INTERLANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*")
_STYLE = re.compile(r"'{2,5}")
_SWITCH = re.compile(r"__[^\W\d_a-z]+(?:_[^\W\d_a-z]+)*__")
_SPACES = re.compile(r"[^\S\n]+")
# What remains of "(; born 1815)" or "( , )" when templates for pronunciation and script are gone.
_HOLLOW_PARENTHESIS = re.compile(r" ?(?:\((?=[\s,;:/]*\))|（(?=[\s,;:、；]*）))[\s,;:/、；]*[)）]")
_OPENING_SEPARATOR = re.compile(r"([(（])[\s,;:、；]+")
_SPACE_BEFORE_STOP = re.compile(r" +([,.;:!?)])")


def prose(wikitext: str, dropped_links: frozenset[str]) -> str:
    """Return the prose of an article, one paragraph or list item a line; empty where it has none.

    Args:
        wikitext: the source of the page.
        dropped_links: lower-case namespace names ("file", "category", "datei") whose links show no text.
    """
    text = _without_templates(_COMMENT_OR_REFERENCE.sub("", wikitext))
    pieces: list[str] = []
    _collect(mwparserfromhell.parse(text, skip_style_tags=True), dropped_links, pieces)
    text = _SWITCH.sub("", _STYLE.sub("", "".join(pieces)))
    text = _HOLLOW_PARENTHESIS.sub("", _SPACES.sub(" ", text))
    text = _SPACE_BEFORE_STOP.sub(r"\1", _OPENING_SEPARATOR.sub(r"\1", text))
    lines = (line.strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if any(map(str.isalnum, line)))


def _without_templates(text: str) -> str:
    for innermost in (_INNERMOST_TEMPLATE, _INNERMOST_TABLE):
        count = 1
        while count:
            text, count = innermost.subn("", text)
    return text


def _collect(code: Wikicode, dropped_links: frozenset[str], pieces: list[str]) -> None:
    for node in code.nodes:
        match node:
            case nodes.Text():
                pieces.append(node.value)
            case nodes.Wikilink():
                _collect_link(node, dropped_links, pieces)
            case nodes.ExternalLink():
                if node.title is not None:
                    _collect(node.title, dropped_links, pieces)
            case nodes.Tag():
                _collect_tag(node, dropped_links, pieces)
            case nodes.HTMLEntity():
                pieces.append(node.normalize())
            case nodes.Heading():
                pieces.append("\n")
            case _:  # templates, their arguments, comments
                pass


def _collect_link(link: nodes.Wikilink, dropped_links: frozenset[str], pieces: list[str]) -> None:
    target = str(link.title).strip()
    prefix, colon, _ = target.partition(":")
    if colon and (
        prefix.strip().replace("_", " ").lower() in dropped_links
        or (link.text is None and _INTERLANGUAGE.fullmatch(prefix))
    ):
        return
    if link.text is not None and str(link.text).strip():
        _collect(link.text, dropped_links, pieces)
    else:
        pieces.append(target.removeprefix(":"))


def _collect_tag(tag: nodes.Tag, dropped_links: frozenset[str], pieces: list[str]) -> None:
    name = str(tag.tag).strip().lower()
    if name in _DROPPED_TAGS:
        return
    if name in ("br", "hr", "p", "div", "blockquote", "li", "dd", "dt"):
        pieces.append("\n")
    if tag.contents is not None:
        _collect(tag.contents, dropped_links, pieces)


def lowered(names: Iterable[str]) -> frozenset[str]:
    """Return namespace names as ``prose`` compares them."""
    return frozenset(name.replace("_", " ").lower() for name in names)
