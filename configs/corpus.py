"""Configuration of a corpus: its format, its fields, and its records that cannot be used."""

from typing import Literal

from pydantic import Field

from .base import Config, FileOnly
from .names import CorpusFormat, TextEncoding

OnError = Literal["fail", "skip"]
"""Treatment of records that cannot be used: the first one is an error, or each is left out and counted."""


class CorpusConfig(Config):
    """The format of a corpus, the fields of its records, and the treatment of records that cannot be used.

    A field that is not configured is recognised by its name: ``_id``, ``id``, ``docid``, ``text``, ``contents``,
    ``title`` and the like.
    """

    format: CorpusFormat = Field(
        "auto", description="File format; auto recognises it from the first bytes, whatever the file is called."
    )
    encoding: FileOnly[TextEncoding] = Field(
        "auto", description="Encoding of text; auto: UTF-8, or UTF-16 after its byte order mark."
    )
    id_field: str | None = Field(None, description="Field or column that holds the document id.")
    text_field: str | None = Field(None, description="Field or column that holds the text.")
    title_field: str | None = Field(None, description="Field or column that holds the title; records may lack it.")
    columns: FileOnly[tuple[str, ...] | None] = Field(
        None, description="Column names of a TSV file, instead of its header's, e.g. [id, url, text]."
    )
    header: FileOnly[bool | None] = Field(
        None, description="True if a TSV file has a header, false if not; unset: recognised."
    )
    quoting: FileOnly[Literal["auto", "csv", "none"]] = Field(
        "auto",
        description="TSV quotes: csv if they enclose cells, as DPR's; none if they are text, as MS MARCO's; auto: "
        "recognised.",
    )
    namespaces: FileOnly[tuple[int, ...]] = Field(
        (0,), description="MediaWiki namespaces to keep; 0 holds the articles."
    )
    on_error: OnError = Field(
        "fail",
        description="Treatment of a record that cannot be used: fail ends the build before it starts; skip leaves "
        "the record out, counts it, and keeps it in the store's table rejected.",
    )
    passage_words: int | None = Field(
        None,
        ge=10,
        description="Cut each text into documents of this many words, with ids ID#0, ID#1, …; mediawiki uses 100 if "
        "this is unset.",
    )
