"""The command ``index``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..configs import BuildConfig
from ..errors import BuildIncompleteError, some
from .console import INDEXING, Output, Piece, count, size, steps
from .options import Given, Json, Uri, flags_of

if TYPE_CHECKING:
    from ..pipeline.upkeep.index import Indexed

_STEPS = {"reading": "reading texts", **INDEXING}


@flags_of(
    BuildConfig,
    "search.language",
    "search.tokenizer",
    "search.stem",
    "search.stop_words",
    "corpus.format",
    "corpus.id_field",
    "corpus.text_field",
    "corpus.title_field",
    "corpus.on_error",
    "corpus.passage_words",
)
def index(
    uri: Uri,
    corpus: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[CORPUS]...", help="Corpus of the store, if the store does not hold its texts."),
    ] = None,
    *,
    given: Given,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make the index anew, even if it is in step.")] = False,
    as_json: Json = False,
) -> None:
    """Make a store searchable, or bring its search index in step.

    The settings of an index, and of its corpus, stay as they are unless they are given. The exit code is 3 if documents
    stay without their text.

    Example: pisco-index index store/ corpus.jsonl --language German
    """
    from ..pipeline.upkeep.index import index as index_store

    with steps(_STEPS) as progress:
        indexed = index_store(
            uri,
            corpus or (),
            settings=given.get("search"),
            corpus_settings=given.get("corpus"),
            rebuild=rebuild,
            progress=progress,
        )
    Output(as_json).show(indexed, _indexed)
    if indexed.filled and indexed.filled.filled < indexed.filled.documents:
        raise typer.Exit(BuildIncompleteError.exit_code)


def _indexed(indexed: "Indexed") -> Iterator[Piece]:
    report, filled = indexed.report, indexed.filled
    if filled is not None and not filled.documents:
        yield f"{report.uri}: no document lacks its text, so none was read"
    elif filled is not None:
        yield f"{report.uri}: {count(filled.filled, 'document')} got their texts"
        if filled.missing:
            yield f"{count(filled.missing, 'document')} not in CORPUS, and not searchable: {some(filled.missing_ids)}"
        if filled.changed:
            yield (
                f"{count(filled.changed, 'document')} with another text in CORPUS, and not searchable until the next "
                f"build: {some(filled.changed_ids)}"
            )
    if report.index is None or report.action == "none":
        yield f"{report.uri}: no documents, and so nothing to index"
        return
    done = {"kept": "the search index is in step", "made": "search index made", "extended": "search index extended"}
    done |= {"merged": "search index merged", "rebuilt": "search index made anew"}
    rows = sum(report.index.rows)
    found = rows if report.documents is None else report.documents
    without = f" of {rows:,}; the others have no text, give their CORPUS" if found < rows else ""
    held = f"{count(found, 'document')}{without}; {size(report.index.bytes)}"
    yield f"{report.uri}: {done[report.action]}; {held}; {report.seconds:,.1f} s"
