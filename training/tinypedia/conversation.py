"""Conversations: articles to read, and questions about them with their answers."""

from collections.abc import Iterator
from dataclasses import dataclass

from . import people, places, works
from .article import KINDS, Article, Author, Fact
from .pen import Pen
from .vocabulary import RECITAL, vocabulary
from .words import Split


@dataclass(frozen=True)
class Conversation:
    """Articles, and questions about them: one question per turn, each about one article."""

    documents: tuple[Article, ...]
    turns: tuple[Fact, ...]


def conversations(
    split: Split, *, seed: object = 0, documents: tuple[int, int] = (1, 5), questions: int = 8
) -> Iterator[Conversation]:
    """Put new articles side by side and ask about them, without end; the same for the same arguments.

    Three conversations in four have articles of one kind only. Several articles then state the relation that a
    question asks for, and only its title tells which of them is meant. The articles are not those of `articles`.

    Args:
        split: split of the articles.
        seed: seed of all draws.
        documents: smallest and largest number of articles; a third of the conversations have the smallest.
        questions: number of questions; fewer only if the articles state fewer facts.
    """
    author = Author(split, f"conversations {seed}")
    pen, (fewest, most) = author.pen, documents
    while True:
        count = fewest if fewest == most or pen.rng.random() < 1 / 3 else pen.rng.randint(fewest + 1, most)
        kind = pen.pick(KINDS) if pen.rng.random() < 0.75 else None
        read = tuple(author.write(kind or pen.pick(KINDS)) for _ in range(count))
        yield Conversation(read, _asked([fact for article in read for fact in article.facts], questions, pen))


def short_conversations(
    split: Split, *, seed: int = 0, documents: tuple[int, int] = (2, 5), questions: int = 8
) -> Iterator[Conversation]:
    """Put short articles side by side that state the same one or two relations, and ask about them, without end.

    Only its title tells which article is meant, and there is little beside it to read. In a third of the conversations
    each question asks for a whole article, so that nothing but the title can lead to the answer.

    Args:
        split: split of the articles.
        seed: seed of all draws.
        documents: smallest and largest number of articles.
        questions: number of questions; fewer only if the articles state fewer facts.
    """
    author = Author(split, f"short conversations {seed}")
    pen = author.pen
    relations = {"person": people.RELATIONS, "place": places.RELATIONS, "work": works.RELATIONS}
    while True:
        kind = pen.pick(KINDS)
        stated = tuple(pen.rng.sample(relations[kind], pen.pick((1, 2))))
        read = tuple(author.write(kind, stated) for _ in range(pen.rng.randint(*documents)))
        facts = [fact for article in read for fact in article.facts]
        if pen.rng.random() < 1 / 3:
            facts = [_recital(article) for article in read]
        yield Conversation(read, _asked(facts, questions, pen))


def recitals(
    split: Split, *, seed: int = 0, documents: tuple[int, int] = (1, 5), questions: int = 6
) -> Iterator[Conversation]:
    """Return conversations as `conversations` does, each with a last question for the whole text of an article.

    That question comes last, so that no other can be answered from the text that was recited. The articles are not
    those of `conversations`.

    Args:
        split: split of the articles.
        seed: seed of all draws.
        documents: smallest and largest number of articles; a third of the conversations have the smallest.
        questions: number of questions before the last one; fewer only if the articles state fewer facts.
    """
    rng = Pen(split, f"recitals {seed}", vocabulary()).rng
    for drawn in conversations(split, seed=f"recitals {seed}", documents=documents, questions=questions):
        yield Conversation(drawn.documents, (*drawn.turns, _recital(rng.choice(drawn.documents))))


def _asked(facts: list[Fact], most: int, pen: Pen) -> tuple[Fact, ...]:
    return tuple(pen.rng.sample(facts, min(most, len(facts))))


def _recital(article: Article) -> Fact:
    return Fact("text", RECITAL.format(t=article.title), article.text)
