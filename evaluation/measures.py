"""Measures of an answer against its references, and of one distribution of answers against another."""

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torchmetrics.functional.text.squad import squad

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
    """Score an answer against its references. torchmetrics computes exact match and F1."""
    percent = squad(
        {"prediction_text": _composed(answer), "id": ""},
        {"answers": {"answer_start": [0] * len(references), "text": list(map(_composed, references))}, "id": ""},
    )
    return Scores(_match(answer, references), *(float(percent[name]) / 100 for name in ("exact_match", "f1")))


def _match(answer: str, references: Sequence[str]) -> float:
    given = normalise(answer)
    # Every answer contains the empty string, so a reference that is only articles and punctuation requires equality.
    return float(any(wanted in given if wanted else not given for wanted in map(normalise, references)))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def divergence(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return ``KL(reference ‖ other)`` in nats, ``(n,)``, for each row of log-probabilities ``(n, vocabulary)``.

    Both are normalised again in double precision, so that rounding alone can make a result negative. Tokens that the
    reference rules out (-inf) add nothing.
    """
    p, q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return torch.where(p.isneginf(), 0, p.exp() * (p - q)).sum(-1)
