"""Pages of Wikimedia Enterprise's dumps: wikitext in a JSON record, cleaned and cut as that of other dumps.

Format: https://enterprise.wikimedia.com/docs/data-dictionary/
"""

from dataclasses import replace

from ...configs.corpus import CorpusConfig
from ..document import Document
from ..fields import Fields
from ..rejected import RecordError
from .wikitext import lowered, prose

PAGE_FIELDS = {"id_field": "identifier", "title_field": "name", "text_field": "article_body.wikitext"}
"""Fields that hold the id, title and text of a page, by the name of their setting."""

# Words of a document if the configuration sets no number, as of other Wikimedia dumps.
_PASSAGE_WORDS = 100
_DROPPED_LINKS = lowered(("media", "file", "image", "category"))


def holds_wikitext(fields: Fields) -> bool:
    """Return True if the texts are wikitext."""
    return fields.text == PAGE_FIELDS["text_field"]


def passage_words(fields: Fields, config: CorpusConfig) -> int | None:
    """Return the number of words that texts are cut into; None if they stay whole."""
    return config.passage_words or (_PASSAGE_WORDS if holds_wikitext(fields) else None)


def cleaned(document: Document, place: str) -> Document:
    """Return the document with the prose of its wikitext, which is empty if it has none.

    Raises:
        RecordError: if the wikitext cannot be parsed.
    """
    try:
        return replace(document, text=prose(document.text, _DROPPED_LINKS))
    # Any error of the cleaning concerns this page only.
    except (RecursionError, ValueError, TypeError, AttributeError, LookupError) as error:
        problem = (
            f"its wikitext cannot be parsed ({type(error).__name__}: {error})."
            " Skip the page with --on-error skip, and report this error."
        )
        raise RecordError(place, problem, "unparsable wikitext", document.doc_id) from error
