"""Works of art: the relations that an article about a book, a play or a picture can state."""

from dataclasses import dataclass

from .pen import Pen
from .relations import Relation, Statement
from .words import listed


@dataclass(frozen=True)
class Family:
    """Kinds of works that share their relations and their verbs.

    Attributes:
        kinds: nouns for the works, such as "novel".
        words: forms of the verb and the noun for making such a work: ``made``, ``did`` and ``maker``.
        relations: relations of this family, in addition to those of all works.
    """

    kinds: tuple[str, ...]
    words: dict[str, str]
    relations: tuple[Relation, ...]


# Relations of works of every family.
RELATIONS = (
    Relation(
        "author",
        Pen.name,
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
    Relation(
        "year",
        Pen.beginning,
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
    Relation(
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
    Relation(
        "dedicated_to",
        Pen.name,
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
PAIRS = (
    Statement(
        ("author", "year"),
        ("{S} was {made} by {v} in {w}.", "{S} was {made} in {w} by {v}.", "In {w} {v} {did} {o}."),
    ),
    Statement(("kind", "author"), ("{S} is {a} {v} by {w}.", "{S} is {a} {v} {made} by {w}.")),
    Statement(("kind", "year"), ("{S} is {a} {v} from {w}.", "{S} is {a} {v} {made} in {w}.")),
    Statement(
        ("author", "dedicated_to"),
        ("{S} was {made} by {v} in honour of {w}.", "{S} is a work of {v} and is dedicated to {w}."),
    ),
    Statement(
        ("year", "dedicated_to"),
        ("{S} was {made} in {v} in honour of {w}.", "{S} dates from {v} and is dedicated to {w}."),
    ),
)

_CHARACTER = Relation(
    "character",
    Pen.name,
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
_SETTING = Relation(
    "setting",
    Pen.word,
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
FAMILIES = (
    Family(
        listed(
            "novel,poem,diary,satire,saga,fairy tale,ballad,biography,romance,thriller,ghost story,fable,legend,memoir"
        ),
        {"made": "written", "did": "wrote", "maker": "author"},
        (
            _CHARACTER,
            _SETTING,
            Relation(
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
            Relation(
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
    Family(
        listed(
            "opera,ballet,film,musical,play,comedy,tragedy,farce,operetta,puppet show,radio play,cartoon,documentary"
        ),
        {"made": "directed", "did": "directed", "maker": "director"},
        (
            _CHARACTER,
            _SETTING,
            Relation(
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
            Relation(
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
    Family(
        listed("painting,drawing,mural,fresco,tapestry,mosaic,portrait,engraving,etching,watercolour,poster,woodcut"),
        {"made": "made", "did": "made", "maker": "artist"},
        (
            Relation(
                "character",
                Pen.name,
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
            Relation(
                "setting",
                Pen.word,
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
            Relation(
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
            Relation(
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

# Second words of the names that publishers, theatres and museums have in the relations above.
HOUSES = ("Press", "Theatre", "Museum")

# Sentences that answer no question: they tell of somebody or something else, or what no relation asks for.
DISTRACTORS = (
    "In {q} {n} gave a talk about it in {x}.",
    "{n}, {j_a} {j} from {x}, wrote {k} letters about it.",
    "A copy was sold in {x} in {q} for {k} coins.",
    "People in {x} did not like it at first.",
    "{n} and {m} spoke of it in {q}.",
    "A school in {x} has been named after it since {q}.",
    "{n} from {x} had a dream about it in {q}.",
    "The {j} {n} owned {k} copies of it.",
)
