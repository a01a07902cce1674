"""The form of a relation: it draws the value, states it in a sentence and asks for it in a question.

Sentences and questions are patterns with placeholders:

- ``{S}`` and ``{s}`` are the subject at the start of a sentence and inside it, ``{P}`` and ``{p}`` its possessive,
  ``{o}`` its object form, and ``{h}`` the pronoun "his", "her" or "its". ``{mate}`` is "wife" or "husband".
- ``{v}`` is the value, and ``{a}`` the indefinite article before it. A second value is ``{w}``, with ``{a_w}``.
- ``{size}`` is the noun for a place, and ``{a_noun} {noun}`` the one for a work. ``{made}``, ``{did}`` and ``{maker}``
  are a work's forms of the verb and the noun for making it.
- ``{t}`` in a question is the article's title.
- Only distractors have ``{n}`` and ``{m}`` (people), ``{x}`` (a place), ``{q}`` (a year), ``{k}`` (a number), and
  ``{j}`` (an occupation) with its article ``{j_a}``.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .pen import Pen

# Forms of the subject's pronoun, by placeholder.
PRONOUNS = {
    "woman": {"S": "She", "s": "she", "P": "Her", "p": "her", "o": "her", "h": "her", "mate": "husband"},
    "man": {"S": "He", "s": "he", "P": "His", "p": "his", "o": "him", "h": "his", "mate": "wife"},
    "thing": {"S": "It", "s": "it", "P": "Its", "p": "its", "o": "it", "h": "its"},
}


@dataclass(frozen=True)
class Relation:
    """A relation between the subject of an article and a value.

    Attributes:
        name: name of the relation, unique among those of a subject.
        value: function that draws the value; None if the value is one of the subject's own words.
        sentences: patterns that state the value.
        questions: patterns that ask for the value.
        openers: patterns that state the value and that only the first sentence of an article may have, since its
            subject is the full title.
    """

    name: str
    value: Callable[[Pen], str] | None
    sentences: tuple[str, ...]
    questions: tuple[str, ...]
    openers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Statement:
    """A sentence of an article, in several wordings.

    Attributes:
        names: names of the relations that it states: one, two, or none in a distractor.
        sentences: wordings that can stand anywhere.
        openers: wordings for the first sentence of an article only.
    """

    names: tuple[str, ...]
    sentences: tuple[str, ...]
    openers: tuple[str, ...] = ()
