"""Articles: a subject, the relations to state about it, and the sentences that state them."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from . import people, places, works
from .pen import Pen, one_of
from .relations import PRONOUNS, Relation, Statement
from .vocabulary import vocabulary
from .words import Split

Kind = Literal["person", "place", "work"]

KINDS: tuple[Kind, ...] = get_args(Kind)
KINDS_OF_WORKS = tuple((family, noun) for family in works.FAMILIES for noun in family.kinds)


@dataclass(frozen=True)
class Fact:
    """A fact that an article states, with a question for it.

    Attributes:
        relation: name of the relation.
        question: question that names the article's title.
        answer: the relation's value, spelled as in the article's text.
    """

    relation: str
    question: str
    answer: str


@dataclass(frozen=True)
class Article:
    """An article, and the facts that it states, in the order of the text."""

    doc_id: str
    kind: Kind
    title: str
    text: str
    facts: tuple[Fact, ...]


def articles(split: Split, *, seed: int = 0) -> Iterator[Article]:
    """Write articles without end: the same ones for the same split and seed, and no two with the same title.

    Each is a person, a place or a work at random, and states five to seven facts. The ids count the articles of this
    stream, so another seed has other articles under the same ids. Titles are kept in RAM, about 100 bytes each.
    """
    author = Author(split, seed)
    while True:
        yield author.write(author.pen.pick(KINDS))


class Author:
    """Writes the articles of one split, no two with the same title."""

    def __init__(self, split: Split, seed: object):
        self.pen = Pen(split, seed, vocabulary())
        self.titles: set[str] = set()

    def write(self, kind: Kind, stated: tuple[Relation, ...] | None = None) -> Article:
        """Write an article.

        Args:
            kind: kind of its subject.
            stated: the relations that it states, and nothing else; default: five to seven at random, and distractors.
        """
        pen = self.pen
        subject = _draw_subject(kind, pen, stated)
        while subject.title in self.titles:
            subject = _draw_subject(kind, pen, stated)
        doc_id = f"tp-{pen.split}-{len(self.titles):06d}"
        self.titles.add(subject.title)

        relations = {relation.name: relation for relation in subject.relations}
        values = {
            name: relation.value(pen) if relation.value else subject.words[name] for name, relation in relations.items()
        }
        sentences, facts, forms = [], [], _forms(subject.title)
        for statement in _plan(subject, pen.rng, most_distractors=0 if stated else 2):
            sentences.append(_sentence(statement, values, subject.words | forms, pen, first=not sentences))
            for name in statement.names:
                question = pen.pick(relations[name].questions).format_map({**subject.words, "t": subject.title})
                facts.append(Fact(name, question, values[name]))
            clear = statement.names and pen.rng.random() < 0.7
            forms = pen.pick(subject.references if clear else subject.names)
        return Article(doc_id, kind, subject.title, " ".join(sentences), tuple(facts))


@dataclass(frozen=True)
class _Subject:
    """The subject of an article.

    Attributes:
        title: full name.
        words: words by placeholder, the same in all sentences of the article.
        names: forms of its names, which are clear everywhere.
        references: forms such as "it", which are clear only behind a sentence about the subject.
        relations: the relations that the article states.
        pairs: statements of two relations each, for subjects of this kind.
        distractors: the statement of no relation.
    """

    title: str
    words: dict[str, str]
    names: tuple[dict[str, str], ...]
    references: tuple[dict[str, str], ...]
    relations: tuple[Relation, ...]
    pairs: tuple[Statement, ...]
    distractors: Statement


def _draw_subject(kind: Kind, pen: Pen, stated: tuple[Relation, ...] | None) -> _Subject:
    """Begin an article: draw its title, the words that its sentences share, and its relations unless given."""
    pen.begin(900 if kind == "place" else 1500, 1900)
    if kind == "person":
        return _draw_person(pen, stated)
    return _draw_place(pen, stated) if kind == "place" else _draw_work(pen, stated)


def _draw_person(pen: Pen, stated: tuple[Relation, ...] | None) -> _Subject:
    title, pronoun = pen.name(), PRONOUNS[pen.pick(("woman", "man"))]
    names = (_forms(title), _forms(title.split()[1]))
    relations = stated or _some(people.RELATIONS, pen)
    return _Subject(title, pronoun, names, (pronoun,), relations, people.PAIRS, Statement((), people.DISTRACTORS))


def _draw_place(pen: Pen, stated: tuple[Relation, ...] | None) -> _Subject:
    title, noun = pen.word(), pen.pick(places.SIZES)
    words, relations = PRONOUNS["thing"] | {"size": noun}, stated or _some(places.RELATIONS, pen)
    distractors = Statement((), places.DISTRACTORS)
    return _Subject(title, words, (_forms(title),), _references(noun), relations, places.PAIRS, distractors)


def _draw_work(pen: Pen, stated: tuple[Relation, ...] | None) -> _Subject:
    title, (family, noun) = pen.title(), pen.pick(KINDS_OF_WORKS)
    relations = stated or _some(works.RELATIONS + family.relations, pen)
    words = PRONOUNS["thing"] | family.words | {"kind": noun}
    if any(relation.name == "kind" for relation in relations):
        # Only the sentence for this relation may name the kind, or others would answer its question too.
        noun = "work"
    words |= {"noun": noun, "a_noun": _a(noun)}
    distractors = Statement((), works.DISTRACTORS)
    return _Subject(title, words, (_forms(title),), _references(noun), relations, works.PAIRS, distractors)


def _some(relations: tuple[Relation, ...], pen: Pen) -> tuple[Relation, ...]:
    return tuple(pen.rng.sample(relations, pen.pick((5, 6, 7))))


def _forms(name: str) -> dict[str, str]:
    """Return the forms of a name, by placeholder."""
    capital = name[0].upper() + name[1:]
    return {"S": capital, "s": name, "P": f"{capital}'s", "p": f"{name}'s", "o": name}


def _references(noun: str) -> tuple[dict[str, str], ...]:
    """Return the forms that refer to a thing: its noun, and "it" except as an object, where it could be unclear."""
    return _forms(f"the {noun}"), PRONOUNS["thing"] | {"o": f"the {noun}"}


def _a(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _plan(subject: _Subject, rng: random.Random, *, most_distractors: int) -> list[Statement]:
    """Return the statements of an article, one per sentence."""
    left, plan = {relation.name: relation for relation in subject.relations}, []
    for pair in rng.sample(subject.pairs, len(subject.pairs)):
        if all(name in left for name in pair.names) and rng.random() < (0.2 if plan else 0.6):
            plan.append(pair)
            left = {name: relation for name, relation in left.items() if name not in pair.names}
    plan += [Statement((name,), relation.sentences, relation.openers) for name, relation in left.items()]
    rng.shuffle(plan)
    for _ in range(min(most_distractors, rng.choice((0, 1, 1, 2)))):
        plan.insert(rng.randint(1, len(plan)), subject.distractors)
    return plan


def _sentence(statement: Statement, values: dict[str, str], words: dict[str, str], pen: Pen, *, first: bool) -> str:
    """Word a statement. The first sentence of an article begins with its subject."""
    words = _DrawnWords(words, pen)
    for name, value, article in zip(statement.names, "vw", ("a", "a_w"), strict=False):
        words[value], words[article] = values[name], _a(values[name])
    patterns = _first_sentences(statement.sentences, statement.openers) if first else statement.sentences
    return pen.pick(patterns).format_map(words)


@cache
def _first_sentences(sentences: tuple[str, ...], openers: tuple[str, ...]) -> tuple[str, ...]:
    """Return the sentences that begin with their subject. Openers count twice, as the usual beginning."""
    return tuple(sentence for sentence in openers * 2 + sentences if sentence.startswith("{S}"))


class _DrawnWords(dict[str, str]):
    """Words of a sentence by placeholder. Those of a distractor are drawn when its pattern first asks for them."""

    def __init__(self, words: dict[str, str], pen: Pen):
        super().__init__(words)
        self.pen = pen

    def __missing__(self, key: str) -> str:
        if key == "j_a":
            return _a(self["j"])
        self[key] = value = _DRAWS[key](self.pen)
        return value


_DRAWS: dict[str, Callable[[Pen], str]] = {
    "n": Pen.name,
    "m": Pen.name,
    "x": Pen.word,
    "q": Pen.year,
    "k": lambda pen: pen.number(12, 900),
    "j": one_of(people.OCCUPATIONS),
}
