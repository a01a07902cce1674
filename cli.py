"""The command ``pisco-index``: each command parses, makes one library call, and prints."""

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from .configs import (
    BuildConfig,
    CompressionConfig,
    CorpusConfig,
    PretrainingConfig,
    load_config,
    load_finetuning,
    load_pretraining,
    presets,
)
from .errors import BuildHungError, BuildIncompleteError, BuildInterruptedError, InputError, PiscoIndexError, some

out = Console()
err = Console(stderr=True)


class _Group(TyperGroup):
    """Prints this package's errors, and what the system refuses (a full disk, a path), as one paragraph each."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PiscoIndexError as error:
            err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            if isinstance(error, BuildHungError):
                # Python would wait for the thread that hangs.
                os._exit(error.exit_code)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            if error.errno is None:
                raise
            place = f"{error.filename}: " if error.filename else ""
            err.print(f"[bold red]error:[/] {escape(f'{place}{error.strerror}')}.", highlight=False, soft_wrap=True)
            raise typer.Exit(InputError.exit_code) from None
        except KeyboardInterrupt:
            err.print("Interrupted.")
            raise typer.Exit(BuildInterruptedError.exit_code) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Precompute PISCO memory embeddings for a corpus, store them, and read them by document id.",
    epilog="Exit codes: 0 done, 2 bad input, 3 done but for failed shards or quarantined documents, or problems found, "
    "75 store locked by another build, 130 interrupted.",
)
checkpoint_app = typer.Typer(no_args_is_help=True, help="Make and inspect checkpoints.")
app.add_typer(checkpoint_app, name="checkpoint")
train_app = typer.Typer(no_args_is_help=True, help="Train checkpoints, and make data to train them on.")
app.add_typer(train_app, name="train")


Format = StrEnum("Format", ["auto", "jsonl", "json", "parquet", "arrow", "tsv", "mediawiki"])
OnError = StrEnum("OnError", ["fail", "skip"])
Codec = StrEnum("Codec", ["fp32", "bf16", "bf16z", "int8", "int4", "klt3", "klt2"])
StageChoice = StrEnum("StageChoice", ["auto", "hidden", "embedding"])
Stage = Literal["hidden", "embedding"]
OnLong = StrEnum("OnLong", ["chunk", "truncate"])
Dtype = StrEnum("Dtype", ["bfloat16", "float32"])
ExportFormat = Literal["parquet", "arrow", "safetensors", "npy"]
ExportDtype = Literal["float32", "float16", "bfloat16"]
DecoderTraining = StrEnum("DecoderTraining", ["lora", "full"])
Split = Literal["train", "held-out"]
Keep = StrEnum("Keep", {"TITLE": "title", "TEXT": "text", "NOTHING": "nothing"})


def _key(section: str, key: str, *names: str, metavar: str | None = None) -> Any:
    """An option for a key of a build's configuration, with the key's own description and default."""
    return _option(BuildConfig.model_fields[section].annotation, key, *names, metavar=metavar)


def _option(model: Any, key: str, *names: str, metavar: str | None = None) -> Any:
    field = model.model_fields[key]
    default = "" if field.default is None else f" Default: {_shown(field.default)}."
    return typer.Option(*names, metavar=metavar, show_default=False, help=f"{field.description}{default}")


def _shown(default: Any) -> str:
    return ", ".join(default) if isinstance(default, tuple) else repr(default) if "\n" in str(default) else str(default)


Uri = Annotated[str, typer.Argument(metavar="URI", help="The store: a folder, or an object-store URI.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DecoderBase = Annotated[str | None, typer.Option(help="Base decoder's folder, in place of the name in the checkpoint.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
DecoderDtype = Annotated[Dtype, typer.Option(help="The decoder's arithmetic.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, …; auto takes a GPU where there is one.")]
CheckpointOption = Annotated[Path, typer.Option("--checkpoint", "-k", help="Checkpoint folder.")]


@app.command(name="build")
def build_command(
    corpus: Annotated[list[Path], typer.Argument(metavar="CORPUS", help="Corpus files or folders.")],
    checkpoint: CheckpointOption,
    to: Annotated[str, typer.Option("--out", "-o", metavar="URI", help="The store to make, go on with or update.")],
    config: Annotated[
        str | None,
        typer.Option("--config", "--preset", "-c", help="A preset's name (see: pisco-index presets) or a YAML file."),
    ] = None,
    stage: Annotated[StageChoice | None, _key("store", "stage")] = None,
    codec: Annotated[Codec | None, _key("store", "codec")] = None,
    keep: Annotated[list[Keep] | None, _key("store", "keep")] = None,
    max_length: Annotated[int | None, _key("compression", "max_length")] = None,
    on_long: Annotated[OnLong | None, _key("compression", "on_long")] = None,
    overlap: Annotated[int | None, _key("compression", "overlap")] = None,
    template: Annotated[str | None, _key("compression", "template")] = None,
    repeat_title: Annotated[bool | None, _key("compression", "repeat_title", "--repeat-title/--title-once")] = None,
    dtype: Annotated[Dtype | None, _key("compression", "dtype")] = None,
    corpus_format: Annotated[Format | None, _key("corpus", "format", "--format")] = None,
    id_field: Annotated[str | None, _key("corpus", "id_field")] = None,
    text_field: Annotated[str | None, _key("corpus", "text_field")] = None,
    title_field: Annotated[str | None, _key("corpus", "title_field")] = None,
    on_error: Annotated[OnError | None, _key("corpus", "on_error")] = None,
    passage_words: Annotated[int | None, _key("corpus", "passage_words")] = None,
    device: Annotated[str | None, _key("run", "device")] = None,
    workers: Annotated[int | None, _key("run", "workers")] = None,
    ray: Annotated[str | None, _key("run", "ray", metavar="ADDRESS")] = None,
    token_budget: Annotated[int | None, _key("run", "token_budget")] = None,
    compiled: Annotated[bool | None, _key("run", "compiled")] = None,
    shard_documents: Annotated[int | None, _key("run", "shard_documents")] = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Delete the documents of the store that are not in the corpus given; give all of it."
        ),
    ] = False,
    replan: Annotated[
        bool,
        typer.Option("--replan", help="Give up what an unfinished build has left to do, and update what it stored."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and estimate; write nothing.")] = False,
    events: Annotated[
        Path | None, typer.Option("--events", metavar="FILE", help="Append what happens to this file, as JSON lines.")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port", min=0, max=65535, metavar="PORT", help="Serve numbers for Prometheus; 0: at a free port."
        ),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option("--metrics-host", metavar="HOST", help="Where to serve them; 0.0.0.0 lets everybody ask.")
    ] = "127.0.0.1",
    as_json: Json = False,
) -> None:
    """Make a store of memory embeddings hold a corpus: build it, go on after any kind of stop, or update it."""
    from .pipeline.build import build
    from .pipeline.build import dry_run as estimate_build

    settings = load_config(
        config,
        {
            "corpus": {
                "format": corpus_format,
                "id_field": id_field,
                "text_field": text_field,
                "title_field": title_field,
                "on_error": on_error,
                "passage_words": passage_words,
            },
            "compression": {
                "max_length": max_length,
                "on_long": on_long,
                "overlap": overlap,
                "template": template,
                "repeat_title": repeat_title,
                "dtype": dtype,
            },
            "store": {"stage": stage, "codec": codec, "keep": [k for k in keep if k != Keep.NOTHING] if keep else None},
            "run": {
                "device": device,
                "workers": workers,
                "ray": ray,
                "token_budget": token_budget,
                "compiled": compiled,
                "shard_documents": shard_documents,
            },
        },
    )
    progress = _listeners(events, metrics_port, metrics_host)
    if dry_run:
        estimate = estimate_build(corpus, checkpoint, to, settings, prune=prune, replan=replan, progress=progress)
        _print_estimate(estimate, as_json)
        return
    report = build(corpus, checkpoint, to, settings, prune=prune, replan=replan, progress=progress)
    if as_json:
        out.print_json(json.dumps(asdict(report)))
        return
    dropped = "".join(f", dropped {count:,} ({reason})" for reason, count in report.dropped.items())
    rejected = "".join(f", rejected {count:,} ({reason})" for reason, count in report.rejected.items())
    changes = f"; documents: {_changes(report.changes)}" if report.changes else ""
    gone = f"; {_count(report.gone, 'document')} not in the corpus (--prune deletes them)" if report.gone else ""
    others = _fallbacks(report.fallbacks)
    out.print(
        f"{report.uri}: {_count(report.shards, 'shard')} done ({report.done_before:,} before)"
        f"{dropped}{rejected}{changes}{gone}{others}; "
        f"{report.seconds:,.1f} s. See: pisco-index info {report.uri}",
        highlight=False,
        soft_wrap=True,
    )


@app.command(name="delete")
def delete_command(
    uri: Uri,
    doc_ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Document ids.")] = None,
    ids: Annotated[
        Path | None, typer.Option("--ids", metavar="FILE", help="Text file of further ids, one a line.", exists=True)
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out ids that the store does not hold; else they are an error.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Delete documents from a store by id: all of them, or none."""
    from .reader.export import read_ids
    from .store import delete

    wanted = [*(doc_ids or ()), *(read_ids(ids) if ids else ())]
    if not wanted:
        raise typer.BadParameter("give ids, or --ids FILE")
    deletion = delete(uri, wanted, missing="skip" if skip_missing else "error")
    if as_json:
        out.print_json(json.dumps(asdict(deletion)))
        return
    missing = f", {len(deletion.missing):,} not there: {some(deletion.missing)}" if deletion.missing else ""
    out.print(
        f"{uri}: {_count(deletion.deleted, 'document')} deleted{missing}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@app.command(name="compact")
def compact_command(
    uri: Uri,
    older_than: Annotated[
        float,
        typer.Option(min=0, metavar="HOURS", help="Drop only versions older than this; 0 drops all but the latest."),
    ] = 24,
    no_build_runs: Annotated[
        bool, typer.Option("--no-build-runs", help="Say that no build is writing the store: needed in an object store.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Merge a store's small fragments, remove deleted rows from its files, and drop its old versions."""
    from .store import compact
    from .store.table.addresses import TABLES

    compaction = compact(uri, older_than_hours=older_than, no_build_runs=no_build_runs)
    if as_json:
        out.print_json(json.dumps(asdict(compaction)))
        return
    _print_rows(
        {
            "fragments": f"{compaction.fragments_before:,} before, {compaction.fragments:,} now",
            "versions": f"{compaction.versions_before:,} before, {compaction.versions:,} now",
            "on disk": f"{decimal(compaction.bytes_before)} before, {decimal(compaction.bytes)} now",
        }
    )
    if compaction.versions > len(TABLES) and older_than:
        out.print(
            f"Versions younger than {older_than:g} h are kept for those who read them; --older-than 0 drops them.",
            highlight=False,
            soft_wrap=True,
        )


@app.command()
def info(uri: Uri, as_json: Json = False) -> None:
    """Show what a store holds: documents, sizes, codec, failures. How a build is going tells: pisco-index status."""
    from .pipeline.watch.totals import build_status

    status = build_status(uri)
    if as_json:
        out.print_json(json.dumps(status.to_dict()))
        return
    store = status.store
    stored = store.documents - store.failed_documents
    missing = len(status.shards_missing)
    _print_rows(
        {
            "store": store.uri,
            "documents": f"{store.documents:,}",
            "tokens": f"{store.tokens_total:,} ({store.tokens_fed:,} fed to the compressor)",
            "memory tokens": f"{store.n_mem:,}",
            "compression": f"{_ratio(store.compression)} tokens per memory token reached; the rate is "
            f"{store.checkpoint['rate']}",
            "payload": f"{decimal(store.payload_bytes)}, {store.payload_bytes / max(stored, 1):,.0f} bytes a document",
            "on disk": decimal(store.disk_bytes)
            if store.disk_bytes is not None
            else f"{decimal(store.table_bytes)} in the latest version; an object store does not tell the rest",
            "vectors": f"stage {store.stage}, {store.dim} wide, codec {store.codec}{_fallbacks(store.fallbacks)}",
            "shards": f"{status.shards_planned - missing:,} of {status.shards_planned:,} done"
            + (f"; missing {some(status.shards_missing)}" if missing else ""),
            **({"last update": _changes(status.changes)} if status.changes else {}),
            "failures": f"{_count(store.failed_documents, 'document')}, {_count(store.rejected_records, 'record')}",
            "dropped": _by_reason(status.dropped),
            "rejected": _by_reason(status.rejected),
            "fingerprint": store.fingerprint,
            **{f"  {name}": repr(value)[1:-1] for name, value in store.fingerprint_components.items()},
            "format": f"version {store.format_version}, table version {store.version}, {store.fragments:,} fragments",
        }
    )
    for failure in store.failures:
        where = failure.doc_id or failure.source
        out.print(f"failed: {where}: {failure.error}", style="yellow", markup=False, soft_wrap=True)


@app.command(name="status")
def status_command(
    uri: Uri,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again until the build is over.")] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Time between two looks of --watch.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Show how a store's build is going, from any terminal or machine. What the store holds tells: pisco-index info."""
    from .pipeline.watch.running import run_status

    while True:
        status = run_status(uri)
        if watch and out.is_terminal and not as_json:
            out.clear()
        if as_json and watch:
            out.print(json.dumps(status.to_dict()), highlight=False, markup=False, soft_wrap=True)
        elif as_json:
            out.print_json(json.dumps(status.to_dict()))
        else:
            _print_status(status)
        if not watch or status.running is False or (status.is_complete and not status.running):
            return
        time.sleep(every)


@app.command(name="verify")
def verify_command(
    uri: Uri,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-k", help="Compare the store's fingerprint with this checkpoint's.")
    ] = None,
    sample: Annotated[
        int, typer.Option(min=0, help="Compress so many random documents again, and compare their memory.")
    ] = 0,
    corpus: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="Corpus to read the sample from. Repeatable.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Check every file, row and payload of a store. Ends with exit code 3 if there are problems."""
    from .pipeline.integrity import verify

    with _rows_bar() as progress:
        report = verify(
            uri, checkpoint=checkpoint, corpus=corpus or (), sample=sample, device=device, progress=progress
        )
    if as_json:
        out.print_json(json.dumps(report.to_dict()))
    else:
        _print_verification(report)
    if not report.is_sound:
        raise typer.Exit(BuildIncompleteError.exit_code)


@app.command(name="repair")
def repair_command(
    uri: Uri,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be dropped; change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Drop what is damaged in a store, so that its build command refills exactly that."""
    from .pipeline.integrity import repair

    with _rows_bar() as progress:
        report = repair(uri, dry_run=dry_run, progress=progress)
    if as_json:
        out.print_json(json.dumps(report.to_dict()))
        return
    for file in report.files:
        out.print(f"unreadable: {file}", highlight=False, markup=False, soft_wrap=True)
    if not report.problem_count:
        done = "nothing is damaged"
    else:
        verb = "would drop" if dry_run else "dropped"
        done = f"{verb} {_count(len(report.files), 'unreadable file')} and {_count(report.rows, 'damaged row')}"
    freed = "" if report.bytes_freed is None else f"; {decimal(report.bytes_freed)} freed"
    again = "" if dry_run or not report.problem_count else ". Run its build command to fill it again"
    out.print(f"{report.uri}: {done}{freed}{again}.", highlight=False, markup=False, soft_wrap=True)


@app.command()
def recode(
    uri: Uri,
    codec: Annotated[Codec, typer.Option(help="Codec of the new store.")],
    to: Annotated[
        str | None, typer.Option("--out", "-o", metavar="URI", help="The new store. Default: URI-CODEC.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Rewrite a store in another codec, from its own memory. Run it again to go on after any kind of stop."""
    from .commands.screen import describe_prediction
    from .store import recode as recode_store

    columns = TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bars:
        bar = bars.add_task("shards", total=None)
        report = recode_store(
            uri, codec.value, to, progress=lambda done, total: bars.update(bar, completed=done, total=total)
        )
    if as_json:
        out.print_json(json.dumps(asdict(report)))
        return
    if report.prediction is not None:
        out.print(describe_prediction(report.prediction), highlight=False, soft_wrap=True)
    out.print(
        f"{report.uri}: {_count(report.documents, 'document')} in {_count(report.shards, 'shard')} "
        f"({report.done_before:,} before){_fallbacks(report.fallbacks)}. See: pisco-index info {report.uri}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def get(
    uri: Uri,
    doc_ids: Annotated[list[str], typer.Argument(metavar="ID", help="Document ids.")],
    to: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the vectors: FILE.npz or FILE.safetensors.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch the memory of documents: print shapes and norms, or write the vectors to a file."""
    from .reader.reader import Reader
    from .reader.save import save_memory

    with Reader(uri) as reader:
        memory = reader.fetch(doc_ids)
    rows = [
        {"doc_id": doc_id, "shape": list(values.shape), "mean_norm": float(values.norm(dim=1).mean())}
        for doc_id, values in zip(memory.doc_ids, memory, strict=True)
    ]
    if to is not None:
        save_memory(memory, to)
    if as_json:
        out.print_json(json.dumps(rows))
        return
    table = Table("id", "vectors", "width", "mean norm", box=None)
    for row in rows:
        table.add_row(escape(row["doc_id"]), *map(str, row["shape"]), f"{row['mean_norm']:.4f}")
    out.print(table)
    if to is not None:
        out.print(f"{len(rows)} arrays of stage {memory.stage} in {to}", highlight=False, soft_wrap=True)


@app.command(name="export")
def export_command(
    uri: Uri,
    to: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="New folder for the files, or one to go on with.")
    ],
    file_format: Annotated[ExportFormat, typer.Option("--format", help="Format of the files.")] = "parquet",
    ids: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ids of the documents to write, one a line. Default: all.")
    ] = None,
    dtype: Annotated[
        ExportDtype | None,
        typer.Option(help="The numbers' type. Default: bfloat16 for safetensors, which alone knows it, else float32."),
    ] = None,
    stage: Annotated[
        Stage | None,
        typer.Option(help="Vectors before the connector (hidden) or after it. Default: as stored."),
    ] = None,
    part_documents: Annotated[
        int | None, typer.Option(min=1, help="Documents of a part. Default: as many as give about a gigabyte.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write memory to files that other programs read. Run it again to go on after any kind of stop."""
    from .reader.export import export, read_ids

    with _rows_bar() as progress:
        report = export(
            uri,
            to,
            format=file_format,
            ids=None if ids is None else read_ids(ids),
            dtype=dtype,
            stage=stage,
            part_documents=part_documents,
            progress=progress,
        )
    if as_json:
        out.print_json(json.dumps(report.to_dict()))
        return
    before = f" ({report.parts_before:,} before)" if report.parts_before else ""
    out.print(
        f"{report.folder}: {_count(report.documents, 'document')}, {report.memory_tokens:,} vectors of stage "
        f"{report.stage}, {report.dim} wide, {report.dtype}; {decimal(report.size)} in {_count(report.parts, 'part')}"
        f"{before}; {report.seconds:,.1f} s",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@app.command()
def ask(
    uri: Uri,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question.")],
    doc: Annotated[list[str], typer.Option("--doc", "-d", metavar="ID", help="A document to read. Repeatable.")],
    checkpoint: CheckpointOption,
    decoder_base: DecoderBase = None,
    max_new_tokens: MaxNewTokens = 128,
    dtype: DecoderDtype = Dtype.bfloat16,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Answer a question from the stored memory of documents."""
    from .reader.ask import ask as answer_question

    answer = answer_question(
        uri,
        checkpoint,
        question,
        doc,
        decoder_base=decoder_base,
        dtype=dtype.value,
        device=device,
        max_new_tokens=max_new_tokens,
    )
    if as_json:
        out.print_json(json.dumps(asdict(answer)))
    else:
        out.print(_printable(answer.text), markup=False, highlight=False, soft_wrap=True)


@app.command(name="eval")
def eval_command(
    uri: Uri,
    questions: Annotated[
        Path,
        typer.Option("--questions", "-q", metavar="FILE", help="JSON lines of question, answers or answer, doc_ids."),
    ],
    checkpoint: CheckpointOption,
    run: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TREC run that names the documents in place of doc_ids.")
    ] = None,
    documents: Annotated[
        int | None,
        typer.Option("--documents", "-n", min=1, help="Documents of a question. Default: 5 of a run, else all."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="URI", help="A store of uncompressed memory to compare with. Default: URI.")
    ] = None,
    codec: Annotated[
        list[Codec] | None, typer.Option(help="Recode the memory to this codec only. Repeatable. Default: all.")
    ] = None,
    stage: Annotated[
        Stage | None, typer.Option(help="Recode the memory at this stage only. Default: each that can be had.")
    ] = None,
    no_text: Annotated[bool, typer.Option("--no-text", help="Leave out the documents' text that is kept.")] = False,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every answer with its scores: JSON lines.")
    ] = None,
    decoder_base: DecoderBase = None,
    max_new_tokens: MaxNewTokens = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that are answered together.")] = 32,
    dtype: DecoderDtype = Dtype.bfloat16,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Answer questions from a store and score the answers, beside those that other codecs, text or nothing give."""
    from .evaluation.evaluate import evaluate

    if answers is not None and not answers.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {answers.parent}", param_hint="--answers")
    columns = TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bars:
        bar = bars.add_task("answers", total=None)
        evaluation = evaluate(
            uri,
            checkpoint,
            questions,
            run=run,
            documents=documents,
            reference=reference,
            codecs=[each.value for each in codec or ()],
            stage=stage,
            text=not no_text,
            decoder_base=decoder_base,
            dtype=dtype.value,
            device=device,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    if as_json:
        out.print_json(json.dumps(evaluation.to_dict()))
    else:
        _print_evaluation(evaluation, reference or uri)
    if answers is not None:
        evaluation.save_answers(answers)


@app.command(name="presets")
def list_presets() -> None:
    """List the shipped configurations, for --config, under the commands that take them."""
    shipped = {"build": presets(), "train pretrain": presets("pretrain"), "train finetune": presets("finetune")}
    width = max(len(name) for rows in shipped.values() for name in rows)
    for command, rows in shipped.items():
        out.print(f"[bold]{command}[/]", highlight=False)
        _print_rows({f"  {name:{width}}": description for name, description in rows.items()})


@checkpoint_app.command()
def new(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder to make the checkpoint in.")],
    compressor: Annotated[str | None, typer.Option(help="Causal LM to compress with: a model folder.")] = None,
    decoder: Annotated[str | None, typer.Option(help="Causal LM to decode with: a model folder.")] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Make two tiny random models instead, to try things out.")
    ] = False,
    rate: Annotated[int, typer.Option(min=1, help="Source tokens per memory token.")] = 16,
    mlp_dim: Annotated[int, typer.Option(min=1, help="The connector's inner width.")] = 4096,
    lora_rank: Annotated[int, typer.Option(min=1, help="Rank of the decoder's LoRA pairs.")] = 64,
    compressor_name: Annotated[str | None, typer.Option(help="Name to record for the compressor's base.")] = None,
    decoder_name: Annotated[str | None, typer.Option(help="Name to record for the decoder's base.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
) -> None:
    """Make an untrained checkpoint from a compressor and a decoder, or a tiny random one."""
    from .model.create import new_checkpoint, new_tiny_checkpoint

    if tiny == (compressor is not None or decoder is not None) or (compressor is None) != (decoder is None):
        raise typer.BadParameter("give --compressor and --decoder, or --tiny")
    if compressor is None or decoder is None:
        made = new_tiny_checkpoint(folder, rate=rate, seed=seed)
    else:
        made = new_checkpoint(
            folder,
            compressor,
            decoder,
            rate=rate,
            mlp_dim=mlp_dim,
            lora_rank=lora_rank,
            compressor_name=compressor_name,
            decoder_name=decoder_name,
            seed=seed,
        )
    out.print(f"{made.path}: untrained checkpoint, rate {made.rate}", highlight=False, soft_wrap=True)


@checkpoint_app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Checkpoint folder.")],
    as_json: Json = False,
) -> None:
    """Describe a checkpoint: its models, widths and digests. Every part of it is opened and checked."""
    from .model.families.pisco import Checkpoint

    description = Checkpoint(folder).describe()
    if as_json:
        out.print_json(json.dumps(description))
        return
    rows = []
    for name, value in description.items():
        entries = value if isinstance(value, dict) else {"": value}
        rows += [(f"{name} {key}".rstrip().replace("_", " "), str(entry)) for key, entry in entries.items()]
    _print_rows(dict(rows))


TrainingConfigOption = Annotated[
    str | None,
    typer.Option("--config", "--preset", "-c", help="A preset's name (see: pisco-index presets) or a YAML file."),
]
StartOption = Annotated[str | None, _option(PretrainingConfig, "checkpoint", "--checkpoint", "-k", metavar="DIR")]
TrainedOption = Annotated[str | None, _option(PretrainingConfig, "out", "--out", "-o", metavar="DIR")]
DecoderOption = Annotated[DecoderTraining | None, _option(PretrainingConfig, "decoder")]
MaxLengthOption = Annotated[int | None, _key("compression", "max_length")]


@train_app.command()
def pretrain(
    data: Annotated[list[str] | None, typer.Argument(metavar="CORPUS", help="Corpus files or folders.")] = None,
    config: TrainingConfigOption = None,
    checkpoint: StartOption = None,
    to: TrainedOption = None,
    decoder: DecoderOption = None,
    max_length: MaxLengthOption = None,
    corpus_format: Annotated[Format | None, _key("corpus", "format", "--format")] = None,
) -> None:
    """Teach a checkpoint's memory to carry a text. Run it again to go on after any kind of stop."""
    _require_training_extra()
    from .training.train import is_finished
    from .training.train import pretrain as run_pretraining

    given = {"checkpoint": checkpoint, "data": tuple(data or ()) or None, "out": to, "decoder": decoder}
    sections = {"compression": {"max_length": max_length}, "corpus": {"format": corpus_format}}
    settings = load_pretraining(config, {**given, **sections})
    before = is_finished(settings)
    trained = run_pretraining(settings)
    further = f"pisco-index train finetune CONVERSATIONS -k {shlex.quote(str(trained.path))} -o DIR"
    _print_trained(trained, before, further)


@train_app.command()
def finetune(
    data: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="JSON lines of conversations.")] = None,
    config: TrainingConfigOption = None,
    checkpoint: StartOption = None,
    to: TrainedOption = None,
    decoder: DecoderOption = None,
    max_length: MaxLengthOption = None,
) -> None:
    """Teach a checkpoint's decoder to answer from memory. Run it again to go on after any kind of stop."""
    _require_training_extra()
    from .training.train import finetune as run_finetuning
    from .training.train import is_finished

    given = {"checkpoint": checkpoint, "data": tuple(data or ()) or None, "out": to, "decoder": decoder}
    settings = load_finetuning(config, {**given, "compression": {"max_length": max_length}})
    before = is_finished(settings)
    trained = run_finetuning(settings)
    same = _options_of(settings.compression)
    build = f"pisco-index build CORPUS -k {shlex.quote(str(trained.path))} -o URI{same}"
    _print_trained(trained, before, None if settings.query_dependent else build)


@train_app.command()
def distill(
    corpus: Annotated[list[Path], typer.Argument(metavar="CORPUS", help="Corpus files or folders.")],
    questions: Annotated[
        Path, typer.Option("--questions", "-q", metavar="FILE", help="JSON lines of question, and doc_ids, id.")
    ],
    teacher: Annotated[str, typer.Option("--teacher", "-t", metavar="DIR", help="Any causal LM: a model folder.")],
    to: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="JSON lines to write, or to go on with.")],
    run: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TREC run that names the documents in place of doc_ids.")
    ] = None,
    documents: Annotated[
        int | None,
        typer.Option("--documents", "-n", min=1, help="Documents of a question. Default: 5 of a run, else all."),
    ] = None,
    corpus_format: Annotated[Format | None, _key("corpus", "format", "--format")] = None,
    passage_words: Annotated[int | None, _key("corpus", "passage_words")] = None,
    max_new_tokens: MaxNewTokens = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that are answered together.")] = 16,
    dtype: Annotated[Dtype, typer.Option(help="The teacher's arithmetic.")] = Dtype.bfloat16,
    device: Device = "auto",
) -> None:
    """Let a teacher answer questions from their documents' text: data for finetune. Run it again to go on."""
    from .training.distill import distill as answer_questions

    values = {"format": corpus_format, "passage_words": passage_words}
    read = CorpusConfig.parse({key: value for key, value in values.items() if value is not None}, "command line")
    columns = TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bars:
        bar = bars.add_task("answers", total=None)
        result = answer_questions(
            questions,
            corpus,
            teacher,
            to,
            run=run,
            documents=documents,
            corpus_config=read,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            dtype=dtype.value,
            device=device,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    empty = f", {result.empty:,} empty and left out" if result.empty else ""
    if result.unfinished:
        empty += f", {result.unfinished:,} longer than {max_new_tokens} tokens and left out"
    out.print(
        f"{to}: {_count(result.written, 'answer')} written ({result.before:,} before){empty}. "
        f"Go on with: pisco-index train finetune {shlex.quote(str(to))} -k CHECKPOINT -o DIR",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@train_app.command()
def tinypedia(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write the data into.")],
    split: Annotated[Split, typer.Option(help="To train with, or held out: no invented word is in both.")] = "train",
    articles: Annotated[int, typer.Option(min=1, help="Articles of the corpus.")] = 1000,
    seed: Annotated[int, typer.Option(help="Other articles for another seed.")] = 0,
    documents: Annotated[int, typer.Option(min=1, help="Documents of each question in the run.")] = 5,
    conversations: Annotated[
        int,
        typer.Option(
            min=0,
            help="Conversations for finetune: conversations.jsonl, as many about short articles that only their titles "
            "tell apart, short-conversations.jsonl, and as many that end with an article's text, recitals.jsonl; 0 "
            "writes none.",
        ),
    ] = 0,
) -> None:
    """Write Tinypedia, articles about an invented world: corpus.jsonl, questions.jsonl, run.trec."""
    from .training import tinypedia as world

    world.write(folder, split, count=articles, seed=seed, documents=documents)
    if conversations:
        for name, drawn in (
            ("conversations", world.conversations),
            ("short-conversations", world.short_conversations),
            ("recitals", world.recitals),
        ):
            world.write_conversations(folder / f"{name}.jsonl", islice(drawn(split, seed=seed), conversations))
    written = f"{_count(articles, 'article')}" + (f", {_count(conversations, 'conversation')}" * bool(conversations))
    out.print(f"{folder}: {written} of the {split} split", highlight=False, markup=False, soft_wrap=True)


def _require_training_extra() -> None:
    if missing := [name for name in ("accelerate", "peft") if find_spec(name) is None]:
        raise InputError(
            f"Training needs {' and '.join(missing)}, not installed here. Install what it needs: "
            "pip install 'pisco-index[train]'"
        )


def _options_of(compression: CompressionConfig) -> str:
    """The options of ``build`` that make memory as it was in training."""
    names = [name for name in ("max_length", "on_long", "overlap", "template") if name in compression.model_fields_set]
    given = "".join(f" --{name.replace('_', '-')} {shlex.quote(str(getattr(compression, name)))}" for name in names)
    return given + " --repeat-title" * compression.repeat_title


def _print_trained(checkpoint: Any, before: bool, further: str | None) -> None:
    if os.environ.get("RANK", "0") != "0":
        # Of several processes on a machine or on many, one speaks.
        return
    then = f"Go on with: {further}" if further else "Its memory belongs to a question and cannot be precomputed."
    done = ", finished before: nothing was done" if before else ""
    out.print(f"{checkpoint.path}: trained checkpoint{done}. {then}", highlight=False, markup=False, soft_wrap=True)


def _print_estimate(estimate: Any, as_json: bool) -> None:
    from .commands.screen import describe_prediction

    if as_json:
        out.print_json(json.dumps(asdict(estimate)))
        return
    slowest, fastest = estimate.passages_per_s_range
    _print_rows(
        {
            "records": f"{estimate.records:,} in {_count(estimate.shards, 'shard')}",
            "documents": f"{estimate.documents:,}",
            "passages": f"{estimate.passages:,}",
            "tokens": f"{estimate.tokens:,}",
            "memory tokens": f"{estimate.memory_tokens:,}",
            "store": decimal(estimate.store_bytes),
            "codec": describe_prediction(estimate.codec).removeprefix("codec "),
            "speed": f"{estimate.passages_per_s:,.1f} passages/s on {estimate.device} "
            f"({slowest:,.1f} to {fastest:,.1f} when it was tried)",
            "time": f"{timedelta(seconds=round(estimate.seconds))} of computing with "
            f"{_count(estimate.workers, 'worker')}",
            **({"update": _changes(estimate.changes)} if estimate.changes else {}),
            **({"rejected": _by_reason(estimate.rejected)} if estimate.rejected else {}),
        }
    )


def _listeners(events: Path | None, metrics_port: int | None, metrics_host: str) -> Any:
    """All who tell of a build; the terminal comes last, since its bars begin at once."""
    from .commands.screen import progress_on
    from .pipeline.watch.events import EventLog
    from .pipeline.watch.progress import BuildProgress, Listeners
    from .pipeline.watch.prometheus import Metrics

    listeners: list[BuildProgress] = [EventLog(events)] if events is not None else []
    if metrics_port is not None:
        listeners.append(metrics := Metrics(metrics_port, metrics_host))
        err.print(f"metrics: http://{metrics_host}:{metrics.port}/metrics", highlight=False, soft_wrap=True)
    return Listeners(*listeners, progress_on(err))


def _print_status(status: Any) -> None:
    done = status.shards - status.missing
    if status.running is None:
        running = "cannot be told in an object store; see the last commit"
    else:
        running = f"running: {status.holder}" if status.running else "not running"
    driver = status.driver
    rows = {
        "store": status.uri,
        "build": "complete, " + running if status.is_complete else running,
        "shards": f"{done:,} of {status.shards:,} done, {status.missing:,} missing",
        "documents": f"{status.documents:,} in the store, of {_count(status.records, 'record')} in the plan",
        "failures": f"{_count(status.failed_documents, 'document')} quarantined, "
        f"{_count(status.rejected_records, 'record')} rejected",
        "last commit": f"{status.last_commit}, {_ago(status.last_commit)}",
    }
    if status.documents_per_s is not None:
        rows["speed"] = f"{status.documents_per_s:,.1f} documents/s over the last commits"
    if driver is not None:
        done_now = f"{_count(driver.documents, 'document')} in this run, in {driver.where}"
        rows["now"] = f"{driver.tokens_per_s:,.0f} tokens/s, {done_now}" + ("; stopping" if driver.stopping else "")
    if not status.is_complete:
        left = status.remaining_s
        rows["time left"] = "cannot be told" if left is None else f"about {timedelta(seconds=round(left))}"
    _print_rows(rows)
    if driver is None or not driver.workers:
        return
    table = Table(f"worker, {_ago(driver.time)}", "doing", "shard", box=None)
    for heading in ("documents", "tokens"):
        table.add_column(heading, justify="right")
    for worker in driver.workers:
        part = "" if worker.part is None else f" ({worker.part:.0%})"
        shard = "" if worker.shard is None else f"{worker.shard}{part}"
        table.add_row(escape(worker.name), worker.doing, shard, f"{worker.documents:,}", f"{worker.tokens:,}")
    out.print(table)


def _ago(moment: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    return f"{timedelta(seconds=max(round(seconds), 0))} ago"


def _by_reason(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} ({reason})" for reason, count in counts.items()) or "none"


def _print_evaluation(evaluation: Any, reference: str) -> None:
    table = Table("condition", "stage", "codec", box=None)
    for heading in ("B/doc", "match %", "EM %", "F1 %", "NLL", "KL"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in evaluation.rows:
        size = "-" if row.bytes_per_document is None else f"{row.bytes_per_document:,.0f}"
        percent = (f"{100 * share:.1f}" for share in (row.match, row.exact_match, row.f1))
        nats = f"{row.nll:.3f}", f"{row.kl:.2g}"
        table.add_row(row.condition, row.stage or "-", row.codec or "-", size, *percent, *nats)
    out.print(table)
    ignored = evaluation.ignored_queries
    left_out = f"; {ignored:,} of the run's queries are not among them" if ignored else ""
    asked = f"{_count(evaluation.questions, 'question')}, {_count(evaluation.documents, 'document')}{left_out}"
    out.print(f"{asked}; KL to {reference}", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _rows_bar() -> Iterator[Callable[[int, int], object]]:
    """A bar on a terminal for work that tells how many of how many rows it has done."""
    columns = TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bars:
        bar = bars.add_task("rows", total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def _print_verification(report: Any) -> None:
    for problem in report.problems:
        out.print(_printable(str(problem)), style="red", highlight=False, markup=False, soft_wrap=True)
    if (more := report.problem_count - len(report.problems)) > 0:
        out.print(f"… and {_count(more, 'further problem')}", style="red", highlight=False)
    for note in report.notes:
        out.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    planned = "an unknown number of" if report.shards_planned is None else f"{report.shards_planned:,}"
    sampled = ""
    if report.largest_error is not None:
        again = _count(report.sampled, "document")
        sampled = f"; {again} compressed again, largest relative error {report.largest_error:.2g}"
    found = "sound" if report.is_sound else _count(report.problem_count, "problem")
    out.print(
        f"{report.uri}: {found}. {_count(report.documents, 'document')}, {decimal(report.payload_bytes)} of memory, "
        f"{report.shards_done:,} of {planned} shards done{sampled}; {report.seconds:,.1f} s, "
        f"{report.rows_per_s:,.0f} rows/s, {report.mb_per_s:,.0f} MB/s",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _print_rows(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        out.print(f"[bold]{name:{width}}[/]  {escape(value)}".rstrip(), highlight=False, soft_wrap=True)


def _fallbacks(documents: Mapping[str, int]) -> str:
    shown = ", ".join(f"{_count(count, 'document')} in {codec}" for codec, count in sorted(documents.items()))
    return f"; written by another codec: {shown}" if shown else ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _changes(changes: Any) -> str:
    """What an update changes, in words."""
    return ", ".join(f"{count:,} {name}" for name, count in asdict(changes).items())


def _printable(text: str) -> str:
    """A model's words with control characters spelled out: a terminal would obey them."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _ratio(value: float | None) -> str:
    return "no" if value is None else f"{value:.2f}"


def main() -> None:
    """Entry point of the command."""
    # OpenMP's threads spin while they wait for each other; by default so long that one other busy process on the
    # machine slows a build several times. To be set before torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    app()


if __name__ == "__main__":
    main()
