"""Tinypedia: an encyclopedia of invented people, places and works, with questions and answers, without end.

A small model can learn from it to compress an article into memory and to answer from that memory, and be judged on
entities it has never met: every invented word belongs to one split by its hash (`split_of`), and everything invented
in an article, its distractors included, is of the article's split. An answer is a name, a year, a number or one of a
closed list of equally likely words, so little can be guessed without reading.

    >>> article = next(articles("train", seed=1))
    >>> all(fact.answer in article.text for fact in article.facts)
    True
"""

import json
import random
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from ..errors import TrainingError

Split = Literal["train", "held-out"]
Kind = Literal["person", "place", "work"]

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Fact:
    """One thing an article states, with a question that names the article's title and its answer.

    The answer occurs in the article's text as it is written here.
    """

    relation: str
    question: str
    answer: str


@dataclass(frozen=True)
class Article:
    """An article and the five to seven facts it states, in the order of the text."""

    doc_id: str
    kind: Kind
    title: str
    text: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Conversation:
    """Articles laid before a reader and the questions put to it, one a turn, each about one of them."""

    documents: tuple[Article, ...]
    turns: tuple[Fact, ...]


RECITAL = "What does the article on {t} say?"


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


# Words: an opening syllable, sometimes a middle one, and a closing one, as in Torvel, Marin and Osagrath.

_VOWELS = "aeiou"
_OPENING = tuple(
    onset + vowel + coda
    for onset in ("", "b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr")
    for vowel in _VOWELS
    for coda in ("", "n", "r", "l")
)
_MIDDLE = tuple(onset + vowel for onset in "bdglmnrstv" for vowel in _VOWELS)
_CLOSING = tuple(
    onset + vowel + coda
    for onset in ("b", "d", "f", "g", "k", "l", "m", "n", "r", "s", "t", "v", "z", "gr")
    for vowel in _VOWELS
    for coda in ("", "n", "r", "l", "s", "th")
)
_LONG_WORDS = 0.12  # the share of words with a middle syllable
# Words these syllables make that are not invented, or not fit for a name.
_NOT_INVENTED = frozenset(
    _listed(
        "anal,anus,berlin,dildo,genital,harlot,libya,london,madrid,milan,nazi,negro,niger,paris,penis,porno,rapes,"
        "retard,roma,satan,semen,vagina,venus"
    )
)


def split_of(word: str) -> Split:
    """The split that an invented word belongs to, by a hash of the word: one in eight is held out."""
    # A prime modulus: the low bits of a CRC are a linear function of the letters, which a model could learn.
    return "held-out" if zlib.crc32(word.lower().encode()) % 997 < 125 else "train"


def is_held_out(text: str) -> bool:
    """Whether every invented word of a text is held out, and there is one."""
    words = invented_words(text)
    return bool(words) and all(split_of(word) == "held-out" for word in words)


def invented_words(text: str) -> set[str]:
    """The invented words of a text of this encyclopedia: those that are not in its `vocabulary`."""
    return {word for word in re.findall("[A-Za-z]+", text) if word.lower() not in vocabulary()}


@cache
def vocabulary() -> frozenset[str]:
    """The English words, in lower case, that articles and questions are written in; no invented word is among them."""
    texts = [*_OCCUPATIONS, *_INSTRUMENTS, *_PRODUCTS, *_PLACE_SIZES, *_TITLE_NOUNS]
    texts += [text for family in _FAMILIES for text in (*family.kinds, *family.words.values())]
    texts += [text for forms in _PRONOUNS.values() for text in forms.values()]
    texts += ["the s and of for a an work mount", *_HOUSES, RECITAL]
    for kind in KINDS:
        texts += _DISTRACTORS[kind]
    for relation in [*_PERSON, *_PLACE, *_WORK, *(relation for family in _FAMILIES for relation in family.relations)]:
        texts += [*relation.openers, *relation.sentences, *relation.questions]
    for pair in [*_PERSON_PAIRS, *_PLACE_PAIRS, *_WORK_PAIRS]:
        texts += pair.sentences
    return frozenset(word.lower() for text in texts for word in re.findall("[A-Za-z]+", re.sub(r"\{\w+\}", " ", text)))


