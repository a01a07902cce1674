"""The fields of a record that hold its id, its text and its title."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..configs.corpus import CorpusConfig
from ..errors import CorpusError, some

# In order of preference, because some corpora have several: MS MARCO v2 has pid and docid, KILT has _id and
# wikipedia_id.
ID_FIELDS = ("_id", "id", "pid", "docid", "doc_id", "document_id", "passage_id", "wikipedia_id")
TEXT_FIELDS = ("text", "contents", "content", "passage", "segment", "body")
TITLE_FIELDS = ("title", "wikipedia_title")


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

    Args:
        found: names of the fields that the records have.
        config: configuration of the corpus.
        place: file and line, for messages.

    Raises:
        CorpusError: if there is no field for the id or the text. The message lists the fields that were found.
    """
    return Fields(
        id=_choose(found, config.id_field, ID_FIELDS, "id", place),
        text=_choose(found, config.text_field, TEXT_FIELDS, "text", place),
        title=config.title_field or _first_of(TITLE_FIELDS, found),
    )


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


def looks_like_header(cells: Sequence[str]) -> bool:
    """Return True if the cells of a first row name an id and a text."""
    return _first_of(ID_FIELDS, cells) is not None and _first_of(TEXT_FIELDS, cells) is not None


def listed(names: Iterable[str]) -> str:
    """Quote names for a message: the first 20 names, each cut to 40 characters."""
    return some([name[:40] for name in names], most=20) or "none"


def _choose(found: Sequence[str], configured: str | None, known: Sequence[str], role: str, place: str) -> str:
    if configured is not None and configured in found:
        return configured
    recognised = _first_of(known, found)
    if configured is None and recognised is not None:
        return recognised
    missing = (
        f"no field {configured!r} for the {role}"
        if configured is not None
        else f"no field for the {role} is recognised"
    )
    raise CorpusError(f"{place}: {missing}; found {listed(found)}. Set {role}_field to one of them.")


def _first_of(known: Sequence[str], found: Sequence[str]) -> str | None:
    return next((name for name in known if name in found), None)
