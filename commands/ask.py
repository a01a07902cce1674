"""The command ``ask``."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..configs.names import DOCUMENTS
from ..errors import BuildIncompleteError, MissingTextError, PromptError, QuestionsError, some
from .console import Output, Piece, count, err, printable, say_error, say_warnings
from .options import (
    CheckpointDir,
    CompressorBase,
    DecoderBase,
    DecoderDtype,
    Device,
    Json,
    MaxNewTokens,
    QueryExtra,
    RepetitionPenalty,
    Uri,
)

if TYPE_CHECKING:
    from ..reader.index import Index


@dataclass(frozen=True)
class _Source:
    """A document that a question was answered from.

    Attributes:
        doc_id: id of the document.
        title: title that the store keeps; None without one.
        score: score of the document in the search or the run; None for a document that the user named.
        text: text of the document; None unless the user asked for it and the store keeps it.
    """

    doc_id: str
    title: str | None
    score: float | None
    text: str | None


@dataclass(frozen=True)
class _Reply:
    """An answer to show.

    Attributes:
        answer: the answer.
        prompt_tokens: length of the prompt, memory tokens included.
        memory_tokens: number of memory vectors in the prompt.
        documents: the documents that it was answered from, best first.
    """

    answer: str
    prompt_tokens: int
    memory_tokens: int
    documents: tuple[_Source, ...]


def ask(
    uri: Uri,
    checkpoint: CheckpointDir,
    question: Annotated[
        str | None,
        typer.Argument(metavar="[QUESTION]", help="Question to answer. Default: each line of standard input."),
    ] = None,
    doc: Annotated[
        list[str] | None,
        typer.Option(
            "--doc", "-d", metavar="ID", help="Document to answer from. Repeatable. Default: search the store."
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TREC run with the documents to answer from.")
    ] = None,
    query: Annotated[
        str | None, typer.Option(metavar="ID", help="Query of the run to take the documents of. Default: its only one.")
    ] = None,
    hits: Annotated[
        int | None,
        typer.Option("--hits", "--documents", "-n", min=1, help=f"Number of documents to find. Default: {DOCUMENTS}."),
    ] = None,
    show_text: Annotated[bool, typer.Option("--show-text", help="Show the text of the documents.")] = False,
    decoder_base: DecoderBase = None,
    compressor_base: CompressorBase = None,
    query_extra: QueryExtra = 64,
    max_new_tokens: MaxNewTokens = 128,
    repetition_penalty: RepetitionPenalty = None,
    dtype: DecoderDtype = "bfloat16",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Answer a question from the memory of the documents that a search of the store finds, and show these.

    Without QUESTION, answer one line after the other, with the models loaded once. Ctrl-D ends it.

    Example: pisco-index ask index/ "Where does the Nile end?" -k CHECKPOINT
    """
    from ..model.families import open_checkpoint
    from ..reader.index import Index

    if doc is not None and hits is not None:
        raise typer.BadParameter("give --doc or --hits, not both: documents that are named need no search.")
    hits = DOCUMENTS if hits is None else hits
    named = _named(doc, run, query, hits)
    opened = open_checkpoint(
        checkpoint, decoder_base=decoder_base, compressor_base=compressor_base, query_extra=query_extra
    )
    output = Output(as_json)
    with Index(uri, opened, dtype=dtype, device=device, repetition_penalty=repetition_penalty) as index:
        if named is not None and run is not None:
            named = _held(index, named, run)

        def reply(text: str) -> None:
            found = _reply(index, text, named, hits, max_new_tokens, show_text)
            # Documents that the user named need no list.
            lists_documents = doc is None or show_text
            output.show(found, lambda found: _shown(found, lists_documents, show_text), on_one_line=question is None)

        if question is not None:
            reply(question)
            return
        failed = 0
        for line in _lines():
            try:
                reply(line)
            except (PromptError, QuestionsError) as error:
                # The next question may have an answer.
                say_error(str(error))
                failed += 1
    if failed and not sys.stdin.isatty():
        raise typer.Exit(BuildIncompleteError.exit_code)


