"""Wikitext to prose: the paragraphs and lists of an article without their markup.

Dropped: templates, tables, references, comments, headings, file and category links, galleries, formulas, code and
behaviour switches. Kept: running text, list items, the text of links.
"""

import re
from collections import Counter
from collections.abc import Iterable

import mwparserfromhell
from mwparserfromhell import nodes
from mwparserfromhell.wikicode import Wikicode

# Whatever can be cut without the parser is cut first, because parsing it takes 15 times as long.
_COMMENT_OR_REFERENCE = re.compile(
    r"<!--.*?(?:-->|\Z)|<ref\b[^<>]*/>|<ref\b[^<>]*>(?:(?!<ref\b).)*?</ref\s*>", re.DOTALL | re.IGNORECASE
)
_BRACE = re.compile(r"[{}]")
_TABLE_BEGIN = re.compile(r"[ :]*\{\|")
_TABLE_END = re.compile(r"\s*\|\}")
# For each opening bracket that is never closed the parser reads to the end of the text and then goes back, which takes
# time quadratic in their number. So these are hidden from the parser, which would show them unchanged anyway.
_BRACKET = re.compile(
    r"(?P<open>\{\{|\[\[|\[(?=[a-z]+:|//))|(?P<close>\}\}|\]\]|\])|(?P<table>^[ :]*\{\|)|(?P<line>\n)"
    r"|<(?P<end>/?)(?P<name>[a-z][a-z0-9]*)\b[^<>]*?(?P<empty>/?)>|(?P<less><)(?!!--)",
    re.IGNORECASE | re.MULTILINE,
)
_CLOSED_BY = {"{{": "}}", "[[": "]]", "[": "]"}
# Hidden brackets are replaced by characters that XML cannot hold.
_HIDDEN = {"{": "\x01", "[": "\x02", "<": "\x03"}
_SHOWN = {ord(hidden): bracket for bracket, hidden in _HIDDEN.items()}
# Tags that need no end tag.
_SINGLE_TAGS = frozenset(("br", "wbr", "hr", "meta", "link", "img", "li", "dt", "dd", "th", "td", "tr"))

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
# Parentheses such as "( , )" or "(; born 1815)", left when templates for pronunciation and script are cut out.
_HOLLOW_PARENTHESIS = re.compile(r" ?(?:\((?=[\s,;:/]*\))|（(?=[\s,;:、；]*）))[\s,;:/、；]*[)）]")
_OPENING_SEPARATOR = re.compile(r"([(（])[\s,;:、；]+")
_SPACE_BEFORE_STOP = re.compile(r" +([,.;:!?)])")


def prose(wikitext: str, dropped_links: frozenset[str]) -> str:
    """Return the prose of an article, one paragraph or list item per line; an empty string if it has none.

    Args:
        wikitext: source text of the page.
        dropped_links: namespaces whose links are dropped ("file", "category", "datei"), as ``lowered`` returns them.
    """
    text = _without_unclosed(_without_tables(_without_templates(_COMMENT_OR_REFERENCE.sub("", wikitext))))
    pieces: list[str] = []
    _collect(mwparserfromhell.parse(text, skip_style_tags=True), dropped_links, pieces)
    text = _SWITCH.sub("", _STYLE.sub("", "".join(pieces).translate(_SHOWN)))
    text = _HOLLOW_PARENTHESIS.sub("", _SPACES.sub(" ", text))
    text = _SPACE_BEFORE_STOP.sub(r"\1", _OPENING_SEPARATOR.sub(r"\1", text))
    lines = (line.strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if any(map(str.isalnum, line)))


def _without_templates(text: str) -> str:
    """Cut out templates, inner ones first. Templates that contain single braces are left to the parser."""
    pieces: list[str] = []
    braces: list[tuple[str, int]] = []  # the braces in pieces, with their indices
    begin = 0
    for match in _BRACE.finditer(text):
        if match.start() > begin:
            pieces.append(text[begin : match.start()])
        begin = match.end()
        if match[0] == "}" and [brace for brace, _ in braces[-3:]] == ["{", "{", "}"]:
            (_, first), (_, second), (_, third) = braces[-3:]
            if second == first + 1 and third == len(pieces) - 1:
                del pieces[first:], braces[-3:]
                continue
        braces.append((match[0], len(pieces)))
        pieces.append(match[0])
    return "".join((*pieces, text[begin:]))


def _without_tables(text: str) -> str:
    """Cut out tables with the tables inside them. A table that is not closed stays."""
    if "{|" not in text:
        return text
    lines: list[str] = []
    open_tables: list[int] = []
    for line in text.split("\n"):
        rest = line
        while open_tables and (end := _TABLE_END.match(rest)):
            rest = rest[end.end() :]
            del lines[open_tables.pop() :]
        if _TABLE_BEGIN.match(rest):
            open_tables.append(len(lines))
        lines.append(rest)
    return "\n".join(lines)


def _without_unclosed(text: str) -> str:
    """Hide brackets and tags that are not closed within the bracket or tag around them."""
    hidden = _unclosed(text)
    if not hidden:
        return text
    characters = list(text)
    for place in hidden:
        characters[place] = _HIDDEN[text[place]]
    return "".join(characters)


def _unclosed(text: str) -> list[int]:
    """Return the indices of the characters to hide."""
    open_: list[tuple[str, int]] = []
    counts: Counter[str] = Counter()  # number of open brackets and tags, by closing token
    hidden: list[int] = []

    def close(closer: str) -> None:
        if counts[closer]:
            while open_:
                expected, place = open_.pop()
                counts[expected] -= 1
                if expected == closer:
                    return
                hide(place)

    def hide(place: int) -> None:
        hidden.extend((place, place + 1) if text[place : place + 2] in ("{{", "[[") else (place,))

    for match in _BRACKET.finditer(text):
        opened, name = match["open"], (match["name"] or "").lower()
        if opened is not None or (name and not match["end"] and not match["empty"] and name not in _SINGLE_TAGS):
            closer = name if opened is None else _CLOSED_BY[opened]
            open_.append((closer, match.start()))
            counts[closer] += 1
        elif match["close"] is not None:
            close(match["close"])
        elif match["end"]:
            close(name)
        elif match["table"] is not None:
            hidden.append(match.end() - 2)
        elif match["less"] is not None:
            hidden.append(match.start())
        elif match["line"] is not None:
            # An external link ends with its line.
            while open_ and open_[-1][0] == "]":
                counts["]"] -= 1
                hide(open_.pop()[1])
    for _, place in open_:
        hide(place)
    return hidden


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
                # Half of a surrogate pair is not a character.
                pieces.append(node.normalize().encode(errors="ignore").decode())
            case nodes.Heading():
                pieces.append("\n")
            case _:  # templates, template arguments, comments
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
    """Return namespace names in the form that ``prose`` compares."""
    return frozenset(name.replace("_", " ").lower() for name in names)
