"""Cut long texts into documents of N words, as DPR and KILT cut Wikipedia.

Words are separated by blanks. In scripts without blanks (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) two
characters, with the marks on them, count as one word.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from .document import MAX_ID_BYTES, Document

LONGEST_SUFFIX = "#9999999"
"""Longest number of a piece, for which the id of a record must leave room."""

_UNSPACED = "".join(
    (
        "\u0e00-\u0eff",  # Thai, Lao
        "\u0f00-\u0fff",  # Tibetan
        "\u1000-\u109f",  # Burmese
        "\u1780-\u17ff",  # Khmer
        "\u2e80-\u2fff\u3001-\u312f\u31a0-\u9fff\uf900-\ufaff\uff01-\uff9f",  # kana, Han and their punctuation
        "\U00020000-\U0003ffff",  # rarer Han
    )
)
_MARKS = "".join(
    chr(code)
    for block in (range(0x0E00, 0x10A0), range(0x1780, 0x1800), range(0x3099, 0x309B), range(0xFE00, 0xFE10))
    for code in block
    if unicodedata.category(chr(code)).startswith("M")
)
# A run of more than 64 characters without a blank is not a word. It may be cut, so that every piece is bounded.
_WORD = rf"(?:(?:[{_UNSPACED}][{_MARKS}]*+){{1,2}}+|[^\s{_UNSPACED}]{{1,64}}+)"

# No text has more words, and a pattern cannot repeat 2**32 times.
_MOST_WORDS = 1 << 31


def max_id_bytes(words: int | None) -> int:
    """Return the largest number of bytes of a record's id; fewer if its text is cut, since pieces are numbered."""
    return MAX_ID_BYTES if words is None else MAX_ID_BYTES - len(LONGEST_SUFFIX)


def split_text(text: str, words: int) -> Iterator[str]:
    """Yield the text in pieces of ``words`` words. The last piece holds the remaining words.

    Only the blanks between pieces are lost. A text without words is one piece.
    """
    pieces = [piece[0] for piece in _pieces(words).finditer(text)]
    yield from pieces or ("",)


@lru_cache
def _pieces(words: int) -> re.Pattern[str]:
    """Return the pattern of a piece: matching many words at once is quicker than word by word."""
    return re.compile(rf"{_WORD}(?:\s*+{_WORD}){{0,{min(words, _MOST_WORDS) - 1}}}+")


def split_document(document: Document, words: int | None) -> Iterator[Document]:
    """Yield the document as it is if ``words`` is None, otherwise its pieces with the ids ``ID#0``, ``ID#1``, …."""
    if words is None:
        yield document
        return
    for number, piece in enumerate(split_text(document.text, words)):
        yield replace(document, doc_id=f"{document.doc_id}#{number}", text=piece)
