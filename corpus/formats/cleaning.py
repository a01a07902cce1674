"""The identity of a cleaning: records that have it, and the same source text, give the same documents."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

_ROOM = Path(__file__).parent
# The code that decides what becomes of a source text, and its tables.
_CODE = (
    *(_ROOM / name for name in ("wikitext.py", "enterprise.py", "mediawiki.py", "source.py")),
    *(_ROOM / "wiki" / name for name in ("names.py", "names.json", "preprocessor.py")),
    _ROOM.parent / "split.py",
)


def cleaning_of(settings: Any) -> str | None:
    """Return the identity of a cleaning with some settings, which are plain values.

    Returns:
        None if the code of this package cannot be read, so that no change of it would be noticed.
    """
    code = _code_digest()
    return code and f"{code} {json.dumps(settings, sort_keys=True)}"


def record_key(cleaning: str, doc_id: str, title: str | None, text: str) -> int:
    """Return 64 bits of hash of a record's source and of its cleaning."""
    parts = (cleaning, doc_id, title or "", text)
    return xxhash.xxh3_64_intdigest("\0".join(parts).encode("utf-8", errors="surrogatepass"))


@cache
def _code_digest() -> str | None:
    digest = xxhash.xxh3_128()
    try:
        for path in _CODE:
            digest.update(path.read_bytes())
    except OSError:
        return None
    return digest.hexdigest()
