"""Which field of a record is its id, its text and its title."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..configs.corpus import CorpusConfig
from ..errors import CorpusError

# In order of preference: MS MARCO v2 has both pid and docid, KILT both _id and wikipedia_id.
ID_FIELDS = ("_id", "id", "pid", "docid", "doc_id", "document_id", "passage_id", "wikipedia_id")
TEXT_FIELDS = ("text", "contents", "content", "passage", "segment", "body")
TITLE_FIELDS = ("title", "wikipedia_title")


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the fields in use; ``title`` is None where records have none."""

    id: str
    text: str
    title: str | None

    @property
    def spec(self) -> dict[str, str | None]:
        """The JSON-able form."""
        return {"id": self.id, "text": self.text, "title": self.title}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Fields":
        """Rebuild from ``spec``."""
        return cls(spec["id"], spec["text"], spec["title"])


def choose_fields(found: Sequence[str], config: CorpusConfig, where: str) -> Fields:
    """Take the configured field names, or recognise them among those found.

    Raises:
        CorpusError: when one is missing, naming what was found.
    """
    return Fields(
        id=_choose(found, config.id_field, ID_FIELDS, "id", where),
        text=_choose(found, config.text_field, TEXT_FIELDS, "text", where),
        title=config.title_field or _first_of(TITLE_FIELDS, found),
    )


def looks_like_header(cells: Sequence[str]) -> bool:
    """Whether the cells of a first row name an id and a text, rather than being ones."""
    return _first_of(ID_FIELDS, cells) is not None and _first_of(TEXT_FIELDS, cells) is not None


def listed(names: Iterable[str]) -> str:
    """Quote names for a message: the first twenty, each by its first forty characters."""
    names = list(names)
    shown = ", ".join(repr(name[:40]) for name in names[:20]) or "none"
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20:,} more"


def _choose(found: Sequence[str], configured: str | None, known: Sequence[str], role: str, where: str) -> str:
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
    raise CorpusError(f"{where}: {missing}; found {listed(found)}. Set {role}_field to one of them.")


def _first_of(known: Sequence[str], found: Sequence[str]) -> str | None:
    return next((name for name in known if name in found), None)
