"""The fields of a record that hold its id, its text and its title."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..configs.corpus import CorpusConfig
from ..errors import CorpusError, some

# In order of preference, because some corpora have several: MS MARCO v2 has pid and docid, KILT has _id and
# wikipedia_id.
ID_FIELDS = (
    *("_id", "id", "pid", "docid", "doc_id", "document_id", "passage_id", "wikipedia_id"),
    *("docno", "identifier", "uuid", "guid"),
)
TEXT_FIELDS = (
    *("text", "contents", "content", "passage", "segment", "body"),
    *("abstract", "description", "sentence", "paragraph", "document"),
)
TITLE_FIELDS = ("title", "wikipedia_title")

# Further names of columns: a row of such words is probably a header.
_COLUMNS = (
    *("key", "uid", "number", "no", "nr", "index", "name", "url", "uri", "label", "category", "type", "class", "date"),
    *("year", "author", "language", "source", "summary", "section", "question", "query", "answer", "comment", "review"),
    *("message", "article", "utterance", "string", "line", "topic", "score", "docname", "filename", "qid"),
)
_PUNCTUATION = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the fields in use.

    Attributes:
        id: field that holds the id.
        text: field that holds the text.
        title: field that holds the title; None if the records have none.
    """

    id: str
    text: str
    title: str | None

    @property
    def spec(self) -> dict[str, str | None]:
        """JSON-able form, which is part of a source's ``spec``."""
        return {"id": self.id, "text": self.text, "title": self.title}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Fields":
        """Rebuild the fields from their ``spec``."""
        return cls(spec["id"], spec["text"], spec["title"])


def choose_fields(found: Sequence[str], config: CorpusConfig, place: str) -> Fields:
    """Return the configured fields; recognise those that are not configured by their names.

    If the id or the text is not found, names are compared again without regard to capitals, blanks and punctuation.

    Args:
        found: names of the fields that the records have.
        config: configuration of the corpus.
        place: file and line, for messages.

    Raises:
        CorpusError: if there is no field for the id or the text. The message lists the fields that were found.
    """
    roles = ("id", config.id_field, ID_FIELDS), ("text", config.text_field, TEXT_FIELDS)
    is_exact = all(_find(found, configured, known, str) is not None for _, configured, known in roles)
    key = str if is_exact else plain_name
    chosen = []
    for role, configured, known in roles:
        if (name := _find(found, configured, known, key)) is None:
            missing = f"no field for the {role} is recognised"
            if configured is not None:
                missing = f"no field {configured!r} for the {role}"
            raise CorpusError(f"{place}: {missing}; found {listed(found)}. Set {role}_field to one of them.")
        chosen.append(name)
    return Fields(*chosen, title=config.title_field or _find(found, None, TITLE_FIELDS, key))


def require_title_column(columns: Sequence[str], config: CorpusConfig, place: str) -> None:
    """Check that a table has the configured title column. A JSON record may lack its title, a row cannot.

    Raises:
        CorpusError: if the table has no such column.
    """
    if config.title_field is not None and config.title_field not in columns:
        raise CorpusError(
            f"{place}: no column {config.title_field!r} for the title; found {listed(columns)}."
            " Set title_field to one of them."
        )


def names_id(cells: Sequence[str], config: CorpusConfig) -> bool:
    """Return True if a cell of a row names an id: the configured field, or a known one."""
    return _find(cells, config.id_field, ID_FIELDS, plain_name) is not None


def names_text(cells: Sequence[str], config: CorpusConfig) -> bool:
    """Return True if a cell of a row names a text: the configured field, or a known one."""
    return _find(cells, config.text_field, TEXT_FIELDS, plain_name) is not None


def plain_name(name: str) -> str:
    """Return a name as names are compared: without capitals, blanks and punctuation."""
    return _PUNCTUATION.sub("", name.casefold())


PLAIN_IDS, PLAIN_TEXTS, PLAIN_COLUMNS = (
    frozenset(map(plain_name, names)) for names in (ID_FIELDS, TEXT_FIELDS, (*TITLE_FIELDS, *_COLUMNS))
)
"""Plain names of ids, of texts, and of the other columns that tables often have."""


def listed(names: Iterable[str]) -> str:
    """Quote names for a message: the first 20 names, each cut to 40 characters."""
    return some([name[:40] for name in names], most=20) or "none"


def _find(found: Sequence[str], configured: str | None, known: Sequence[str], key: Callable[[str], str]) -> str | None:
    """Return the configured field, or the first known one that is found; None if there is none."""
    if configured is not None:
        return configured if configured in found else None
    held = {key(name): name for name in reversed(found)}
    return next((held[key(name)] for name in known if key(name) in held), None)
