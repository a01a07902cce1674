"""The commands that change a store: ``delete``, ``compact`` and ``recode``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..configs.names import CodecName, MissingIds
from ..errors import some
from .console import Output, Piece, bar, count, describe_prediction, fallbacks, rows, size
from .options import DecoderBase, Device, Json, Uri

if TYPE_CHECKING:
    from ..pipeline.decoder_reader import DecoderReader
    from ..store.upkeep.compact import Compaction
    from ..store.upkeep.delete import Deletion
    from ..store.upkeep.recode import RecodeReport


def delete(
    uri: Uri,
    doc_ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Document ids.")] = None,
    ids: Annotated[
        Path | None, typer.Option("--ids", metavar="FILE", help="Text file of further ids, one per line.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Skip ids that the store does not hold, instead of failing.")
    ] = False,
    keep_out: Annotated[
        bool, typer.Option("--keep-out", help="Let no later build store these documents, whatever its corpus holds.")
    ] = False,
    let_in: Annotated[
        bool, typer.Option("--let-in", help="Delete nothing; undo --keep-out, so that the next build stores them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Delete documents from a store by id: all of them, or none.

    A later build of a corpus that holds them stores them again, unless they are kept out.
    Example: pisco-index delete index/ doc-1 doc-2 --keep-out
    """
    from .. import store
    from ..corpus.ids import read_ids

    wanted = [*(doc_ids or ()), *(read_ids(ids) if ids else ())]
    if not wanted:
        raise typer.BadParameter("give ids, or --ids FILE")
    if keep_out and let_in:
        raise typer.BadParameter("--keep-out and --let-in exclude each other")
    missing: MissingIds = "skip" if skip_missing else "error"
    if let_in:
        changed = store.let_in(uri, wanted, missing=missing)
        said = f"{uri}: {count(len(changed), 'document')} kept out no longer. The next build of a corpus stores them."
        Output(as_json).show({"let_in": changed}, lambda _: [said])
        return

    def describe(deletion: "Deletion") -> Iterator[Piece]:
        absent = f", {len(deletion.missing):,} not found: {some(deletion.missing)}" if deletion.missing else ""
        kept = f", {deletion.kept_out:,} kept out of later builds (undo: --let-in)" if keep_out else ""
        yield f"{uri}: {count(deletion.deleted, 'document')} deleted{absent}{kept}"
        if deletion.deleted and not keep_out:
            yield "The next build of a corpus that holds them stores them again. To prevent that: --keep-out"
        if deletion.deleted and store.counts_many_deleted(store.resolve_uri(uri)):
            yield (
                "More than a twentieth of the documents in the search index are deleted, and still count in the "
                f"scores of others. Make it anew: pisco-index index {uri}"
            )

    Output(as_json).show(store.delete(uri, wanted, missing=missing, keep_out=keep_out), describe)


def compact(
    uri: Uri,
    older_than: Annotated[
        float, typer.Option(min=0, metavar="HOURS", help="Drop only versions older than this; 0: all but the latest.")
    ] = 24,
    min_deleted: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Rewrite a large file only if this share of its rows is deleted; 0: any.",
        ),
    ] = 0.1,
    no_build_runs: Annotated[
        bool,
        typer.Option("--no-build-runs", help="Confirm that no build writes the store: required in an object store."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Merge a store's small fragments, remove deleted rows from its files, and drop its old versions."""
    from .. import store
    from ..store.table.addresses import TABLES

    def describe(compaction: "Compaction") -> Iterator[Piece]:
        yield from rows(
            {
                "fragments": f"{compaction.fragments_before:,} before, {compaction.fragments:,} now",
                "versions": f"{compaction.versions_before:,} before, {compaction.versions:,} now",
                "on disk": f"{size(compaction.bytes_before)} before, {size(compaction.bytes)} now",
            }
        )
        if compaction.left_alone:
            left = f"{count(compaction.left_alone, 'fragment')} left alone"
            deleted = count(compaction.left_deleted, "deleted row")
            yield f"{left}, with {deleted}: --min-deleted 0 removes them." if compaction.left_deleted else f"{left}."
        if compaction.versions > len(TABLES) and older_than:
            yield f"Versions younger than {older_than:g} h are kept for readers of them; --older-than 0 drops them."

    compaction = store.compact(uri, older_than_hours=older_than, min_deleted=min_deleted, no_build_runs=no_build_runs)
    Output(as_json).show(compaction, describe)


def recode(
    uri: Uri,
    codec: Annotated[CodecName, typer.Option(help="Codec of the new store.")],
    to: Annotated[str | None, typer.Option("--out", "-o", metavar="URI", help="New store. Default: URI-CODEC.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            "-k",
            help="Checkpoint of the store: its decoder measures what the codec loses, and fisher codecs are fitted to "
            "it. The store must keep the text (it does if it is searchable).",
        ),
    ] = None,
    decoder_base: DecoderBase = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write a copy of a store in another codec, without the compressor. Run it again to resume after a stop.

    Example: pisco-index recode index/ --codec int4 -o index-int4/
    """
    from .. import store

    reader = None if checkpoint is None else _decoder_reader(uri, checkpoint, decoder_base, device)
    with bar("shards") as progress:
        report = store.recode(uri, codec, to, reader=reader, progress=progress)
    Output(as_json).show(report, _recoded)


def _decoder_reader(uri: str, checkpoint: Path, decoder_base: str | None, device: str) -> "DecoderReader":
    """Return the decoder of the checkpoint that a store was built with."""
    from ..model.device import choose_device
    from ..model.families import open_checkpoint
    from ..pipeline.decoder_reader import DecoderReader
    from ..reader.compatibility import require_checkpoint
    from ..reader.reader import Reader

    opened = open_checkpoint(checkpoint, decoder_base=decoder_base)
    # A decoder that is not there is found before the store is copied.
    _ = opened.decoder_folder
    with Reader(uri) as stored:
        require_checkpoint(stored, opened)
        stage = stored.meta.stage
    return DecoderReader(str(opened.path), stage, choose_device(device), decoder_base=decoder_base)


def _recoded(report: "RecodeReport") -> Iterator[Piece]:
    if report.prediction is not None:
        yield describe_prediction(report.prediction)
    yield (
        f"{report.uri}: {count(report.documents, 'document')} in {count(report.shards, 'shard')} "
        f"({report.done_before:,} before){fallbacks(report.fallbacks)}. See: pisco-index info {report.uri}"
    )
