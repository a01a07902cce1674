"""The command ``pisco-index``: each command parses, makes one library call, and prints."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from .configs import BuildConfig, load_config, presets
from .errors import BuildInterruptedError, PiscoIndexError

out = Console()
err = Console(stderr=True)


class _Group(TyperGroup):
    """Prints this package's errors as one paragraph and exits with their code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PiscoIndexError as error:
            err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            err.print("Interrupted.")
            raise typer.Exit(BuildInterruptedError.exit_code) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Precompute PISCO memory embeddings for a corpus, store them, and read them by document id.",
    epilog="Exit codes: 0 done, 2 bad input, 3 done but for failed shards, 75 store locked by another build, "
    "130 interrupted.",
)
checkpoint_app = typer.Typer(no_args_is_help=True, help="Make and inspect checkpoints.")
app.add_typer(checkpoint_app, name="checkpoint")


Format = StrEnum("Format", ["auto", "jsonl", "json", "parquet", "arrow", "tsv", "mediawiki"])
Codec = StrEnum("Codec", ["bf16", "fp32"])
StageChoice = StrEnum("StageChoice", ["auto", "hidden", "embedding"])
OnLong = StrEnum("OnLong", ["chunk", "truncate"])
Dtype = StrEnum("Dtype", ["bfloat16", "float32"])
Keep = StrEnum("Keep", {"TITLE": "title", "TEXT": "text", "NOTHING": "nothing"})


def _key(section: str, key: str, *names: str, metavar: str | None = None) -> Any:
    """An option for a configuration key, with the key's own description and default."""
    model: Any = BuildConfig.model_fields[section].annotation
    field = model.model_fields[key]
    default = "" if field.default is None else f" Default: {_shown(field.default)}."
    return typer.Option(*names, metavar=metavar, show_default=False, help=f"{field.description}{default}")


def _shown(default: Any) -> str:
    return ", ".join(default) if isinstance(default, tuple) else repr(default) if "\n" in str(default) else str(default)