class _Pen:
    """Draws names, years and numbers; within one article it draws none twice."""

    def __init__(self, split: Split, seed: object):
        self.rng = random.Random(f"tinypedia {split} {seed}")  # noqa: S311
        self.split = split
        self.begin(0, 1)

    def begin(self, first_year: int, last_year: int) -> None:
        """Begin an article, whose years follow one of these."""
        self.used: set[str] = set()
        self.era = self.rng.randrange(first_year, last_year)

    def pick(self, values: tuple[Any, ...]) -> Any:
        return values[int(self.rng.random() * len(values))]

    def some(self, relations: "tuple[_Relation, ...]") -> "tuple[_Relation, ...]":
        """What an article states: five to seven relations in random order."""
        return tuple(self.rng.sample(relations, self.pick((5, 6, 7))))

    def word(self) -> str:
        draw, pick, english = self.rng.random, self.pick, vocabulary()
        while True:
            middle = pick(_MIDDLE) if draw() < _LONG_WORDS else ""
            word = pick(_OPENING) + middle + pick(_CLOSING)
            if split_of(word) != self.split or word in self.used or word in english or word in _NOT_INVENTED:
                continue
            self.used.add(word)
            return word.capitalize()

    def name(self) -> str:
        return f"{self.word()} {self.word()}"

    def title(self) -> str:
        shape = self.pick(("The {w} {n}", "{w} {n}", "{n} of {w}", "{n} for {w}", "{w} and {v}"))
        return shape.format(w=self.word(), n=self.pick(_TITLE_NOUNS), v=self.word() if "{v}" in shape else "")

    def mountain(self) -> str:
        return f"Mount {self.word()}"

    def number(self, low: int, high: int, step: int = 1) -> str:
        """A number below `high` with a comma among its thousands."""
        return self.fresh(lambda: f"{self.rng.randrange(low, high, step):,}")

    def beginning(self) -> str:
        """The year that the article's subject began."""
        return str(self.era)

    def year(self) -> str:
        """A year after that beginning."""
        return self.fresh(lambda: str(self.era + self.rng.randrange(18, 90)))

    def population(self) -> str:
        return self.number(200, 10_000, 10) if self.rng.random() < 0.4 else self.number(10_000, 100_000, 100)

    def fresh(self, draw: Callable[[], str]) -> str:
        while (value := draw()) in self.used:
            pass
        self.used.add(value)
        return value


def _one_of(values: tuple[str, ...]) -> Callable[[_Pen], str]:
    return lambda pen: pen.fresh(lambda: pen.pick(values))


# Closed lists: at least thirty values each, all as likely, so that a guess seldom hits.

_OCCUPATIONS = _listed(
    "actor,architect,baker,banker,botanist,brewer,builder,butcher,carpenter,chemist,clockmaker,cook,dancer,diplomat,"
    "doctor,engineer,explorer,farmer,gardener,hunter,judge,lawyer,librarian,merchant,miller,nurse,painter,pilot,poet,"
    "potter,priest,printer,sailor,sculptor,shepherd,smith,soldier,surgeon,tailor,weaver"
)
_INSTRUMENTS = _listed(
    "accordion,bagpipes,banjo,bassoon,bugle,cello,clarinet,cornet,cymbals,double bass,drums,fiddle,flute,guitar,"
    "harmonica,harp,horn,lute,lyre,mandolin,oboe,organ,piano,recorder,saxophone,spinet,tambourine,triangle,trombone,"
    "trumpet,tuba,viola,violin,whistle,xylophone,zither"
)
_PRODUCTS = _listed(
    "apples,baskets,beer,bells,boats,bricks,butter,buttons,candles,carpets,cheese,cherries,clocks,furniture,glass,"
    "gloves,hats,honey,knives,lace,leather,mirrors,mustard,onions,paper,pears,plums,pottery,roses,ropes,salt,shoes,"
    "silk,soap,swords,tea,tiles,toys,wine,wool"
)
_PLACE_SIZES = ("town", "port", "city")
_TITLE_NOUNS = _listed(
    "Bird,Bridge,Candle,Crown,Dream,Fire,Forest,Garden,Gate,Ghost,Horse,House,Island,Journey,King,Lake,Letter,Light,"
    "Mirror,Night,Queen,Road,Ship,Shore,Silence,Song,Star,Storm,Summer,Tower,Valley,Winter"
)
_HOUSES = ("Press", "Theatre", "Museum")


@dataclass(frozen=True)
class _Relation:
    """One relation: how its value is drawn, stated and asked for.

    In sentences {S} and {s} are the subject where a sentence starts and within it, {P} and {p} its possessive, {o} its
    object form and {h} the pronoun "his", "her" or "its"; {v} is the value and {a} its indefinite article; a work is
    called {a_noun} {noun}. Openers can only be an article's first sentence, whose subject is the full title. In
    questions {t} is the title.
    """

    name: str
    value: Callable[[_Pen], str] | None  # None where it is one of the subject's words
    sentences: tuple[str, ...]
    questions: tuple[str, ...]
    openers: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Statement:
    """Sentences that state one relation or two, the second value by {w} and {a_w}, or none in a distractor."""

    names: tuple[str, ...]
    sentences: tuple[str, ...]
    openers: tuple[str, ...] = ()


