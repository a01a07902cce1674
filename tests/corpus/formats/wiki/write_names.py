"""Write ``corpus/formats/wiki/names.json`` from the message files of a MediaWiki release.

MediaWiki's folder ``languages/messages`` has a PHP file per language: names and aliases of its namespaces, words that
make a redirect, languages that it falls back to. Run this script with the path of that folder, which is part of every
release (https://www.mediawiki.org/wiki/Download); the table was written from release 1.39.17.
"""

import json
import re
import sys
from pathlib import Path

TABLE = Path(__file__).resolve().parents[4] / "corpus/formats/wiki/names.json"

# fmt: off
NAMESPACES = {
    "MEDIA": -2, "SPECIAL": -1, "TALK": 1, "USER": 2, "USER_TALK": 3, "PROJECT": 4, "FILE": 6, "IMAGE": 6,
    "MEDIAWIKI": 8, "TEMPLATE": 10, "HELP": 12, "CATEGORY": 14,
}
# fmt: on

_STRING = r"""(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
_COMMENT = re.compile(r"/\*.*?\*/|^\s*(?:#|//).*?$", re.DOTALL | re.MULTILINE)
_LISTS = re.compile(r"\$namespace(?:Names|Aliases|GenderAliases)\s*=\s*(?:\[|array\s*\()(.*?)^\s*[\])];", re.S | re.M)
_NAME = re.compile(rf"NS_(\w+)\s*=>\s*({_STRING}|\[[^\]]*\])|({_STRING})\s*=>\s*NS_(\w+)")
_REDIRECT = re.compile(r"'redirect'\s*=>\s*(?:\[|array\s*\()(.*?)[\])]\s*,", re.DOTALL)
_FALLBACK = re.compile(r"\$fallback\s*=\s*'([^']*)'")


def strings(php: str) -> list[str]:
    return [re.sub(r"\\(.)", r"\1", found[1:-1]) for found in re.findall(_STRING, php)]


def language(php: str) -> dict:
    php = _COMMENT.sub("", php)
    namespaces: dict[int, set[str]] = {}
    for body in _LISTS.findall(php):
        for number, names, alias, aliased in _NAME.findall(body):
            # A list names the genders of users: 'male' => NAME.
            found = strings(re.sub(rf"{_STRING}\s*=>", "", names) or alias)
            if (key := NAMESPACES.get(number or aliased)) is not None:
                namespaces.setdefault(key, set()).update(name.replace("_", " ").lower() for name in found if name)
    fallback = _FALLBACK.search(php)
    return {
        "fallback": [code for code in re.split(r",\s*", fallback[1] if fallback else "") if code not in ("", "en")],
        "namespaces": {str(key): sorted(names) for key, names in sorted(namespaces.items())},
        "redirects": sorted({word.lower() for words in _REDIRECT.findall(php) for word in strings(words) if word[1:]}),
    }


def table(folder: Path) -> dict:
    found = {
        path.stem.removeprefix("Messages").lower().replace("_", "-"): language(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("Messages*.php"))
    }
    redirects = sorted({word for each in found.values() for word in each.pop("redirects") if word[0] in "#＃"})
    return {"redirects": redirects, "languages": found}


def as_json(names: dict) -> str:
    lines = ",\n".join(
        f"{json.dumps(code)}: {json.dumps(each, ensure_ascii=False, separators=(',', ':'))}"
        for code, each in names["languages"].items()
        if any(each.values())
    )
    return f'{{"redirects": {json.dumps(names["redirects"], ensure_ascii=False)},\n"languages": {{\n{lines}\n}}}}\n'


if __name__ == "__main__":
    TABLE.write_text(as_json(table(Path(sys.argv[1]))), encoding="utf-8")
