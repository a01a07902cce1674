"""Places: the relations that an article about a town, port or city can state, and the words it draws from."""

from .pen import Pen, one_of
from .relations import Relation, Statement
from .words import listed

SIZES = ("town", "port", "city")
# Values of a closed list are equally likely, and there are more than thirty, so that a guess is seldom right.
PRODUCTS = listed(
    "apples,baskets,beer,bells,boats,bricks,butter,buttons,candles,carpets,cheese,cherries,clocks,furniture,glass,"
    "gloves,hats,honey,knives,lace,leather,mirrors,mustard,onions,paper,pears,plums,pottery,roses,ropes,salt,shoes,"
    "silk,soap,swords,tea,tiles,toys,wine,wool"
)

RELATIONS = (
    Relation(
        "region",
        Pen.word,
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
    Relation(
        "river",
        Pen.word,
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
    Relation(
        "founder",
        Pen.name,
        (
            "{S} was founded by {v}.",
            "{P} founder was {v}.",
            "The founder of {o} was {v}.",
            "{S} owes its first houses to {v}, its founder.",
            "It was {v} who founded {o}.",
        ),
        ("Who founded {t}?", "Who was the founder of {t}?", "By whom was {t} founded?"),
    ),
    Relation(
        "founding_year",
        Pen.beginning,
        (
            "{S} was founded in {v}.",
            "{S} was founded in the year {v}.",
            "{P} founding year is {v}.",
            "The founding of {o} was in {v}.",
            "{S} has stood here since it was founded in {v}.",
        ),
        ("When was {t} founded?", "In which year was {t} founded?", "What is the founding year of {t}?"),
    ),
    Relation(
        "population",
        Pen.population,
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
    Relation(
        "product",
        one_of(PRODUCTS),
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
    Relation(
        "twin_town",
        Pen.word,
        (
            "{S} is the twin town of {v}.",
            "{P} twin town is {v}.",
            "{S} has {v} as its twin town.",
            "The twin town of {o} is {v}.",
            "{S} found a twin town in {v}.",
        ),
        ("What is the twin town of {t}?", "Which town is the twin of {t}?", "Which twin town does {t} have?"),
    ),
    Relation(
        "mountain",
        Pen.mountain,
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
PAIRS = (
    Statement(("region", "river"), ("{S} lies in {v} on the river {w}.", "{S} lies on the river {w} in {v}.")),
    Statement(
        ("founder", "founding_year"),
        ("{S} was founded by {v} in {w}.", "{S} was founded in {w} by {v}.", "In {w} {v} founded {o}."),
    ),
    Statement(
        ("river", "mountain"), ("{S} lies between the river {v} and {w}.", "{S} lies below {w} on the river {v}.")
    ),
    Statement(
        ("population", "product"),
        ("{S} has {v} people and is known for its {w}.", "{S}, famous for its {w}, has {v} people."),
    ),
    Statement(("region", "population"), ("{S} lies in {v} and has {w} people.", "{S} is home to {w} people in {v}.")),
    Statement(
        ("twin_town", "product"),
        ("{S} is the twin town of {v} and is famous for {w}.", "{S} is known for its {w}, and its twin town is {v}."),
    ),
    Statement(
        ("region", "founding_year"),
        ("{S} lies in {v} and was founded in {w}.", "{S} was founded in {w} in the region of {v}."),
    ),
)

# Sentences that answer no question: they tell of somebody or something else, or what no relation asks for.
DISTRACTORS = (
    "The road from here to {x} was built in {q}.",
    "The next town, {x}, was founded by {n} in {q}.",
    "In {q} a fire burned {k} houses.",
    "The train to {x} takes {k} minutes.",
    "{n}, {j_a} {j} from {x}, lived here until {q}.",
    "The old church was built by {n} in {q}.",
    "The school has {k} children, and some come from {x}.",
    "The village of {x}, not far away, has {k} people.",
)
