"""The words of MediaWiki in all its languages: names of namespaces, and words that make a redirect.

A wiki knows more of them than the header of its dump lists: English ones, and older and other names in its language.
They are read from ``names.json``, which ``tests/corpus/formats/wiki/write_names.py`` writes from a MediaWiki release.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

_TABLE = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
_LANGUAGES = _TABLE["languages"]
_REDIRECTS = frozenset(_TABLE["redirects"])
_REDIRECT = re.compile(r"\s*([#＃][^\s:\[]{1,60})\s*:?\s*\[\[[^\[\]\n]+\]\]")
# Names of the projects' own namespaces, which no language has.
_PROJECTS = ("wikipedia", "wiktionary", "wikibooks", "wikinews", "wikiquote", "wikisource", "wikiversity", "wikivoyage")

CATEGORIES = frozenset(name for each in _LANGUAGES.values() for name in each["namespaces"].get("14", ()))
"""Names of the category namespace in all languages, lower-case and with blanks."""


def normalised(name: str) -> str:
    """Return the name of a namespace in the form of the tables: lower-case, with blanks."""
    return " ".join(name.replace("_", " ").split()).lower()


def namespace_numbers(declared: Mapping[str, int], language: str) -> dict[str, int]:
    """Return the numbers of a wiki's namespaces by all names that it knows, which are lower-case and have blanks.

    Args:
        declared: numbers by the names in the header of the export; empty if it has no header.
        language: code of the wiki's language as in ``xml:lang`` ("de", "zh-hans"). The names of the languages that it
            falls back to, and of English, count too.
    """
    names = {} if declared else dict.fromkeys(_PROJECTS, 4)
    codes = [language.lower().replace("_", "-")]
    codes += _LANGUAGES.get(codes[0], {}).get("fallback", ())
    # An earlier language has precedence.
    for code in reversed((*codes, "en")):
        for key, found in _LANGUAGES.get(code, {}).get("namespaces", {}).items():
            names |= dict.fromkeys(found, int(key))
    return names | {normalised(name): number for name, number in declared.items()}


def is_redirect(wikitext: str) -> bool:
    """Return True if a text makes its page a redirect: ``#REDIRECT [[target]]`` in any language."""
    found = _REDIRECT.match(wikitext)
    return found is not None and found[1].lower() in _REDIRECTS
