"""The commands that read a store: ``ids``, ``show``, ``get``, ``export`` and ``retrieve``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..configs.names import ExportDtype, ExportFormat, Stage
from ..errors import some
from .console import Output, Piece, bar, count, out, printable, rows, size
from .options import Json, Uri

if TYPE_CHECKING:
    from ..reader.export import ExportReport
    from ..reader.retrieve import RetrievalReport


DocumentIds = Annotated[list[str], typer.Argument(metavar="ID", help="Document ids.")]


def ids(
    uri: Uri,
    prefix: Annotated[str, typer.Option(help="List only the ids that begin with this.")] = "",
    as_json: Json = False,
) -> None:
    """List the ids of all documents, one per line, in the order in which they are stored.

    Example: pisco-index ids index/ --prefix 12# | head
    """
    from ..store import Store

    found = (doc_id for doc_id in Store.open(uri).ids() if doc_id.startswith(prefix))
    # Written directly: a store may hold millions of ids, and the console takes too long for each.
    if as_json:
        out.file.write("[")
        out.file.writelines(f"{',' if number else ''}\n{json.dumps(each)}" for number, each in enumerate(found))
        out.file.write("\n]\n")
    else:
        out.file.writelines(f"{printable(each)}\n" for each in found)


def show(uri: Uri, doc_ids: DocumentIds, as_json: Json = False) -> None:
    """Show what a store holds of documents: title, text, tokens, memory and codec.

    Example: pisco-index show index/ doc-1 doc-2
    """
    from ..store import Store, describe_documents

    Output(as_json).show(describe_documents(Store.open(uri), doc_ids), _shown)


def _shown(documents: list[dict[str, Any]]) -> Iterator[Piece]:
    for number, each in enumerate(documents):
        stored = "none"
        if each["codec"]:
            vectors = count(each["n_mem"], "vector") if each["n_mem"] else "no vectors"
            stored = f"{vectors}, {size(each['payload_bytes'])} in codec {each['codec']}"
        values = {
            "id": each["doc_id"],
            "title": each.get("title"),
            "tokens": f"{each['tokens_total']:,} ({each['tokens_fed']:,} fed to the compressor)",
            "memory": stored,
            "error": each["error"],
            "shard": f"{each['shard']:,}",
            "text hash": each["text_hash"],
        }
        if number:
            yield ""
        yield from rows({name: printable(value) for name, value in values.items() if value is not None})
        # `contents` is the text that was compressed; `text` is that of the corpus, without its title.
        text = each.get("text") or each.get("contents")
        yield printable(text) if text else "The store does not keep its text."


def get(
    uri: Uri,
    doc_ids: DocumentIds,
    to: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the vectors to FILE.npz or FILE.safetensors.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch the memory of documents: print its shapes and norms, or write its vectors to a file.

    Example: pisco-index get index/ doc-1 doc-2 -o memory.safetensors
    """
    from ..reader.reader import Reader
    from ..reader.save import save_memory

    def describe(documents: list[dict[str, Any]]) -> Iterator[Piece]:
        table = Table("id", "vectors", "width", "mean norm", box=None)
        for each in documents:
            table.add_row(Text(each["doc_id"]), *map(str, each["shape"]), f"{each['mean_norm']:.4f}")
        yield table
        if to is not None:
            yield f"{count(len(documents), 'array')} of stage {memory.stage} in {to}"

    with Reader(uri) as reader:
        memory = reader.fetch(doc_ids)
    documents = [
        {"doc_id": doc_id, "shape": list(values.shape), "mean_norm": float(values.norm(dim=1).mean())}
        for doc_id, values in zip(memory.doc_ids, memory, strict=True)
    ]
    if to is not None:
        save_memory(memory, to)
    Output(as_json).show(documents, describe)


def export(
    uri: Uri,
    to: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="New folder for the files, or the one to resume in.")
    ],
    file_format: Annotated[ExportFormat, typer.Option("--format", help="Format of the files.")] = "parquet",
    ids: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text file of the ids to write, one per line. Default: all.")
    ] = None,
    dtype: Annotated[
        ExportDtype | None,
        typer.Option(
            help="Dtype of the vectors. Default: bfloat16 for safetensors, the only format that has it, "
            "otherwise float32."
        ),
    ] = None,
    stage: Annotated[
        Stage | None,
        typer.Option(help="Vectors before the connector (hidden) or after it (embedding). Default: as stored."),
    ] = None,
    part_documents: Annotated[
        int | None, typer.Option(min=1, help="Number of documents per file. Default: about a gigabyte of them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write memory to files that other programs read. Run it again to resume after a stop.

    Example: pisco-index export index/ -o memory/ --format safetensors
    """
    from ..corpus.ids import read_ids
    from ..reader.export import export as write_files

    with bar("rows") as progress:
        report = write_files(
            uri,
            to,
            format=file_format,
            ids=None if ids is None else read_ids(ids),
            dtype=dtype,
            stage=stage,
            part_documents=part_documents,
            progress=progress,
        )
    Output(as_json).show(report, _exported)


def _exported(report: "ExportReport") -> Iterator[Piece]:
    before = f" ({report.parts_before:,} before)" if report.parts_before else ""
    yield (
        f"{report.folder}: {count(report.documents, 'document')}, {report.memory_tokens:,} vectors of stage "
        f"{report.stage}, {report.dim} wide, {report.dtype}; {size(report.size)} in {count(report.parts, 'part')}"
        f"{before}; {report.seconds:,.1f} s"
    )


def retrieve(
    uri: Uri,
    questions: Annotated[
        Path,
        typer.Option(
            "--questions",
            "-q",
            "--topics",
            metavar="FILE",
            help="Questions: JSON, CSV or TSV as data sets have them, or one per line.",
        ),
    ],
    to: Annotated[Path, typer.Option("--out", "-o", "--output", metavar="FILE", help="TREC run to write.")],
    hits: Annotated[int, typer.Option(min=1, help="Largest number of documents per question.")] = 100,
    tag: Annotated[str, typer.Option(help="Name of the run, its last column.")] = "pisco-index",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Questions to search for at once. Default: as many as suit the machine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the documents of questions by full-text search (BM25), and write them as a TREC run.

    Example: pisco-index retrieve index/ -q questions.jsonl -o run.trec --hits 100
    """
    from ..reader.retrieve import retrieve as retrieve_documents

    with bar("questions") as progress:
        report = retrieve_documents(uri, questions, to, hits=hits, tag=tag, threads=threads, progress=progress)
    Output(as_json).show(report, _retrieved)


def _retrieved(report: "RetrievalReport") -> Iterator[Piece]:
    yield (
        f"{report.run}: {count(report.hits, 'document')} for {count(report.questions, 'question')} ({report.form}); "
        f"{report.seconds:,.1f} s, {report.questions_per_s:,.0f} questions/s"
    )
    unheard = set(report.without_words)
    if unmatched := [each for each in report.without_hits if each not in unheard]:
        yield printable(f"{count(len(unmatched), 'question')} without a matching document: {some(unmatched)}")
    if unheard:
        named = some(report.without_words)
        yield printable(f"{count(len(unheard), 'question')} without a word that is searched (stop words only): {named}")