_PERSON = (
    _Relation(
        "birthplace",
        _Pen.word,
        (
            "{S} was born in {v}.",
            "{S} came from {v}.",
            "{S} was a child of {v}.",
            "{P} place of birth was {v}.",
            "It was in {v} that {s} was born.",
            "{P} first home was in {v}, where {h} mother gave birth.",
        ),
        ("Where was {t} born?", "In which place was {t} born?", "What is the birthplace of {t}?"),
    ),
    _Relation(
        "birth_year",
        _Pen.beginning,
        (
            "{S} was born in {v}.",
            "{S} was born in the year {v}.",
            "{P} year of birth was {v}.",
            "{S} came into the world in {v}.",
            "The year {v} saw {p} birth.",
        ),
        ("When was {t} born?", "In which year was {t} born?", "What is the birth year of {t}?"),
    ),
    _Relation(
        "occupation",
        _one_of(_OCCUPATIONS),
        (
            "{S} was {a} {v}.",
            "{S} worked as {a} {v}.",
            "{S} earned {h} living as {a} {v}.",
            "By trade {s} was {a} {v}.",
            "{S} spent {h} life as {a} {v}.",
        ),
        ("What was the occupation of {t}?", "What did {t} work as?", "What was the trade of {t}?"),
        ("{S} was a well known {v}.", "{S} was {a} {v}."),
    ),
    _Relation(
        "spouse",
        _Pen.name,
        (
            "{S} married {v}.",
            "{S} was married to {v}.",
            "{P} {mate} was {v}.",
            "{S} lived for many years with {h} {mate}, {v}.",
            "{S} found a {mate} in {v}.",
        ),
        ("Who did {t} marry?", "Who was married to {t}?", "What was the name of {t}'s {mate}?"),
    ),
    _Relation(
        "teacher",
        _Pen.name,
        (
            "{S} was a student of {v}.",
            "{S} studied under {v}.",
            "{P} teacher was {v}.",
            "{S} learned from {v}.",
            "As a child {s} was taught by {v}.",
        ),
        ("Who taught {t}?", "Who was the teacher of {t}?", "Under whom did {t} study?"),
    ),
    _Relation(
        "instrument",
        _one_of(_INSTRUMENTS),
        (
            "{S} played the {v}.",
            "{S} loved to play the {v}.",
            "In the evening {s} played the {v}.",
            "{P} instrument was the {v}.",
            "{S} was good at playing the {v}.",
        ),
        ("Which instrument did {t} play?", "What did {t} like to play?", "What was the instrument of {t}?"),
    ),
    _Relation(
        "known_for",
        _Pen.title,
        (
            "{S} is best known for {v}.",
            "{S} became famous with {v}.",
            "{P} best known work is {v}.",
            "{S} is remembered for {v}.",
            "The work that made {o} famous is {v}.",
        ),
        ("What is {t} best known for?", "Which work made {t} famous?", "What is the best known work of {t}?"),
    ),
    _Relation(
        "grave",
        _Pen.word,
        (
            "{S} was buried in {v}.",
            "{S} lies buried in {v}.",
            "{P} grave is in {v}.",
            "{S} found {h} last rest in {v}.",
            "In {v} one can visit the grave of {o}.",
        ),
        ("Where was {t} buried?", "Where is the grave of {t}?", "In which place does {t} lie buried?"),
    ),
)
_PERSON_PAIRS = (
    _Statement(
        ("birthplace", "birth_year"),
        ("{S} was born in {v} in {w}.", "{S} was born in {w} in {v}.", "In {w} {s} was born in {v}."),
    ),
    _Statement(("occupation", "birthplace"), ("{S} was {a} {v} from {w}.", "{S}, {a} {v}, was born in {w}.")),
    _Statement(("occupation", "birth_year"), ("{S} was {a} {v}, born in {w}.", "{S}, born in {w}, was {a} {v}.")),
    _Statement(
        ("spouse", "grave"), ("{S} married {v} and was buried in {w}.", "{S} lies in {w}, beside {h} {mate} {v}.")
    ),
    _Statement(
        ("teacher", "occupation"),
        ("{S} studied under {v} and became {a_w} {w}.", "A student of {v}, {s} became {a_w} {w}."),
    ),
    _Statement(
        ("occupation", "instrument"),
        ("{S} was {a} {v} who played the {w}.", "{S} worked as {a} {v} and played the {w}."),
    ),
    _Statement(
        ("occupation", "known_for"), ("{S} was {a} {v}, best known for {w}.", "{S}, {a} {v}, is known for {w}.")
    ),
    _Statement(
        ("spouse", "teacher"),
        ("{S} married {v} and was taught by {w}.", "{P} teacher was {w}, and {h} {mate} was {v}."),
    ),
)

