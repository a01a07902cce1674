"""Make a store searchable, or bring its search index in step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...configs import BuildConfig, CompressionConfig, CorpusConfig, SearchConfig
from ...corpus import open_corpus
from ...errors import CorpusError, StoreError
from ...store import (
    Filled,
    IndexReport,
    Store,
    build_lock,
    fill_contents,
    has_contents,
    keep_index,
    kept_texts,
    remove_orphans,
    search_index,
)
from ..planning.stored import keeps_input_text, kept_config

Progress = Callable[[str, int, int], object]
"""Callback that is given the current step, the number of its documents that are done, and their total."""


@dataclass(frozen=True)
class Indexed:
    """The result of indexing a store.

    Attributes:
        report: work that was done on the index.
        filled: documents whose texts were read; None if the store had all it takes.
    """

    report: IndexReport
    filled: Filled | None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as values for JSON."""
        return self.report.to_dict() | {"contents": self.filled.to_dict() if self.filled else None}


def index(
    uri: str | Path,
    corpus: Sequence[str | Path] = (),
    *,
    settings: Mapping[str, Any] | None = None,
    corpus_settings: Mapping[str, Any] | None = None,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> Indexed:
    """Make a store's search index, or bring it in step with its documents.

    A store without the column ``contents`` gets it from its own texts, if it keeps them, or from the corpus. Each text
    is compared with the hash of the text that was compressed. A document with another text, or without any, stays in
    the store and is not found by a search. A crash leaves the store as it was.

    Args:
        uri: address of the store.
        corpus: files and folders to read the texts from, for documents without contents.
        settings: keys of ``SearchConfig`` to change; the other ones stay as they are in the index.
        corpus_settings: keys of ``CorpusConfig`` in which the corpus differs from that of the store's first build.
        rebuild: True to make the index anew even if it is in step.
        progress: callback for the steps ``reading``, and the work on the index.

    Raises:
        StoreError: there is no store, it cannot be read or written, or it needs a corpus and none is given.
        StoreLockedError: a build is writing the store.
        ConfigError: a setting is unknown or not valid.
        CorpusError: the corpus cannot be read, or has the text of none of the store's documents.
    """
    store = Store.open(uri)
    config = kept_config(store) or BuildConfig()
    with build_lock(store.uri):
        store = store.refresh()
        texts = _texts(store, config, corpus, corpus_settings or {})
        wanted = _settings(store, config, settings or {})
        filled = None
        if texts is not None:

            def reading(done: int, total: int) -> None:
                if progress is not None:
                    progress("reading", done, total)

            filled = fill_contents(store.uri, texts, reading)
            if corpus and not filled.filled and filled.documents == store.count > 0:
                raise _foreign(store, filled)
        report = keep_index(store.uri, wanted, rebuild=rebuild, progress=progress)
        remove_orphans(store)
    return Indexed(report, filled)


def _foreign(store: Store, filled: Filled) -> CorpusError:
    """Return the error of a corpus that has the text of no document of a store."""
    if filled.changed:
        found = f"has its text in CORPUS: {filled.missing:,} are not in it, and {filled.changed:,} have another text"
    else:
        found = "is in CORPUS"
    return CorpusError(
        f"none of the {filled.documents:,} documents of the store at {store.uri} {found}. Nothing was changed. Check "
        "the corpus and its fields (--id-field, --text-field, --title-field)."
    )


def _settings(store: Store, config: BuildConfig, given: Mapping[str, Any]) -> SearchConfig | None:
    """Return the settings of the index; None to leave them as they are."""
    found = search_index(store.table)
    present = found.settings if found else None
    if present is not None and not given:
        return None
    return SearchConfig.parse({**(present or config.search).model_dump(), **given}, "command line")


def _texts(
    store: Store, config: BuildConfig, corpus: Sequence[str | Path], given: Mapping[str, Any]
) -> Iterator[tuple[str, str]] | None:
    """Return ids and texts for documents without contents; None if none are needed."""
    if corpus:
        settings = CorpusConfig.parse({**config.corpus.model_dump(), **given}, "command line")
        return _corpus_texts(corpus, settings, config.compression)
    if has_contents(store.table):
        return None
    if not keeps_input_text(store.meta, config.compression):
        raise StoreError(
            f"the store at {store.uri} does not hold the texts of its documents, so nothing can be indexed. Name the "
            f"corpus that it was built from: pisco-index index {store.uri} CORPUS"
        )
    return _own_texts(store, config.compression)


def _corpus_texts(
    corpus: Sequence[str | Path], settings: CorpusConfig, compression: CompressionConfig
) -> Iterator[tuple[str, str]]:
    for source in open_corpus(corpus, settings).sources:
        for document in source.read(0, None):
            yield document.doc_id, compression.input_text(document.text, document.title)


def _own_texts(store: Store, compression: CompressionConfig) -> Iterator[tuple[str, str]]:
    for doc_id, text, title in kept_texts(store):
        yield doc_id, compression.input_text(text, title)
