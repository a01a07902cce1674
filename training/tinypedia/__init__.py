"""Tinypedia: an encyclopedia of invented people, places and works, with questions and answers, without end.

A small model can learn from it to compress an article into memory and to answer from that memory. It can then be
judged on people, places and works that it has never met: every invented word belongs to one split by its hash
(`split_of`), and all invented words of an article belong to the article's split, those of its distractors too.

An answer is a name, a year, a number, or one of a closed list of equally likely words. So little can be guessed
without reading.

    >>> article = next(articles("train", seed=1))
    >>> all(fact.answer in article.text for fact in article.facts)
    True
"""

from .article import KINDS, Article, Fact, articles
from .conversation import Conversation, conversations, recitals, short_conversations
from .files import write, write_conversations
from .vocabulary import RECITAL, invented_words, is_held_out, vocabulary
from .words import Split, split_of

__all__ = [
    "KINDS",
    "RECITAL",
    "Article",
    "Conversation",
    "Fact",
    "Split",
    "articles",
    "conversations",
    "invented_words",
    "is_held_out",
    "recitals",
    "short_conversations",
    "split_of",
    "vocabulary",
    "write",
    "write_conversations",
]