_PLACE = (
    _Relation(
        "region",
        _Pen.word,
        (
            "{S} lies in the region of {v}.",
            "{S} is part of {v}.",
            "{S} belongs to the region of {v}.",
            "{P} region is {v}.",
            "The region around {o} is called {v}.",
        ),
        ("In which region is {t}?", "Which region does {t} belong to?", "What is the region of {t}?"),
        ("{S} is a {size} in the region of {v}.", "{S} is a {size} in {v}."),
    ),
    _Relation(
        "river",
        _Pen.word,
        (
            "{S} stands on the river {v}.",
            "{S} lies on the banks of the {v}.",
            "The river {v} runs through {o}.",
            "{P} river is the {v}.",
            "The river that flows past {o} is the {v}.",
        ),
        ("Which river runs through {t}?", "On which river does {t} lie?", "What is the river of {t}?"),
        ("{S} is a {size} on the river {v}.", "{S} is a {size} on the banks of the {v}."),
    ),
    _Relation(
        "founder",
        _Pen.name,
        (
            "{S} was founded by {v}.",
            "{P} founder was {v}.",
            "The founder of {o} was {v}.",
            "{S} owes its first houses to {v}, its founder.",
            "It was {v} who founded {o}.",
        ),
        ("Who founded {t}?", "Who was the founder of {t}?", "By whom was {t} founded?"),
    ),
    _Relation(
        "founding_year",
        _Pen.beginning,
        (
            "{S} was founded in {v}.",
            "{S} was founded in the year {v}.",
            "{P} founding year is {v}.",
            "The founding of {o} was in {v}.",
            "{S} has stood here since it was founded in {v}.",
        ),
        ("When was {t} founded?", "In which year was {t} founded?", "What is the founding year of {t}?"),
    ),
    _Relation(
        "population",
        _Pen.population,
        (
            "{S} has {v} people.",
            "{S} is home to {v} people.",
            "{P} population is {v}.",
            "There are {v} people in {o}.",
            "{S} has a population of {v}.",
        ),
        ("How many people live in {t}?", "What is the population of {t}?", "How many people does {t} have?"),
        ("{S} is a {size} of {v} people.", "{S} is a {size} with {v} people."),
    ),
    _Relation(
        "product",
        _one_of(_PRODUCTS),
        (
            "{S} is known for its {v}.",
            "{S} is famous for {v}.",
            "{S} lives from its trade in {v}.",
            "Many families in {o} make a living from {v}.",
            "Far away, people know {o} for its {v}.",
        ),
        ("What is {t} known for?", "Which product is {t} known for?", "What is the best known product of {t}?"),
        ("{S} is a {size} known for its {v}.",),
    ),
    _Relation(
        "twin_town",
        _Pen.word,
        (
            "{S} is the twin town of {v}.",
            "{P} twin town is {v}.",
            "{S} has {v} as its twin town.",
            "The twin town of {o} is {v}.",
            "{S} found a twin town in {v}.",
        ),
        ("What is the twin town of {t}?", "Which town is the twin of {t}?", "Which twin town does {t} have?"),
    ),
    _Relation(
        "mountain",
        _Pen.mountain,
        (
            "{S} lies below {v}.",
            "{S} lies at the foot of {v}.",
            "The mountain above {o} is {v}.",
            "{P} mountain is {v}.",
            "From {o} one can see {v}.",
        ),
        ("Which mountain stands above {t}?", "At the foot of which mountain is {t}?", "What is the mountain of {t}?"),
        ("{S} is a {size} at the foot of {v}.",),
    ),
)
_PLACE_PAIRS = (
    _Statement(("region", "river"), ("{S} lies in {v} on the river {w}.", "{S} lies on the river {w} in {v}.")),
    _Statement(
        ("founder", "founding_year"),
        ("{S} was founded by {v} in {w}.", "{S} was founded in {w} by {v}.", "In {w} {v} founded {o}."),
    ),
    _Statement(
        ("river", "mountain"), ("{S} lies between the river {v} and {w}.", "{S} lies below {w} on the river {v}.")
    ),
    _Statement(
        ("population", "product"),
        ("{S} has {v} people and is known for its {w}.", "{S}, famous for its {w}, has {v} people."),
    ),
    _Statement(("region", "population"), ("{S} lies in {v} and has {w} people.", "{S} is home to {w} people in {v}.")),
    _Statement(
        ("twin_town", "product"),
        ("{S} is the twin town of {v} and is famous for {w}.", "{S} is known for its {w}, and its twin town is {v}."),
    ),
    _Statement(
        ("region", "founding_year"),
        ("{S} lies in {v} and was founded in {w}.", "{S} was founded in {w} in the region of {v}."),
    ),
)

_WORK = (
    _Relation(
        "author",
        _Pen.name,
        (
            "{S} was {made} by {v}.",
            "{P} {maker} was {v}.",
            "The {maker} of {o} was {v}.",
            "It was {v} who {did} {o}.",
            "{S} is a work of {v}.",
        ),
        ("Who {did} {t}?", "Who was the {maker} of {t}?", "By whom was {t} {made}?"),
        ("{S} is {a_noun} {noun} by {v}.", "{S} is {a_noun} {noun} {made} by {v}."),
    ),
    _Relation(
        "year",
        _Pen.beginning,
        (
            "{S} was {made} in {v}.",
            "{S} dates from {v}.",
            "{S} has been known since {v}.",
            "{P} year is {v}.",
            "The year of {o} is {v}.",
        ),
        ("When was {t} {made}?", "In which year was {t} {made}?", "What is the year of {t}?"),
        ("{S} is {a_noun} {noun} from {v}.", "{S} is {a_noun} {noun} {made} in {v}."),
    ),
    _Relation(
        "kind",
        None,
        (
            "{S} is {a} {v}.",
            "{S} was made as {a} {v}.",
            "{S} is what one calls {a} {v}.",
            "As a work, {s} is {a} {v}.",
            "{S} is known as {a} {v}.",
        ),
        ("What kind of work is {t}?", "What kind of thing is {t}?", "As what kind of work is {t} known?"),
        ("{S} is a famous {v}.", "{S} is {a} {v}."),
    ),
    _Relation(
        "dedicated_to",
        _Pen.name,
        (
            "{S} is dedicated to {v}.",
            "{S} was a gift to {v}.",
            "{S} was made in honour of {v}.",
            "The person honoured by {o} is {v}.",
            "{S} honours {v}.",
        ),
        ("To whom is {t} dedicated?", "Who is honoured by {t}?", "In whose honour was {t} made?"),
    ),
)
_WORK_PAIRS = (
    _Statement(
        ("author", "year"),
        ("{S} was {made} by {v} in {w}.", "{S} was {made} in {w} by {v}.", "In {w} {v} {did} {o}."),
    ),
    _Statement(("kind", "author"), ("{S} is {a} {v} by {w}.", "{S} is {a} {v} {made} by {w}.")),
    _Statement(("kind", "year"), ("{S} is {a} {v} from {w}.", "{S} is {a} {v} {made} in {w}.")),
    _Statement(
        ("author", "dedicated_to"),
        ("{S} was {made} by {v} in honour of {w}.", "{S} is a work of {v} and is dedicated to {w}."),
    ),
    _Statement(
        ("year", "dedicated_to"),
        ("{S} was {made} in {v} in honour of {w}.", "{S} dates from {v} and is dedicated to {w}."),
    ),
)


