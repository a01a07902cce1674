"""The commands that find and drop damage in a store: ``verify`` and ``repair``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ..errors import BuildIncompleteError
from .console import Output, Piece, bar, count, printable, size
from .options import CompressorBase, DecoderBase, Device, Json, Uri

if TYPE_CHECKING:
    from ..pipeline.integrity import RepairReport, VerifyReport


def verify(
    uri: Uri,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-k", help="Compare the store's fingerprint with this checkpoint's.")
    ] = None,
    sample: Annotated[
        int, typer.Option(min=0, help="Compress this many random documents again, and compare their memory.")
    ] = 0,
    corpus: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="Corpus to read the sample from. Repeatable.")
    ] = None,
    decoder_base: DecoderBase = None,
    compressor_base: CompressorBase = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Check every file, row and payload of a store. The exit code is 3 if there are problems.

    Example: pisco-index verify index/ -k CHECKPOINT --sample 100 --corpus corpus.jsonl
    """
    from ..pipeline import integrity

    with bar("rows") as progress:
        report = integrity.verify(
            uri,
            checkpoint=checkpoint,
            corpus=corpus or (),
            sample=sample,
            device=device,
            decoder_base=decoder_base,
            compressor_base=compressor_base,
            progress=progress,
        )
    Output(as_json).show(report, _verified)
    if not report.is_sound:
        raise typer.Exit(BuildIncompleteError.exit_code)


def repair(
    uri: Uri,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be dropped; change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Drop damaged files and rows from a store. Its build command then writes exactly these again."""
    from ..pipeline import integrity

    def describe(report: "RepairReport") -> Iterator[Piece]:
        yield from (f"damaged: {file}" for file in report.files)
        done, again = "nothing is damaged", ""
        if report.problem_count:
            verb = "would drop" if dry_run else "dropped"
            done = f"{verb} {count(len(report.files), 'damaged file')} and {count(report.rows, 'damaged row')}"
            if report.rows or report.files:
                again = "" if dry_run else ". Run its build command to write them again"
            if report.is_index_damaged:
                done += ", and would make the search index anew" if dry_run else ", and made the search index anew"
        freed = "" if report.bytes_freed is None else f"; {size(report.bytes_freed)} freed"
        recorded = f"; recorded the checksums of {count(report.recorded, 'file')}" if report.recorded else ""
        yield f"{report.uri}: {done}{freed}{recorded}{again}."

    with bar("rows") as progress:
        report = integrity.repair(uri, dry_run=dry_run, progress=progress)
    Output(as_json).show(report, describe)


def _verified(report: "VerifyReport") -> Iterator[Piece]:
    for part in report.unchecked:
        yield Text(printable(f"not checked: {part}."), style="yellow")
    for problem in report.problems:
        yield Text(printable(str(problem)), style="red")
    if (more := report.problem_count - len(report.problems)) > 0:
        yield Text(f"… and {count(more, 'further problem')}", style="red")
    for note in report.notes:
        yield f"note: {note}"
    planned = "an unknown number of" if report.shards_planned is None else f"{report.shards_planned:,}"
    sampled = ""
    if report.largest_error is not None:
        again = count(report.sampled, "document")
        sampled = f"; {again} compressed again, largest relative error {report.largest_error:.2g}"
    found = count(report.problem_count, "problem")
    if report.is_sound:
        found = "no problem found" if report.unchecked else "sound"
    yield (
        f"{report.uri}: {found}. {count(report.documents, 'document')}, {size(report.payload_bytes)} of memory, "
        f"{report.shards_done:,} of {planned} shards done{sampled}; {report.seconds:,.1f} s, "
        f"{report.rows_per_s:,.0f} rows/s, {report.mb_per_s:,.0f} MB/s"
    )
