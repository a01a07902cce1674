"""People: the relations that an article about a person can state, and the words it draws from."""

from .pen import Pen, one_of
from .relations import Relation, Statement
from .words import listed

# Values of a closed list are equally likely, and there are more than thirty, so that a guess is seldom right.
OCCUPATIONS = listed(
    "actor,architect,baker,banker,botanist,brewer,builder,butcher,carpenter,chemist,clockmaker,cook,dancer,diplomat,"
    "doctor,engineer,explorer,farmer,gardener,hunter,judge,lawyer,librarian,merchant,miller,nurse,painter,pilot,poet,"
    "potter,priest,printer,sailor,sculptor,shepherd,smith,soldier,surgeon,tailor,weaver"
)
INSTRUMENTS = listed(
    "accordion,bagpipes,banjo,bassoon,bugle,cello,clarinet,cornet,cymbals,double bass,drums,fiddle,flute,guitar,"
    "harmonica,harp,horn,lute,lyre,mandolin,oboe,organ,piano,recorder,saxophone,spinet,tambourine,triangle,trombone,"
    "trumpet,tuba,viola,violin,whistle,xylophone,zither"
)

RELATIONS = (
    Relation(
        "birthplace",
        Pen.word,
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
    Relation(
        "birth_year",
        Pen.beginning,
        (
            "{S} was born in {v}.",
            "{S} was born in the year {v}.",
            "{P} year of birth was {v}.",
            "{S} came into the world in {v}.",
            "The year {v} saw {p} birth.",
        ),
        ("When was {t} born?", "In which year was {t} born?", "What is the birth year of {t}?"),
    ),
    Relation(
        "occupation",
        one_of(OCCUPATIONS),
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
    Relation(
        "spouse",
        Pen.name,
        (
            "{S} married {v}.",
            "{S} was married to {v}.",
            "{P} {mate} was {v}.",
            "{S} lived for many years with {h} {mate}, {v}.",
            "{S} found a {mate} in {v}.",
        ),
        ("Who did {t} marry?", "Who was married to {t}?", "What was the name of {t}'s {mate}?"),
    ),
    Relation(
        "teacher",
        Pen.name,
        (
            "{S} was a student of {v}.",
            "{S} studied under {v}.",
            "{P} teacher was {v}.",
            "{S} learned from {v}.",
            "As a child {s} was taught by {v}.",
        ),
        ("Who taught {t}?", "Who was the teacher of {t}?", "Under whom did {t} study?"),
    ),
    Relation(
        "instrument",
        one_of(INSTRUMENTS),
        (
            "{S} played the {v}.",
            "{S} loved to play the {v}.",
            "In the evening {s} played the {v}.",
            "{P} instrument was the {v}.",
            "{S} was good at playing the {v}.",
        ),
        ("Which instrument did {t} play?", "What did {t} like to play?", "What was the instrument of {t}?"),
    ),
    Relation(
        "known_for",
        Pen.title,
        (
            "{S} is best known for {v}.",
            "{S} became famous with {v}.",
            "{P} best known work is {v}.",
            "{S} is remembered for {v}.",
            "The work that made {o} famous is {v}.",
        ),
        ("What is {t} best known for?", "Which work made {t} famous?", "What is the best known work of {t}?"),
    ),
    Relation(
        "grave",
        Pen.word,
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
PAIRS = (
    Statement(
        ("birthplace", "birth_year"),
        ("{S} was born in {v} in {w}.", "{S} was born in {w} in {v}.", "In {w} {s} was born in {v}."),
    ),
    Statement(("occupation", "birthplace"), ("{S} was {a} {v} from {w}.", "{S}, {a} {v}, was born in {w}.")),
    Statement(("occupation", "birth_year"), ("{S} was {a} {v}, born in {w}.", "{S}, born in {w}, was {a} {v}.")),
    Statement(
        ("spouse", "grave"), ("{S} married {v} and was buried in {w}.", "{S} lies in {w}, beside {h} {mate} {v}.")
    ),
    Statement(
        ("teacher", "occupation"),
        ("{S} studied under {v} and became {a_w} {w}.", "A student of {v}, {s} became {a_w} {w}."),
    ),
    Statement(
        ("occupation", "instrument"),
        ("{S} was {a} {v} who played the {w}.", "{S} worked as {a} {v} and played the {w}."),
    ),
    Statement(("occupation", "known_for"), ("{S} was {a} {v}, best known for {w}.", "{S}, {a} {v}, is known for {w}.")),
    Statement(
        ("spouse", "teacher"),
        ("{S} married {v} and was taught by {w}.", "{P} teacher was {w}, and {h} {mate} was {v}."),
    ),
)

# Sentences that answer no question: they tell of somebody or something else, or what no relation asks for.
DISTRACTORS = (
    "A street in {x} has carried {p} name since {q}.",
    "In {q} {p} friend {n}, {j_a} {j}, moved to {x}.",
    "{n}, {j_a} {j} from {x}, wrote {k} letters to {o}.",
    "A statue of {o} by {n} was put up in {x} in {q}.",
    "{n}, {j_a} {j} born in {x} in {q}, thought well of {o}.",
    "{P} neighbour {n} owned {k} books about {x}.",
    "In {q} {s} made a journey to {x} and met {n}.",
    "A portrait of {o} by {n} was sold in {q} for {k} coins.",
)