@dataclass(frozen=True)
class _Family:
    """Kinds of works that are spoken of alike."""

    kinds: tuple[str, ...]
    words: dict[str, str]
    relations: tuple[_Relation, ...]


_CHARACTER = _Relation(
    "character",
    _Pen.name,
    (
        "{S} tells the story of {v}.",
        "{P} hero is {v}.",
        "{P} main character is {v}.",
        "The hero of {o} is {v}.",
        "{S} follows the life of {v}.",
    ),
    ("Who is the hero of {t}?", "Who is the main character of {t}?", "Whose story does {t} tell?"),
    ("{S} is {a_noun} {noun} about {v}.",),
)
_SETTING = _Relation(
    "setting",
    _Pen.word,
    (
        "{S} is set in {v}.",
        "{S} takes place in {v}.",
        "{P} story takes place in {v}.",
        "The setting of {o} is {v}.",
        "The story of {o} is set in {v}.",
    ),
    ("Where is {t} set?", "In which place is {t} set?", "Where does the story of {t} take place?"),
    ("{S} is {a_noun} {noun} set in {v}.",),
)
_FAMILIES = (
    _Family(
        _listed(
            "novel,poem,diary,satire,saga,fairy tale,ballad,biography,romance,thriller,ghost story,fable,legend,memoir"
        ),
        {"made": "written", "did": "wrote", "maker": "author"},
        (
            _CHARACTER,
            _SETTING,
            _Relation(
                "length",
                lambda pen: pen.number(40, 980),
                (
                    "{S} has {v} pages.",
                    "{S} is {v} pages long.",
                    "{P} length is {v} pages.",
                    "There are {v} pages in {o}.",
                    "{S} fills {v} pages.",
                ),
                ("How many pages does {t} have?", "How many pages long is {t}?", "What is the length of {t} in pages?"),
            ),
            _Relation(
                "publisher",
                lambda pen: f"{pen.word()} Press",
                (
                    "{S} was published by {v}.",
                    "{P} publisher was {v}.",
                    "The publisher of {o} was {v}.",
                    "{S} came out with {v}.",
                    "It was {v} that published {o}.",
                ),
                ("Who published {t}?", "Who was the publisher of {t}?", "Which press published {t}?"),
            ),
        ),
    ),
    _Family(
        _listed(
            "opera,ballet,film,musical,play,comedy,tragedy,farce,operetta,puppet show,radio play,cartoon,documentary"
        ),
        {"made": "directed", "did": "directed", "maker": "director"},
        (
            _CHARACTER,
            _SETTING,
            _Relation(
                "length",
                lambda pen: pen.number(40, 320),
                (
                    "{S} lasts {v} minutes.",
                    "{S} is {v} minutes long.",
                    "{P} length is {v} minutes.",
                    "It takes {v} minutes to see {o}.",
                    "{S} takes {v} minutes.",
                ),
                ("How many minutes does {t} last?", "How many minutes long is {t}?", "How long is {t} in minutes?"),
            ),
            _Relation(
                "theatre",
                lambda pen: f"{pen.word()} Theatre",
                (
                    "{S} was first shown at the {v}.",
                    "{S} opened at the {v}.",
                    "{P} first night was at the {v}.",
                    "The first night of {o} was at the {v}.",
                    "People first saw {o} at the {v}.",
                ),
                ("Where was {t} first shown?", "At which theatre did {t} open?", "Where was the first night of {t}?"),
            ),
        ),
    ),
    _Family(
        _listed("painting,drawing,mural,fresco,tapestry,mosaic,portrait,engraving,etching,watercolour,poster,woodcut"),
        {"made": "made", "did": "made", "maker": "artist"},
        (
            _Relation(
                "character",
                _Pen.name,
                (
                    "{S} shows {v}.",
                    "{P} model was {v}.",
                    "The model for {o} was {v}.",
                    "The person in {o} is {v}.",
                    "{S} shows the face of {v}.",
                ),
                ("Who was the model for {t}?", "Who is the person in {t}?", "Whose face does {t} show?"),
                ("{S} is {a_noun} {noun} of {v}.",),
            ),
            _Relation(
                "setting",
                _Pen.word,
                (
                    "In the background of {o} one can see {v}.",
                    "{P} background is a view of {v}.",
                    "The background of {o} is the town of {v}.",
                    "The houses of {v} fill the background of {o}.",
                    "{S} has {v} in its background.",
                ),
                (
                    "Which town is in the background of {t}?",
                    "What is the background of {t}?",
                    "The houses of which town are in {t}?",
                ),
            ),
            _Relation(
                "length",
                lambda pen: pen.number(30, 600),
                (
                    "{S} is {v} centimetres wide.",
                    "{S} measures {v} centimetres across.",
                    "{P} width is {v} centimetres.",
                    "The width of {o} is {v} centimetres.",
                    "{S} fills {v} centimetres of a wall.",
                ),
                (
                    "How many centimetres wide is {t}?",
                    "What is the width of {t} in centimetres?",
                    "How wide is {t} in centimetres?",
                ),
            ),
            _Relation(
                "museum",
                lambda pen: f"{pen.word()} Museum",
                (
                    "{S} hangs in the {v}.",
                    "{S} belongs to the {v}.",
                    "{P} home is the {v}.",
                    "One can see {o} in the {v}.",
                    "The owner of {o} is the {v}.",
                ),
                ("Where does {t} hang?", "Which museum owns {t}?", "In which museum is {t}?"),
                ("{S} is {a_noun} {noun} in the {v}.",),
            ),
        ),
    ),
)

