"""The commands ``build`` and ``presets``."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ..configs import BuildConfig, load_config, preset_text
from ..configs import presets as list_presets
from ..configs.load import Kind
from ..errors import ConfigError
from .console import (
    Output,
    Piece,
    by_change,
    by_reason,
    count,
    describe_prediction,
    duration,
    err,
    fallbacks,
    rows,
    say,
    size,
)
from .options import CheckpointDir, CompressorBase, Corpus, DecoderBase, Given, Json, Preset, flags_of

if TYPE_CHECKING:
    from ..pipeline.estimate import Estimate
    from ..pipeline.report import BuildReport
    from ..pipeline.watch.progress import Listeners


# Largest number of ids that a dry run shows.
SHOWN_IDS = 50

_TAKES_PRESETS: dict[Kind, str] = {"build": "build", "pretrain": "train pretrain", "finetune": "train finetune"}

NEEDS_RECOMPRESS = "the build replaces most of the store's documents, and is refused without --recompress"


@flags_of(BuildConfig)
def build(
    corpus: Corpus,
    checkpoint: CheckpointDir,
    to: Annotated[str, typer.Option("--out", "-o", metavar="URI", help="Store to build, resume or update.")],
    config: Preset = None,
    *,
    given: Given,
    decoder_base: DecoderBase = None,
    compressor_base: CompressorBase = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            rich_help_panel="Update",
            help="Delete documents that are not in CORPUS, which must be the whole corpus.",
        ),
    ] = False,
    replan: Annotated[
        bool,
        typer.Option(
            "--replan",
            rich_help_panel="Update",
            help="Abandon the rest of an unfinished build, and update what it stored.",
        ),
    ] = False,
    recompress: Annotated[
        bool,
        typer.Option(
            "--recompress",
            rich_help_panel="Update",
            help="Compress most of a store again, or read its corpus with other settings than before.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and estimate; write nothing.")] = False,
    events: Annotated[
        Path | None,
        typer.Option(
            "--events",
            metavar="FILE",
            rich_help_panel="Watch",
            help="Append the build's events to FILE, as JSON lines.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            min=0,
            max=65535,
            metavar="PORT",
            rich_help_panel="Watch",
            help="Serve Prometheus metrics on PORT; 0: a free port.",
        ),
    ] = None,
    metrics_host: Annotated[
        str,
        typer.Option(
            "--metrics-host",
            metavar="HOST",
            rich_help_panel="Watch",
            help="Address to serve metrics on; 0.0.0.0: every interface.",
        ),
    ] = "127.0.0.1",
    as_json: Json = False,
) -> None:
    """Compress a corpus into a store: build it, resume after any kind of stop, or update it.

    Example: pisco-index build corpus.jsonl --preset beir -k CHECKPOINT -o index/
    """
    from ..pipeline.build import build as build_store
    from ..pipeline.estimate import dry_run as estimate

    settings = load_config(config, given)
    progress = _listeners(events, metrics_port, metrics_host)
    output = Output(as_json)
    inputs = corpus, checkpoint, to, settings
    options: Any = {"decoder_base": decoder_base, "compressor_base": compressor_base}
    options |= {"prune": prune, "replan": replan, "recompress": recompress}
    if dry_run:
        output.show(estimate(*inputs, **options, progress=progress), _estimated)
    else:
        output.show(build_store(*inputs, **options, progress=progress), _built)


def _listeners(events: Path | None, metrics_port: int | None, metrics_host: str) -> "Listeners":
    """Return all listeners of a build. The terminal's comes last, because its bars start at once."""
    from ..pipeline.watch.events import EventLog
    from ..pipeline.watch.progress import BuildProgress, Listeners
    from ..pipeline.watch.prometheus import Metrics
    from .screen import progress_on

    listeners: list[BuildProgress] = [EventLog(events)] if events is not None else []
    if metrics_port is not None:
        listeners.append(metrics := Metrics(metrics_port, metrics_host))
        say(f"metrics: http://{metrics_host}:{metrics.port}/metrics", console=err)
    return Listeners(*listeners, progress_on(err))


