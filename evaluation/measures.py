"""How good an answer is, and how far one distribution of answers is from another."""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torchmetrics.functional.text.squad import squad

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Scores:
    """An answer against its references, each 0 to 1, the best over the references.

    Attributes:
        match: a reference is contained in the answer, both normalised.
        exact_match: the answer is a reference, both normalised.
        f1: harmonic mean of precision and recall over the words of both, normalised.
    """

    match: float
    exact_match: float
    f1: float


def normalise(text: str) -> str:
    """A text as SQuAD's evaluation compares it (Rajpurkar et al., 2016).

    In lower case, without ASCII punctuation and the articles a, an and the, one space between words.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def score(answer: str, references: Sequence[str]) -> Scores:
    """Score an answer against its references; exact match and F1 are torchmetrics'."""
    percent = squad(
        {"prediction_text": answer, "id": ""},
        {"answers": {"answer_start": [0] * len(references), "text": list(references)}, "id": ""},
    )
    return Scores(_match(answer, references), *(float(percent[name]) / 100 for name in ("exact_match", "f1")))


def _match(answer: str, references: Sequence[str]) -> float:
    said = normalise(answer)
    # Nothing is contained in everything: a reference of articles and punctuation alone asks for an equal answer.
    return float(any(wanted in said if wanted else not said for wanted in map(normalise, references)))


def divergence(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """``KL(reference ‖ other)`` in nats, of each row of log-probabilities: ``(n, vocabulary)`` twice to ``(n,)``.

    Normalised anew in double precision, so that it is never negative by more than its rounding. Tokens that the
    reference rules out (-inf) add nothing.
    """
    p, q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return torch.where(p.isneginf(), 0, p.exp() * (p - q)).sum(-1)