_Named = Sequence[tuple[str, float | None]]
"""Ids of the documents that the user named, each with its score, if it has one."""


def _named(doc: Sequence[str] | None, run: Path | None, query: str | None, hits: int) -> _Named | None:
    """Return the documents that the options name; None to search the store."""
    if query is not None and run is None:
        raise typer.BadParameter("--query names a query of a run: give --run too.")
    if run is None:
        return None if doc is None else [(doc_id, None) for doc_id in doc]
    if doc is not None:
        raise typer.BadParameter("give --doc or --run, not both.")
    from ..reader.questions import RunFile

    found = RunFile(run, depth=hits)
    if query is None:
        if len(found.queries) != 1:
            raise QuestionsError(
                f"{run}: the run has {len(found.queries)} queries: {some(sorted(found.queries))}. Name one (--query)."
            )
        (query,) = found.queries
    documents = found.retrieve({query: ""}, hits=hits)[query]
    if not documents:
        raise QuestionsError(f"{run}: the run has no query {query!r}. Its queries are {some(sorted(found.queries))}.")
    return documents


def _held(index: "Index", named: _Named, run: Path) -> _Named:
    """Return those of a run's documents that the store holds, and warn of the others."""
    missing = set(index.reader.missing([doc_id for doc_id, _ in named]))
    held = [each for each in named if each[0] not in missing]
    if not held:
        raise QuestionsError(
            f"{run}: the store holds no document that the run lists for the query: {some(sorted(missing))}. Give a run "
            "over the store's corpus."
        )
    if missing:
        say_warnings(
            [f"the store does not hold {count(len(missing), 'document')} of the run: {some(sorted(missing))}."]
        )
    return held


def _reply(
    index: "Index", question: str, named: _Named | None, hits: int, max_new_tokens: int, show_text: bool
) -> _Reply:
    """Answer a question.

    Raises:
        PromptError: the question is empty, no document was found for it, or its prompt does not fit.
    """
    if not question.strip():
        raise PromptError("The question is empty.")
    doc_ids = None if named is None else [[doc_id for doc_id, _ in named]]
    (answer,) = index.answer([question], doc_ids=doc_ids, hits=hits, max_new_tokens=max_new_tokens)
    if named is None and not answer.documents:
        raise PromptError("The search found no document for the question. Use other words, or name documents (--doc).")
    if answer.answer is None:
        raise PromptError(str(answer.error))
    if answer.missing:
        say_warnings([f"the store holds no memory of {some(answer.missing)}, which failed in the build"])
    ids = answer.documents
    scores = dict(zip(ids, answer.scores, strict=False)) if named is None else dict(named)
    titles = index.reader.titles(ids)
    texts = [_text(index, doc_id) if show_text else None for doc_id in ids]
    sources = [_Source(*each) for each in zip(ids, titles, map(scores.get, ids), texts, strict=True)]
    return _Reply(answer.answer, answer.prompt_tokens, answer.memory_tokens, tuple(sources))


def _text(index: "Index", doc_id: str) -> str | None:
    try:
        return index.reader.texts([doc_id])[0]
    except MissingTextError:
        return None


def _shown(reply: _Reply, with_documents: bool, with_text: bool) -> Iterator[Piece]:
    yield printable(reply.answer)
    if not with_documents:
        return
    width = max(len(source.doc_id) for source in reply.documents)
    for source in reply.documents:
        score = "" if source.score is None else f"{source.score:7.2f}  "
        yield printable(f"{score}{source.doc_id:{width}}  {source.title or ''}".rstrip())
        if with_text:
            yield printable(f"{'(not kept)' if source.text is None else source.text}\n")


def _lines() -> Iterator[str]:
    """Yield the questions on standard input; on a terminal, ask for each."""
    if not sys.stdin.isatty():
        yield from (line for line in map(str.strip, sys.stdin) if line)
        return
    # Importing readline gives input() a history and line editing, where the platform has it.
    with suppress(ImportError):
        import readline  # noqa: F401
    err.print("Ask a question; Ctrl-D ends.")
    while True:
        try:
            line = input("question> ").strip()
        except EOFError:
            err.print()
            return
        if line:
            yield line
