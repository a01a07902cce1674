"""Resolve first in wikitext what MediaWiki resolves first: comments, literal text, templates and language variants.

The order is MediaWiki's. Comments and literal regions are found from left to right, so that an opening mark that is
only shown opens nothing. What is not closed within the text stays as text. All functions take time linear in the length
of the text, apart from copying nested defaults and variants.
"""

import re
from dataclasses import dataclass

ATTRIBUTES = r"""(?:(?:=\s*"[^"<\n]*"|=\s*'[^'<\n]*'|[^<>])*+(?=>)|[^<>]*+)"""
"""Pattern of the attributes of a tag, which may hold ``>`` in quotes."""

# Regions whose text is shown as it stands.
_SHOWN_REGIONS = ("nowiki", "pre")
# fmt: off
DROPPED_REGIONS = (
    "categorytree", "ce", "chem", "dynamicpagelist", "gallery", "graph", "hiero", "imagemap", "includeonly",
    "indicator", "inputbox", "mapframe", "maplink", "math", "ref", "references", "score", "script", "source", "style",
    "syntaxhighlight", "templatedata", "templatestyles", "timeline",
)
"""Tags whose content is no prose."""
# fmt: on

LITERAL_TAGS = frozenset((*_SHOWN_REGIONS, *DROPPED_REGIONS))
"""Tags whose content MediaWiki does not read as wikitext of the page."""

_REGION = re.compile(
    rf"<(?:!--|(?P<name>{'|'.join(sorted(LITERAL_TAGS))})(?![\w-])(?P<attributes>{ATTRIBUTES})>)", re.IGNORECASE
)
_TAGS_OF = {
    name: re.compile(rf"<(?P<end>/?){name}(?![\w-])(?P<attributes>{ATTRIBUTES})>", re.IGNORECASE)
    for name in DROPPED_REGIONS
}
_ENDS = {name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in _SHOWN_REGIONS} | {"": re.compile("-->")}

# Marks in literal text are replaced by characters that XML cannot hold.
_HIDDEN = dict(zip(map(ord, "{}[]<>|=*#:;"), "\x01\x02\x03\x04\x05\x06\x07\x08\x0e\x0f\x10\x11", strict=True))
_UNHIDDEN = {ord(hidden): chr(mark) for mark, hidden in _HIDDEN.items()}

# Patterns that begin with a character are searched for several times faster than with a repetition, as in \{{2,}.
_BRACES = re.compile(r"\{\{+|\}\}+")
# Text up to the first | outside of a link.
_BEFORE_PIPE = re.compile(r"(?:[^|\[]|\[\[[^\[\]]*+\]\]|\[)*+")

_VARIANT = re.compile(r"-\{((?:(?!-\{|\}-).)*+)\}-", re.DOTALL)
# MediaWiki reads no deeper ones either.
_VARIANT_DEPTH = 10
_CODE = r"(?:[a-z]{2,3}|[A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8})+)"
_FLAGS = re.compile(rf"\s*(?:(?:[A-Z-]|{_CODE})\s*(?:;\s*|(?=$)))*+")
_NEXT_RULE = re.compile(rf";\s*(?=(?:[^;:=]*+=>\s*)?{_CODE}\s*:)")
_RULE = re.compile(rf"\s*(?:[^:=]*+=>\s*)?{_CODE}\s*:(.*)", re.DOTALL)
# H defines a rule, T sets the title, - removes a rule, N names a variant: these show no text.
_SILENT_FLAGS = frozenset("HTN-")


def without_literals(text: str) -> str:
    """Cut out comments and the regions that hold no prose, and hide the marks in text that is shown as it stands.

    A region is not closed if another one of its kind begins before its end. Then only its tag is cut out.
    """
    pieces: list[str] = []
    begin = 0
    without_end: set[str] = set()
    while region := _REGION.search(text, begin):
        pieces.append(text[begin : region.start()])
        begin = region.end()
        name = (region["name"] or "").lower()
        if name in without_end or _is_empty(region):
            continue
        end = _ENDS[name].search(text, begin) if name in _ENDS else _end_of_dropped(text, name, begin)
        if end is None:
            if name in _ENDS:
                without_end.add(name)
            continue
        if name in _SHOWN_REGIONS:
            line = "\n" if name == "pre" else ""
            pieces += (line, text[begin : end.start()].translate(_HIDDEN), line)
        begin = end.end()
    return "".join((*pieces, text[begin:])) if pieces else text