Uri = Annotated[str, typer.Argument(metavar="URI", help="The store: a folder, or an object-store URI.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CheckpointOption = Annotated[Path, typer.Option("--checkpoint", "-k", help="Checkpoint folder.")]


@app.command(name="build")
def build_command(
    corpus: Annotated[list[Path], typer.Argument(metavar="CORPUS", help="Corpus files or folders.")],
    checkpoint: CheckpointOption,
    to: Annotated[str, typer.Option("--out", "-o", metavar="URI", help="The store to make or to go on with.")],
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
    dtype: Annotated[Dtype | None, _key("compression", "dtype")] = None,
    corpus_format: Annotated[Format | None, _key("corpus", "format", "--format")] = None,
    id_field: Annotated[str | None, _key("corpus", "id_field")] = None,
    text_field: Annotated[str | None, _key("corpus", "text_field")] = None,
    title_field: Annotated[str | None, _key("corpus", "title_field")] = None,
    passage_words: Annotated[int | None, _key("corpus", "passage_words")] = None,
    device: Annotated[str | None, _key("run", "device")] = None,
    workers: Annotated[int | None, _key("run", "workers")] = None,
    ray: Annotated[str | None, _key("run", "ray", metavar="ADDRESS")] = None,
    token_budget: Annotated[int | None, _key("run", "token_budget")] = None,
    shard_documents: Annotated[int | None, _key("run", "shard_documents")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and estimate; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Compress a corpus into a store of memory embeddings. Run it again to go on after any kind of stop."""
    from .pipeline.build import build
    from .pipeline.build import dry_run as estimate_build
    from .pipeline.progress import progress_on

    settings = load_config(
        config,
        {
            "corpus": {
                "format": corpus_format,
                "id_field": id_field,
                "text_field": text_field,
                "title_field": title_field,
                "passage_words": passage_words,
            },
            "compression": {
                "max_length": max_length,
                "on_long": on_long,
                "overlap": overlap,
                "template": template,
                "dtype": dtype,
            },
            "store": {"stage": stage, "codec": codec, "keep": [k for k in keep if k != Keep.NOTHING] if keep else None},
            "run": {
                "device": device,
                "workers": workers,
                "ray": ray,
                "token_budget": token_budget,
                "shard_documents": shard_documents,
            },
        },
    )
    progress = progress_on(err)
    if dry_run:
        _print_estimate(estimate_build(corpus, checkpoint, to, settings, progress=progress), as_json)
        return
    report = build(corpus, checkpoint, to, settings, progress=progress)
    if as_json:
        out.print_json(json.dumps(asdict(report)))
        return
    dropped = "".join(f", dropped {count:,} ({reason})" for reason, count in report.dropped.items())
    out.print(
        f"{report.uri}: {_count(report.shards, 'shard')} done ({report.done_before:,} before){dropped}; "
        f"{report.seconds:,.1f} s. See: pisco-index info {report.uri}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def info(uri: Uri, as_json: Json = False) -> None:
    """Show what a store holds and how far its build is."""
    from .pipeline.status import build_status

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
            "on disk": f"{decimal(store.disk_bytes if store.disk_bytes is not None else store.table_bytes)}",
            "vectors": f"stage {store.stage}, {store.dim} wide, codec {store.codec}",
            "shards": f"{store.shards_done:,} of {status.shards_planned:,} done"
            + (f"; missing {_some(status.shards_missing)}" if missing else ""),
            "failures": f"{_count(store.failed_documents, 'document')}, {_count(store.rejected_records, 'record')}",
            "dropped": ", ".join(f"{count:,} ({reason})" for reason, count in status.dropped.items()) or "none",
            "fingerprint": store.fingerprint,
            **{f"  {name}": repr(value)[1:-1] for name, value in store.fingerprint_components.items()},
            "format": f"version {store.format_version}, table version {store.version}, {store.fragments:,} fragments",
        }
    )
    for failure in store.failures:
        where = failure.doc_id or failure.source
        out.print(f"failed: {where}: {failure.error}", style="yellow", markup=False, soft_wrap=True)


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
    from .reader.fetch import Reader
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


@app.command()
def ask(
    uri: Uri,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question.")],
    doc: Annotated[list[str], typer.Option("--doc", "-d", metavar="ID", help="A document to read. Repeatable.")],
    checkpoint: CheckpointOption,
    decoder_base: Annotated[
        str | None, typer.Option(help="Base decoder's folder, in place of the name in the checkpoint.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    dtype: Annotated[Dtype, typer.Option(help="The decoder's arithmetic.")] = Dtype.bfloat16,
    device: Annotated[str, typer.Option(help="cpu, cuda, …; auto takes a GPU where there is one.")] = "auto",
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


@app.command(name="presets")
def list_presets() -> None:
    """List the shipped configurations, for --config."""
    _print_rows(presets())


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
    from .model.checkpoint import Checkpoint

    description = Checkpoint(folder).describe()
    if as_json:
        out.print_json(json.dumps(description))
        return
    rows = []
    for name, value in description.items():
        entries = value if isinstance(value, dict) else {"": value}
        rows += [(f"{name} {key}".rstrip().replace("_", " "), str(entry)) for key, entry in entries.items()]
    _print_rows(dict(rows))


def _print_estimate(estimate: Any, as_json: bool) -> None:
    if as_json:
        out.print_json(json.dumps(asdict(estimate)))
        return
    _print_rows(
        {
            "records": f"{estimate.records:,} in {_count(estimate.shards, 'shard')}",
            "documents": f"{estimate.documents:,}",
            "tokens": f"{estimate.tokens:,}",
            "memory tokens": f"{estimate.memory_tokens:,}",
            "store": decimal(estimate.store_bytes),
            "speed": f"{estimate.passages_per_s:,.1f} passages/s on {estimate.device}",
            "time": f"{estimate.seconds / 3600:,.2f} h of computing with {_count(estimate.workers, 'worker')}",
        }
    )


def _print_rows(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        out.print(f"[bold]{name:{width}}[/]  {escape(value)}".rstrip(), highlight=False, soft_wrap=True)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _printable(text: str) -> str:
    """A model's words with control characters spelled out: a terminal would obey them."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _ratio(value: float | None) -> str:
    return "no" if value is None else f"{value:.2f}"


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return shown if len(numbers) <= 10 else f"{shown} and {len(numbers) - 10:,} more"


def main() -> None:
    """Entry point of the command."""
    # OpenMP's threads spin while they wait for each other; by default so long that one other busy process on the
    # machine slows a build several times. To be set before torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    app()


if __name__ == "__main__":
    main()
