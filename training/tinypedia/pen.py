"""The source of all random draws: names, titles, years and numbers of one split."""

import random
from collections.abc import Callable, Set
from typing import Any

from .words import CLOSING, LONG_WORDS, MIDDLE, NOT_INVENTED, OPENING, Split, listed, split_of

TITLE_NOUNS = listed(
    "Bird,Bridge,Candle,Crown,Dream,Fire,Forest,Garden,Gate,Ghost,Horse,House,Island,Journey,King,Lake,Letter,Light,"
    "Mirror,Night,Queen,Road,Ship,Shore,Silence,Song,Star,Storm,Summer,Tower,Valley,Winter"
)
TITLES = ("The {w} {n}", "{w} {n}", "{n} of {w}", "{n} for {w}", "{w} and {v}")


class Pen:
    """Draws names, years and numbers, and within one article no value twice.

    Args:
        split: split that all invented words belong to.
        seed: seed of all draws, together with the split.
        english: words in lower case that no invented word may equal.
    """

    def __init__(self, split: Split, seed: object, english: Set[str]):
        self.rng = random.Random(f"tinypedia {split} {seed}")  # noqa: S311
        self.split = split
        self.english = english
        self.begin(0, 1)

    def begin(self, first_year: int, last_year: int) -> None:
        """Begin an article: forget the values drawn so far, and draw the year in which its subject began."""
        self.used: set[str] = set()
        self.beginning_year = self.rng.randrange(first_year, last_year)

    def pick(self, values: tuple[Any, ...]) -> Any:
        """Return one of the values, each equally likely."""
        return values[int(self.rng.random() * len(values))]

    def fresh(self, draw: Callable[[], str]) -> str:
        """Draw until the value is new in this article."""
        while (value := draw()) in self.used:
            pass
        self.used.add(value)
        return value

    def word(self) -> str:
        """Draw an invented word of the split, with a capital letter."""
        draw, pick = self.rng.random, self.pick
        while True:
            middle = pick(MIDDLE) if draw() < LONG_WORDS else ""
            word = pick(OPENING) + middle + pick(CLOSING)
            if split_of(word) != self.split or word in self.used or word in self.english or word in NOT_INVENTED:
                continue
            self.used.add(word)
            return word.capitalize()

    def name(self) -> str:
        """Draw a person's first and last name."""
        return f"{self.word()} {self.word()}"

    def title(self) -> str:
        """Draw the title of a work."""
        shape = self.pick(TITLES)
        return shape.format(w=self.word(), n=self.pick(TITLE_NOUNS), v=self.word() if "{v}" in shape else "")

    def mountain(self) -> str:
        """Draw the name of a mountain."""
        return f"Mount {self.word()}"

    def number(self, low: int, high: int, step: int = 1) -> str:
        """Draw a number from ``low`` up to, but not including, ``high``, with a comma between its thousands."""
        return self.fresh(lambda: f"{self.rng.randrange(low, high, step):,}")

    def beginning(self) -> str:
        """Return the year in which the article's subject began."""
        return str(self.beginning_year)

    def year(self) -> str:
        """Draw a year after the subject began."""
        return self.fresh(lambda: str(self.beginning_year + self.rng.randrange(18, 90)))

    def population(self) -> str:
        """Draw the number of people who live in a place."""
        return self.number(200, 10_000, 10) if self.rng.random() < 0.4 else self.number(10_000, 100_000, 100)


def one_of(values: tuple[str, ...]) -> Callable[[Pen], str]:
    """Return a function that draws one of the values, each equally likely."""
    return lambda pen: pen.fresh(lambda: pen.pick(values))
