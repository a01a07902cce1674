"""Invented words, and the split that each belongs to.

A word is an opening syllable, sometimes a middle one, and a closing one, as in Torvel, Marin and Osagrath.
"""

import zlib
from typing import Literal

Split = Literal["train", "held-out"]


def listed(text: str) -> tuple[str, ...]:
    """Return the comma-separated values of a text, none of which contains a comma."""
    return tuple(text.split(","))


_VOWELS = "aeiou"
OPENING = tuple(
    onset + vowel + coda
    for onset in ("", "b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr")
    for vowel in _VOWELS
    for coda in ("", "n", "r", "l")
)
MIDDLE = tuple(onset + vowel for onset in "bdglmnrstv" for vowel in _VOWELS)
CLOSING = tuple(
    onset + vowel + coda
    for onset in ("b", "d", "f", "g", "k", "l", "m", "n", "r", "s", "t", "v", "z", "gr")
    for vowel in _VOWELS
    for coda in ("", "n", "r", "l", "s", "th")
)
# Share of words with a middle syllable. Most names stay as short as real ones.
LONG_WORDS = 0.12
# Words that these syllables can make and that are real, or unfit for a name.
NOT_INVENTED = frozenset(
    listed(
        "anal,anus,berlin,dildo,genital,harlot,libya,london,madrid,milan,nazi,negro,niger,paris,penis,porno,rapes,"
        "retard,roma,satan,semen,vagina,venus"
    )
)


def split_of(word: str) -> Split:
    """Return the split that an invented word belongs to. A hash of the word holds out one word in eight."""
    # A prime modulus: the low bits of a CRC are a linear function of the letters, which a model could learn.
    return "held-out" if zlib.crc32(word.lower().encode()) % 997 < 125 else "train"
