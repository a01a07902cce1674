"""The English words of the encyclopedia, and how to tell invented words from them."""

import re
from functools import cache

from . import people, places, works
from .pen import TITLE_NOUNS
from .relations import PRONOUNS
from .words import split_of

# The question that is answered by a whole article; {t} is the article's title.
RECITAL = "What does the article on {t} say?"


@cache
def vocabulary() -> frozenset[str]:
    """Return the English words, in lower case, of all articles and questions. None of them is an invented word."""
    texts = ["the s and of for a an work mount", RECITAL]
    texts += [*people.OCCUPATIONS, *people.INSTRUMENTS, *places.PRODUCTS, *places.SIZES, *works.HOUSES, *TITLE_NOUNS]
    texts += [form for forms in PRONOUNS.values() for form in forms.values()]
    texts += [text for family in works.FAMILIES for text in (*family.kinds, *family.words.values())]
    relations = [*people.RELATIONS, *places.RELATIONS, *works.RELATIONS]
    relations += [relation for family in works.FAMILIES for relation in family.relations]
    for relation in relations:
        texts += [*relation.openers, *relation.sentences, *relation.questions]
    for kind in (people, places, works):
        texts += [*kind.DISTRACTORS, *(sentence for pair in kind.PAIRS for sentence in pair.sentences)]
    return frozenset(word.lower() for text in texts for word in _words(re.sub(r"\{\w+\}", " ", text)))


def invented_words(text: str) -> set[str]:
    """Return the invented words of a text of this encyclopedia: those that are not in its `vocabulary`."""
    return {word for word in _words(text) if word.lower() not in vocabulary()}


def is_held_out(text: str) -> bool:
    """Return True if a text has invented words and all of them are held out."""
    words = invented_words(text)
    return bool(words) and all(split_of(word) == "held-out" for word in words)


def _words(text: str) -> list[str]:
    return re.findall("[A-Za-z]+", text)