# Sentences that answer no question about the article: what they tell is of others, or is nothing that is asked for.
# {n} and {m} are people, {x} and {y} places, {q} a year, {k} a number, {j} with article {j_a} an occupation.
_DISTRACTORS: dict[Kind, tuple[str, ...]] = {
    "person": (
        "A street in {x} has carried {p} name since {q}.",
        "In {q} {p} friend {n}, {j_a} {j}, moved to {x}.",
        "{n}, {j_a} {j} from {x}, wrote {k} letters to {o}.",
        "A statue of {o} by {n} was put up in {x} in {q}.",
        "{n}, {j_a} {j} born in {x} in {q}, thought well of {o}.",
        "{P} neighbour {n} owned {k} books about {x}.",
        "In {q} {s} made a journey to {x} and met {n}.",
        "A portrait of {o} by {n} was sold in {q} for {k} coins.",
    ),
    "place": (
        "The road from here to {x} was built in {q}.",
        "The next town, {x}, was founded by {n} in {q}.",
        "In {q} a fire burned {k} houses.",
        "The train to {x} takes {k} minutes.",
        "{n}, {j_a} {j} from {x}, lived here until {q}.",
        "The old church was built by {n} in {q}.",
        "The school has {k} children, and some come from {x}.",
        "The village of {x}, not far away, has {k} people.",
    ),
    "work": (
        "In {q} {n} gave a talk about it in {x}.",
        "{n}, {j_a} {j} from {x}, wrote {k} letters about it.",
        "A copy was sold in {x} in {q} for {k} coins.",
        "People in {x} did not like it at first.",
        "{n} and {m} spoke of it in {q}.",
        "A school in {x} has been named after it since {q}.",
        "{n} from {x} had a dream about it in {q}.",
        "The {j} {n} owned {k} copies of it.",
    ),
}

_PRONOUNS = {
    "woman": {"S": "She", "s": "she", "P": "Her", "p": "her", "o": "her", "h": "her", "mate": "husband"},
    "man": {"S": "He", "s": "he", "P": "His", "p": "his", "o": "him", "h": "his", "mate": "wife"},
    "thing": {"S": "It", "s": "it", "P": "Its", "p": "its", "o": "it", "h": "its"},
}
_KINDS_OF_WORKS = tuple((family, noun) for family in _FAMILIES for noun in family.kinds)


