"""How a corpus is read."""

from typing import Literal

from pydantic import Field

from .base import Config


class CorpusConfig(Config):
    """Which records a corpus has and which of their fields are used.

    Field names left out are recognised: ``_id``, ``id``, ``docid``, ``text``, ``contents``, ``title`` and the like.
    """

    format: Literal["auto", "jsonl", "json", "parquet", "arrow", "tsv", "mediawiki"] = Field(
        "auto", description="File format; auto tells it from the first bytes, whatever a file is called."
    )
    id_field: str | None = Field(None, description="Field or column that holds the document id.")
    text_field: str | None = Field(None, description="Field or column that holds the text.")
    title_field: str | None = Field(None, description="Field or column that holds the title; a record may lack it.")
    columns: tuple[str, ...] | None = Field(
        None, description="Column names of a TSV file without a header, e.g. [id, url, text]."
    )
    quoting: Literal["auto", "csv", "none"] = Field(
        "auto",
        description="TSV quoting: csv as in DPR's psgs_w100.tsv, none as in MS MARCO; auto: csv if there is a header.",
    )
    namespaces: tuple[int, ...] = Field((0,), description="MediaWiki namespaces to keep; 0 is articles.")
    on_error: Literal["fail", "skip"] = Field(
        "fail",
        description="A record that cannot be used ends the build before it starts (fail), or is left out, counted and "
        "kept in the store's table rejected (skip).",
    )
    passage_words: int | None = Field(
        None,
        ge=10,
        description="Cut each text into documents of this many words, with ids ID#0, ID#1, …; mediawiki: 100 if unset.",
    )
