"""The commands that describe a store without changing it: ``info`` and ``status``."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..errors import some
from .console import Output, Piece, ago, by_change, by_reason, count, duration, fallbacks, fitted, ratio, rows, size
from .options import Json, Uri

if TYPE_CHECKING:
    from ..pipeline.watch.running import RunStatus
    from ..pipeline.watch.totals import BuildStatus
    from ..store import SearchIndex, StoreInfo


def info(uri: Uri, as_json: Json = False) -> None:
    """Show what a store holds. To follow a running build, use `pisco-index status`."""
    from ..pipeline.watch.totals import build_status

    Output(as_json).show(build_status(uri), _held)


def status(
    uri: Uri,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until the build is over.")] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Time between updates of --watch.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Show the progress of a store's build, from any terminal or machine.

    For what the store holds, use `pisco-index info`.
    """
    from ..pipeline.watch.running import run_status

    output = Output(as_json)
    while True:
        current = run_status(uri)
        if watch:
            output.clear()
        output.show(current, _progress, on_one_line=watch)
        if not watch or current.running is False or (current.is_complete and not current.running):
            return
        time.sleep(every)


def _search(index: "SearchIndex | None", searchable: int | None) -> str:
    if index is None:
        return "no index; `pisco-index index` makes it"
    settings = index.settings
    described = "settings of another program"
    if settings is not None:
        parts = settings.language, f"tokenizer {settings.tokenizer}"
        stems, words = (
            "stems" if settings.stem else "no stems",
            "stop words" if settings.stop_words else "no stop words",
        )
        described = ", ".join((*parts, stems, words))
    held = sum(index.rows)
    missing = f"; {count(index.unindexed_rows, 'document')} not indexed" if index.unindexed_rows else ""
    if searchable is not None and searchable < held:
        missing += f"; {count(held - searchable, 'document')} without text, which no search finds"
    return f"{count(held, 'document')} indexed{missing}, {size(index.bytes)}; {described}"


def _done(planned: int, missing: int) -> str:
    # An update that deletes documents only has no shard.
    return f"{planned - missing:,} of {planned:,} done" if planned else "none: nothing is to be compressed"


def _compression(store: "StoreInfo") -> dict[str, str]:
    reached = f"{ratio(store.compression)} tokens per memory token reached; the rate is {store.checkpoint['rate']}"
    return {
        "tokens": f"{store.tokens_total:,} ({store.tokens_fed:,} fed to the compressor)",
        "memory tokens": f"{store.n_mem:,}",
        "compression": reached,
    }


def _held(status: "BuildStatus") -> Iterator[Piece]:
    store = status.store
    stored = store.documents - store.failed_documents
    missing = len(status.shards_missing)
    yield from rows(
        {
            "store": store.uri,
            "documents": f"{store.documents:,}",
            **(_compression(store) if store.holds_memory else {}),
            "payload": f"{size(store.payload_bytes)}, {store.payload_bytes / max(stored, 1):,.0f} bytes per document",
            "on disk": size(store.disk_bytes)
            if store.disk_bytes is not None
            else f"{size(store.table_bytes)} in the latest version; older versions in an object store are not counted",
            "search": _search(store.search, store.searchable),
            "vectors": f"stage {store.stage}, {store.dim} wide, codec {store.codec}"
            f"{fitted(store.fitted_to_decoder)}{fallbacks(store.fallbacks)}"
            if store.holds_memory
            else "none: the store keeps texts, and memory is made at question time",
            "shards": _done(status.shards_planned, missing)
            + (f"; missing {some(status.shards_missing)}" if missing else ""),
            **({"last update": by_change(status.changes)} if status.changes else {}),
            "failures": f"{count(store.failed_documents, 'document')}, {count(store.rejected_records, 'record')}",
            "corpus": "; ".join(status.corpus),
            **({"kept out": count(store.kept_out, "document")} if store.kept_out else {}),
            "dropped": by_reason(status.dropped),
            "rejected": by_reason(status.rejected),
            "fingerprint": store.fingerprint,
            **{f"  {name}": repr(value)[1:-1] for name, value in store.fingerprint_components.items()},
            "format": f"version {store.format_version}, table version {store.version}, {store.fragments:,} fragments",
        }
    )
    for failure in store.failures:
        yield Text(f"failed: {failure.doc_id or failure.source}: {failure.error}", style="yellow")


def _progress(status: "RunStatus") -> Iterator[Piece]:
    if status.running is None:
        running = "unknown in an object store; see the last commit"
    else:
        running = f"running: {status.holder}" if status.running else "not running"
    driver = status.driver
    values = {
        "store": status.uri,
        "build": "complete, " + running if status.is_complete else running,
        "shards": _done(status.shards, status.missing) + (f", {status.missing:,} missing" if status.shards else ""),
        **({"last update": by_change(status.changes)} if status.changes else {}),
        "documents": f"{status.documents:,} in the store; the last plan read {count(status.records, 'record')}",
        "failures": f"{count(status.failed_documents, 'document')} quarantined, "
        f"{count(status.rejected_records, 'record')} rejected",
        "last commit": f"{status.last_commit}, {ago(status.last_commit)}",
    }
    if status.documents_per_s is not None:
        values["speed"] = f"{status.documents_per_s:,.1f} documents/s over the last commits"
    if driver is not None:
        done_now = f"{count(driver.documents, 'document')} in this run, in {driver.where}"
        values["now"] = f"{driver.tokens_per_s:,.0f} tokens/s, {done_now}" + ("; stopping" if driver.stopping else "")
    if not status.is_complete:
        left = status.remaining_s
        values["time left"] = "unknown" if left is None else f"about {duration(left)}"
    yield from rows(values)
    if driver is None or not driver.workers:
        return
    table = Table(f"worker, {ago(driver.time)}", "doing", "shard", box=None)
    for heading in ("documents", "tokens"):
        table.add_column(heading, justify="right")
    for worker in driver.workers:
        part = "" if worker.part is None else f" ({worker.part:.0%})"
        shard = "" if worker.shard is None else f"{worker.shard}{part}"
        table.add_row(Text(worker.name), worker.doing, shard, f"{worker.documents:,}", f"{worker.tokens:,}")
    yield table