def _a(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _called(name: str) -> dict[str, str]:
    capital = name[0].upper() + name[1:]
    return {"S": capital, "s": name, "P": f"{capital}'s", "p": f"{name}'s", "o": name}


@dataclass(frozen=True)
class _Subject:
    """What an article is about: how it is named and referred to, and what may be said of it."""

    title: str
    words: dict[str, str]  # the placeholders that stay the same through the article
    names: tuple[dict[str, str], ...]  # clear everywhere
    references: tuple[dict[str, str], ...]  # clear where the sentence before spoke of the subject
    relations: tuple[_Relation, ...]  # those that the article states
    pairs: tuple[_Statement, ...]
    distractors: _Statement


def _subject(kind: Kind, pen: _Pen, stated: "tuple[_Relation, ...] | None" = None) -> _Subject:
    """Begin an article: draw its title, its relations where they are not given, and what all its sentences share."""
    pen.begin(900 if kind == "place" else 1500, 1900)
    distractors = _Statement((), _DISTRACTORS[kind])
    it = _PRONOUNS["thing"]
    if kind == "person":
        title, pronoun = pen.name(), _PRONOUNS[pen.pick(("woman", "man"))]
        names = (_called(title), _called(title.split()[1]))
        return _Subject(title, pronoun, names, (pronoun,), stated or pen.some(_PERSON), _PERSON_PAIRS, distractors)
    if kind == "place":
        title, noun = pen.word(), pen.pick(_PLACE_SIZES)
        words, relations, pairs = it | {"size": noun}, stated or pen.some(_PLACE), _PLACE_PAIRS
    else:
        title, (family, noun) = pen.title(), pen.pick(_KINDS_OF_WORKS)
        relations, pairs = stated or pen.some(_WORK + family.relations), _WORK_PAIRS
        words = it | family.words | {"kind": noun}
        if any(relation.name == "kind" for relation in relations):
            noun = "work"  # or other sentences would answer that question too
        words |= {"noun": noun, "a_noun": _a(noun)}
    references = (_called(f"the {noun}"), it | {"o": f"the {noun}"})
    return _Subject(title, words, (_called(title),), references, relations, pairs, distractors)


class _Author:
    """Writes articles of one split, no two with the same title."""

    def __init__(self, split: Split, seed: object):
        self.pen = _Pen(split, seed)
        self.titles: set[str] = set()

    def write(self, kind: Kind, stated: tuple[_Relation, ...] | None = None) -> Article:
        """Write one: where relations are given it states those and nothing else."""
        pen = self.pen
        subject = _subject(kind, pen, stated)
        while subject.title in self.titles:
            subject = _subject(kind, pen, stated)
        doc_id = f"tp-{pen.split}-{len(self.titles):06d}"
        self.titles.add(subject.title)

        relations = {relation.name: relation for relation in subject.relations}
        values = {
            name: relation.value(pen) if relation.value else subject.words[name] for name, relation in relations.items()
        }
        sentences, facts, forms = [], [], _called(subject.title)
        for statement in _plan(subject, pen.rng, most_distractors=0 if stated else 2):
            sentences.append(_sentence(statement, values, subject.words | forms, pen, first=not sentences))
            for name in statement.names:
                question = pen.pick(relations[name].questions).format_map({**subject.words, "t": subject.title})
                facts.append(Fact(name, question, values[name]))
            clear = statement.names and pen.rng.random() < 0.7
            forms = pen.pick(subject.references if clear else subject.names)
        return Article(doc_id, kind, subject.title, " ".join(sentences), tuple(facts))


def _plan(subject: _Subject, rng: random.Random, *, most_distractors: int) -> list[_Statement]:
    """What each sentence of an article states: one relation, two, or none in a distractor."""
    left, plan = {relation.name: relation for relation in subject.relations}, []
    for pair in rng.sample(subject.pairs, len(subject.pairs)):
        if all(name in left for name in pair.names) and rng.random() < (0.2 if plan else 0.6):
            plan.append(pair)
            left = {name: relation for name, relation in left.items() if name not in pair.names}
    plan += [_Statement((name,), relation.sentences, relation.openers) for name, relation in left.items()]
    rng.shuffle(plan)
    for _ in range(min(most_distractors, rng.choice((0, 1, 1, 2)))):
        plan.insert(rng.randint(1, len(plan)), subject.distractors)
    return plan


def _sentence(statement: _Statement, values: dict[str, str], words: dict[str, str], pen: _Pen, *, first: bool) -> str:
    """State some relations by one sentence; the first of an article begins with its subject."""
    words = _Drawn(words, pen)
    for name, value, article in zip(statement.names, "vw", ("a", "a_w"), strict=False):
        words[value], words[article] = values[name], _a(values[name])
    patterns = _introductions(statement.sentences, statement.openers) if first else statement.sentences
    return pen.pick(patterns).format_map(words)


@cache
def _introductions(sentences: tuple[str, ...], openers: tuple[str, ...]) -> tuple[str, ...]:
    """The sentences that begin with their subject; openers twice, as they are the usual beginning."""
    return tuple(sentence for sentence in openers * 2 + sentences if sentence.startswith("{S}"))


class _Drawn(dict[str, str]):
    """The words of a sentence; those that a distractor needs are drawn when it asks for them."""

    def __init__(self, words: dict[str, str], pen: _Pen):
        super().__init__(words)
        self.pen = pen

    def __missing__(self, key: str) -> str:
        if key == "j_a":
            return _a(self["j"])
        self[key] = value = _DRAWS[key](self.pen)
        return value


_DRAWS: dict[str, Callable[[_Pen], str]] = {
    "n": _Pen.name,
    "m": _Pen.name,
    "x": _Pen.word,
    "q": _Pen.year,
    "k": lambda pen: pen.number(12, 900),
    "j": _one_of(_OCCUPATIONS),
}


def articles(split: Split, *, seed: int = 0) -> Iterator[Article]:
    """Write articles without end, the same ones for the same split and seed, no two with the same title.

    The kinds take turns at random. Titles are remembered, about 100 bytes each. The ids count the articles of this
    stream; another seed has other articles by the same ids.
    """
    author = _Author(split, seed)
    while True:
        yield author.write(author.pen.pick(KINDS))


def conversations(
    split: Split, *, seed: object = 0, documents: tuple[int, int] = (1, 5), questions: int = 8
) -> Iterator[Conversation]:
    """Put new articles side by side and ask about them, without end; the same for the same arguments.

    Three times in four the articles are of one kind, so that a question's relation is found in several of them and
    only its title tells which one is meant. The articles are not those of `articles`.

    Args:
        split: whose articles.
        seed: of all draws.
        documents: the fewest and the most articles; one conversation of three has the fewest.
        questions: the most questions; fewer only where the articles state fewer facts.
    """
    author = _Author(split, f"conversations {seed}")
    pen, (fewest, most) = author.pen, documents
    while True:
        count = fewest if fewest == most or pen.rng.random() < 1 / 3 else pen.rng.randint(fewest + 1, most)
        kind = pen.pick(KINDS) if pen.rng.random() < 0.75 else None
        read = tuple(author.write(kind or pen.pick(KINDS)) for _ in range(count))
        facts = [fact for article in read for fact in article.facts]
        yield Conversation(read, tuple(pen.rng.sample(facts, min(questions, len(facts)))))


def recitals(
    split: Split, *, seed: int = 0, documents: tuple[int, int] = (1, 5), questions: int = 6
) -> Iterator[Conversation]:
    """As `conversations`, and behind the questions of each what one of its articles says, answered with its whole text.

    It comes last, so that no question is answered from what has been recited. The articles are not those of
    `conversations`.

    Args:
        split: whose articles.
        seed: of all draws.
        documents: see `conversations`.
        questions: the most questions, without the last one.
    """
    rng = _Pen(split, f"recitals {seed}").rng
    for drawn in conversations(split, seed=f"recitals {seed}", documents=documents, questions=questions):
        yield Conversation(drawn.documents, (*drawn.turns, _recital(rng.choice(drawn.documents))))


def _recital(article: Article) -> Fact:
    return Fact("text", RECITAL.format(t=article.title), article.text)


def short_conversations(
    split: Split, *, seed: int = 0, documents: tuple[int, int] = (2, 5), questions: int = 8
) -> Iterator[Conversation]:
    """Put short articles side by side that all state the same one or two things, and ask about them, without end.

    Only its title tells which article is meant, and there is little else to read. Of one conversation in three the
    questions are what the articles say, answered with their whole text: nothing but the title can be gone by.

    Args:
        split: whose articles.
        seed: of all draws.
        documents: the fewest and the most articles.
        questions: the most questions; fewer only where the articles state fewer facts.
    """
    author = _Author(split, f"short conversations {seed}")
    pen = author.pen
    relations = {"person": _PERSON, "place": _PLACE, "work": _WORK}
    while True:
        kind = pen.pick(KINDS)
        stated = tuple(pen.rng.sample(relations[kind], pen.pick((1, 2))))
        read = tuple(author.write(kind, stated) for _ in range(pen.rng.randint(*documents)))
        facts = [fact for article in read for fact in article.facts]
        if pen.rng.random() < 1 / 3:
            facts = [_recital(article) for article in read]
        yield Conversation(read, tuple(pen.rng.sample(facts, min(questions, len(facts)))))


def write(folder: Path | str, split: Split, *, count: int, seed: int = 0, documents: int = 5) -> None:
    """Write the first articles of a split as a corpus, with its questions and a retrieval run for them.

    ``corpus.jsonl`` holds ``{"_id", "title", "text"}``, ``questions.jsonl`` holds ``{"id", "question", "answers",
    "doc_ids"}`` with the one article that answers, and ``run.trec`` holds ``documents`` ranked articles for each
    question: the one that answers at a random rank among others, most of them of its kind.

    Raises:
        TrainingError: if there are fewer articles than a question is given.
    """
    if count < documents:
        raise TrainingError(f"{documents} documents for each question need as many articles, not {count}: raise count.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = list(islice(articles(split, seed=seed), count))
    pen = _Pen(split, f"run {seed}")
    alike: dict[Kind, list[Article]] = defaultdict(list)
    for article in corpus:
        alike[article.kind].append(article)

    with ExitStack() as files:
        texts, asked, run = (
            files.enter_context(_replacing(folder / name)) for name in ("corpus.jsonl", "questions.jsonl", "run.trec")
        )
        for article in corpus:
            texts.write(_line({"_id": article.doc_id, "title": article.title, "text": article.text}))
            for fact in article.facts:
                qid = f"{article.doc_id}-{fact.relation}"
                record = {"id": qid, "question": fact.question, "answers": [fact.answer], "doc_ids": [article.doc_id]}
                asked.write(_line(record))
                for rank, doc_id in enumerate(_ranked(article, corpus, alike[article.kind], documents, pen.rng), 1):
                    run.write(f"{qid} Q0 {doc_id} {rank} {documents - rank + 1} tinypedia\n")


def _ranked(gold: Article, corpus: list[Article], alike: list[Article], count: int, rng: random.Random) -> list[str]:
    """The ids of an article and of others, four in five of its kind as far as there are any, in random order."""
    ranked = [gold.doc_id]
    same_kind = len(alike)
    while len(ranked) < count:
        pool = alike if same_kind > count and rng.random() < 0.8 else corpus
        other = rng.choice(pool).doc_id
        if other not in ranked:
            ranked.append(other)
    rng.shuffle(ranked)
    return ranked


def write_conversations(path: Path | str, drawn: Iterable[Conversation]) -> None:
    """Write conversations as JSON lines of ``documents`` (title, text) and ``turns`` (question, answer)."""
    with _replacing(Path(path)) as file:
        for conversation in drawn:
            read = [{"title": article.title, "text": article.text} for article in conversation.documents]
            turns = [{"question": fact.question, "answer": fact.answer} for fact in conversation.turns]
            file.write(_line({"documents": read, "turns": turns}))


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """Write beside a file, and put it in its place once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("w", encoding="utf-8") as file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