def unhidden(text: str) -> str:
    """Return the text with the marks that ``without_literals`` has hidden."""
    return text.translate(_UNHIDDEN) if any(hidden in text for hidden in _HIDDEN.values()) else text


def _is_empty(tag: re.Match[str]) -> bool:
    return (tag["attributes"] or "").rstrip().endswith("/")


def _end_of_dropped(text: str, name: str, begin: int) -> re.Match[str] | None:
    for tag in _TAGS_OF[name].finditer(text, begin):
        if tag["end"] and not tag["attributes"].strip():
            return tag
        if not tag["end"] and not _is_empty(tag):
            return None
    return None


@dataclass(slots=True)
class _Open:
    """Two or more opening braces.

    Attributes:
        index: index of their piece, which is empty as long as they may be closed.
        count: number of braces that are not closed.
        name: text before the first |, if the braces may be those of a parameter.
        rest: index of the first piece behind the second |.
    """

    index: int
    count: int
    name: str | None = None
    rest: int | None = None


def without_templates(text: str) -> str:
    """Cut out templates, and show the defaults of parameters: ``{{{name|default}}}``.

    Braces that are not closed, and closing ones without an opening, stay.
    """
    if "{{" not in text:
        return text
    pieces: list[str] = []
    opened: list[_Open] = []
    has_variants = "}-" in text
    begin = 0
    for braces in _BRACES.finditer(text):
        start, end = braces.span()
        if has_variants and braces[0][0] == "{" and (end - start) % 2 and text[start - 1 : start] == "-":
            # In -{{{name}}}- the outer braces belong to a language variant.
            start += 1
        _add_text(text[begin:start], pieces, opened)
        begin = end
        if braces[0][0] == "{":
            opened.append(_Open(len(pieces), end - start))
            pieces.append("")
        else:
            pieces.append("}" * _close(end - start, pieces, opened))
    _add_text(text[begin:], pieces, opened)
    for braces in opened:
        pieces[braces.index] = "{" * braces.count + (braces.name or "")
    return "".join(pieces)


def _add_text(text: str, pieces: list[str], opened: list[_Open]) -> None:
    """Add text; within a parameter, put its name aside and remember where its default ends."""
    if opened and opened[-1].count > 2:
        parameter = opened[-1]
        if parameter.name is None and "|" in text:
            name, pipe, text = text.partition("|")
            parameter.name = "".join((*pieces[parameter.index + 1 :], name, pipe))
            del pieces[parameter.index + 1 :]
        if parameter.name is not None and parameter.rest is None:
            default = _BEFORE_PIPE.match(text)
            assert default is not None
            if default.end() < len(text):
                pieces.append(default[0])
                parameter.rest = len(pieces)
                text = text[default.end() :]
    pieces.append(text)


def _close(count: int, pieces: list[str], opened: list[_Open]) -> int:
    """Close templates and parameters, the inner ones first, and return how many closing braces are left."""
    while count > 1 and opened:
        braces = opened[-1]
        # Four and four are two templates: a parameter would leave a brace on either side.
        width = 2 if min(count, braces.count) == 2 or count == braces.count == 4 else 3
        if width == 2 or braces.name is None:
            del pieces[braces.index + 1 :]
        elif braces.rest is not None:
            del pieces[braces.rest :]
        braces.name = braces.rest = None
        count -= width
        braces.count -= width
        if braces.count < 2:
            opened.pop()
            pieces[braces.index] = "{" * braces.count
    return count


def with_one_variant(text: str) -> str:
    """Show the first variant of each ``-{zh-hans:…; zh-hant:…}-``, and nothing of those that only set a rule.

    Syntax: https://www.mediawiki.org/wiki/Writing_systems/Syntax
    """
    found = 1 if "-{" in text else 0
    for _ in range(_VARIANT_DEPTH):
        if not found:
            break
        text, found = _VARIANT.subn(_first_variant, text)
    return text


def _first_variant(markup: re.Match[str]) -> str:
    flags, pipe, rules = markup[1].partition("|")
    if not pipe or not _FLAGS.fullmatch(flags):
        flags, rules = "", markup[1]
    names = {flag.strip() for flag in flags.split(";")}
    if names & _SILENT_FLAGS:
        return ""
    found = [_RULE.match(part) for part in _NEXT_RULE.split(rules)]
    if found[0] is None:
        return rules
    return next((rule[1].strip().rstrip(";") for rule in found if rule and rule[1].strip(" ;")), "")
