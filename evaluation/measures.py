"""Measures of an answer against its references."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Scores:
    """Scores of an answer from 0 to 1, each against the reference for which it is highest.

    Attributes:
        match: 1 if the answer contains the reference, both normalised.
        exact_match: 1 if the answer equals the reference, both normalised.
        f1: harmonic mean of precision and recall over the words of both, normalised.
    """

    match: float
    exact_match: float
    f1: float


def normalise(text: str) -> str:
    """Return a text as SQuAD's evaluation compares it (Rajpurkar et al., 2016).

    It is in lower case, without ASCII punctuation and without the articles a, an and the; one space separates words.
    Characters are composed first (NFC), so that texts that Unicode holds to be equal are equal.
    """
    return " ".join(_ARTICLES.sub(" ", _composed(text).lower().translate(_PUNCTUATION)).split())


def score(answer: str, references: Sequence[str]) -> Scores:
    """Score an answer against its references, of which there is at least one."""
    given, wanted = normalise(answer), [normalise(each) for each in references]
    return Scores(
        # Every answer contains the empty string: a reference of articles and punctuation alone requires equality.
        match=float(any(each in given if each else not given for each in wanted)),
        exact_match=float(given in wanted),
        f1=max(_f1(given.split(), each.split()) for each in wanted),
    )


def _f1(given: Sequence[str], wanted: Sequence[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