def _built(report: "BuildReport") -> Iterator[Piece]:
    dropped = "".join(f", dropped {number:,} ({reason})" for reason, number in report.dropped.items())
    rejected = "".join(f", rejected {number:,} ({reason})" for reason, number in report.rejected.items())
    changes = f"; documents: {by_change(report.changes)}" if report.changes else ""
    gone = f"; {count(report.gone, 'document')} not in the corpus (--prune deletes them)" if report.gone else ""
    yield (
        f"{report.uri}: {count(report.shards, 'shard')} done ({report.done_before:,} before)"
        f"{dropped}{rejected}{changes}{gone}{fallbacks(report.fallbacks)}; "
        f"{report.seconds:,.1f} s. See: pisco-index info {report.uri}"
    )


def _estimated(estimate: "Estimate") -> Iterator[Piece]:
    yield from rows(
        {
            "corpus": "; ".join(estimate.corpus),
            "records": f"{estimate.records:,} in {count(estimate.shards, 'shard')}",
            "documents": f"{estimate.documents:,}",
            "passages": f"{estimate.passages:,}",
            "tokens": f"{estimate.tokens:,}",
            "memory tokens": f"{estimate.memory_tokens:,}",
            "store": size(estimate.store_bytes),
            **(_speed(estimate) if estimate.passages else {}),
            **({"update": by_change(estimate.changes)} if estimate.changes else {}),
            **({"refused": NEEDS_RECOMPRESS} if estimate.needs_recompress else {}),
            **({"deletes": _listed(estimate.pruned)} if estimate.pruned else {}),
            **({"rejected": by_reason(estimate.rejected)} if estimate.rejected else {}),
        }
    )


def _speed(estimate: "Estimate") -> dict[str, str]:
    slowest, fastest = estimate.passages_per_s_range
    least, most = map(duration, estimate.seconds_range)
    return {
        "codec": describe_prediction(estimate.codec).removeprefix("codec "),
        "speed": f"{estimate.passages_per_s:,.1f} passages/s on {estimate.device} "
        f"({slowest:,.1f} to {fastest:,.1f} in the trials)",
        "time": f"{least} to {most} for the whole build with {count(estimate.workers, 'worker')}",
    }


def _listed(doc_ids: Sequence[str]) -> str:
    more = f", … (--json lists all {len(doc_ids):,})" if len(doc_ids) > SHOWN_IDS else ""
    return ", ".join(doc_ids[:SHOWN_IDS]) + more


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Preset to print; pretrain/NAME or finetune/NAME if several have the name."
        ),
    ] = None,
) -> None:
    """List the shipped configurations, by the command whose --config takes them; or print one, to be copied.

    Example: pisco-index presets wikipedia > my.yaml
    """
    shipped = {kind: list_presets(kind) for kind in get_args(Kind)}
    if name is not None:
        say(_preset(name, shipped).rstrip("\n"))
        return
    width = max(len(name) for descriptions in shipped.values() for name in descriptions)
    for kind, descriptions in shipped.items():
        say(_TAKES_PRESETS[kind], style="bold")
        for row in rows({f"  {name:{width}}": description for name, description in descriptions.items()}):
            say(row)


def _preset(name: str, shipped: dict[Kind, dict[str, str]]) -> str:
    places = {f"{kind}/{each}": (each, kind) for kind, names in shipped.items() for each in names}
    found = [place for place in places if name in (place, place.partition("/")[2])]
    # As in Python, a name alone is that of a preset for builds, if there is one.
    if (place := f"build/{name}") in found:
        if others := ", ".join(each for each in found if each != place):
            say(f"{place}. Also of this name: {others}.", console=err)
        found = [place]
    if len(found) > 1:
        raise ConfigError(f"{name}: {len(found)} presets have this name. Name one of {', '.join(found)}.")
    if not found:
        if family := [place for place in places if place.startswith(name) or place.partition("/")[2].startswith(name)]:
            raise ConfigError(f"{name}: no preset has this name. It begins {', '.join(family)}.")
        near = get_close_matches(name, [*(each for names in shipped.values() for each in names), *places], n=1)
        meant = f" Do you mean {near[0]}?" if near else ""
        raise ConfigError(f"{name}: there is no such preset.{meant} `pisco-index presets` lists them.")
    return preset_text(*places[found[0]])
