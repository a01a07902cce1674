"""Rewriting a store in another codec, from its own memory: no compressor and no corpus are needed."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import StoreError
from ..codecs import Codec, codec_by_name
from ..codecs.calibration import CALIBRATION_PREFIX, Calibration
from ..codecs.payload import decode_batch, encode_batch
from ..codecs.prediction import Prediction, predict
from ..commit import commit, done_shards
from ..ledger import EMPTY_SHARD_PREFIX, FALLBACK_PREFIX, empty_shards, fallbacks
from ..lock import build_lock
from ..meta import StoreMeta
from ..plans import plan_in_force
from ..schema import REJECTED_SCHEMA
from ..store import META_ASSET, Store
from ..table.addresses import REJECTED, resolve_uri
from ..table.deletions import open_checked
from ..table.failures import lance_errors
from ..table.fragment import WrittenShard, write_fragment
from ..table.rows import read_rows
from .compact import remove_orphans

ORIGIN_ASSET = "recoded-from"
_COMMIT_SHARDS = 16
_ROWS_AT_ONCE = 1024
# Of these every store has its own.
_NOT_COPIED = (META_ASSET, ORIGIN_ASSET, CALIBRATION_PREFIX, EMPTY_SHARD_PREFIX, FALLBACK_PREFIX)


@dataclass(frozen=True)
class RecodeReport:
    """What recoding did.

    Attributes:
        uri: the new store.
        shards: that it holds.
        done_before: of them, those that an earlier run had committed.
        documents: that it holds.
        fallbacks: documents that are stored by another codec, which keeps more, by its name.
        prediction: what the codec makes of a sample of the memory; None where nothing was left to do.
    """

    uri: str
    shards: int
    done_before: int
    documents: int
    fallbacks: dict[str, int]
    prediction: Prediction | None


def recode(
    uri: str | Path,
    codec: str,
    out: str | Path | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> RecodeReport:
    """Write a store's memory into a new store in another codec; the first one is not touched.

    The new store has the same ids, rows, shards and plan: a build that was not done goes on in it, with the new codec.
    Stopped at any point, the same call goes on. What a codec has lost stays lost, so a store is not recoded to one that
    keeps more than its own.

    Args:
        uri: the store, at its latest version.
        codec: of the new store.
        out: the new store; by default the first one's address, a hyphen and the codec's name.
        progress: told how many of how many shards are done.

    Raises:
        StoreError: the store cannot be read, its codec keeps less, or ``out`` holds something else.
        StoreLockedError: another build or recoding is writing ``out``.
    """
    # First: a shard that is noted as empty later may have rows in the version that is opened now.
    empty = empty_shards(resolve_uri(uri)) if Store.exists(uri) else set()
    source = Store.open(uri)
    target = codec_by_name(codec)
    out = resolve_uri(f"{source.uri}-{codec}" if out is None else out)
    _require_sense(source, target, out)
    with build_lock(out):
        recoded, prediction = _open(source, target, out)
        before = done_shards(recoded)
        # Those of the version that is open: a build may add others meanwhile, whose rows are not in hand.
        shards = sorted(source.ledger.shards(source.table) | empty)
        todo = [shard for shard in shards if shard not in before]
        written: list[WrittenShard] = []
        done = len(shards) - len(todo)
        for each in _rewrite(source, recoded, todo, target):
            written.append(each)
            done += 1
            if len(written) == _COMMIT_SHARDS or done == len(shards):
                commit(recoded, written, plan_in_force(recoded.table))
                written.clear()
            if progress is not None:
                progress(done, len(shards))
        remove_orphans(recoded)
    return RecodeReport(
        uri=out,
        shards=len(shards),
        done_before=len(before),
        documents=recoded.refresh().count,
        fallbacks=fallbacks(out),
        prediction=prediction if todo else None,
    )


def sample_memory(store: Store, vectors: int) -> tuple[np.ndarray, list[int]]:
    """Memory of documents spread evenly over a store's rows: about so many vectors, or all where there are fewer.

    Returns:
        values ``(Σ n_mem, dim)`` float32 and the lengths of the documents.

    Raises:
        StoreError: it cannot be read.
    """
    n_mem = _column(store, "n_mem")
    rows = np.flatnonzero(n_mem > 0)
    total = int(n_mem.sum())
    count = len(rows) if total <= vectors else min(len(rows), -(-vectors * len(rows) // total))
    chosen = rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)] if count else rows
    parts, lengths = [np.zeros((0, store.meta.dim), np.float32)], []
    for part in _take(store, chosen):
        values, counts = decode_batch(*_payloads(part), store.calibration)
        parts.append(values)
        lengths += counts.tolist()
    return np.concatenate(parts), lengths


def _require_sense(source: Store, target: Codec, out: str) -> None:
    own = codec_by_name(source.meta.codec)
    if out == source.uri:
        raise StoreError(f"the store at {out} cannot be recoded into itself. Name another place.")
    if target is own:
        raise StoreError(f"the store at {source.uri} has codec {own.name} already.")
    if target.fidelity > own.fidelity:
        raise StoreError(
            f"the store at {source.uri} has codec {own.name}, which keeps less than {target.name}: recoding would make "
            "it larger and bring nothing back. Build it anew from the corpus."
        )


def _open(source: Store, target: Codec, out: str) -> tuple[Store, Prediction | None]:
    origin = {"created_at": source.meta.created_at.isoformat(), "version": source.version, "codec": source.meta.codec}
    if Store.exists(out):
        recoded = Store.open(out)
        if ORIGIN_ASSET not in recoded.asset_names() or recoded.meta.codec != target.name:
            raise StoreError(f"{out} holds a store that is not this one recoded to {target.name}. Name another place.")
        if json.loads(recoded.asset(ORIGIN_ASSET)) != origin:
            raise StoreError(
                f"{out} was recoded from another version of the store at {source.uri}. Delete it, or name "
                "another place."
            )
        return recoded, None
    values, lengths = sample_memory(source, target.sample_vectors(source.meta.dim) or _ROWS_AT_ONCE)
    if not len(values):
        raise StoreError(f"the store at {source.uri} holds no memory yet.")
    calibration = target.calibrate(values)
    names = [name for name in source.asset_names() if not name.startswith(_NOT_COPIED)]
    assets = {name: source.asset(name) for name in names} | {ORIGIN_ASSET: json.dumps(origin).encode()}
    if calibration is not None:
        assets[calibration.asset] = calibration.to_bytes()
    meta = StoreMeta(
        fingerprint=source.meta.fingerprint,
        stage=source.meta.stage,
        dim=source.meta.dim,
        codec=target.name,
        checkpoint=source.meta.checkpoint,
        package_version=version("pisco-index"),
        optional_columns=source.meta.optional_columns,
    )
    recoded = Store.create(out, meta=meta, assets=assets, metadata=source.table.schema.metadata)
    return recoded, predict(target, values, lengths, calibration)


def _rewrite(source: Store, recoded: Store, shards: list[int], target: Codec) -> Iterator[WrittenShard]:
    calibration = recoded.own_calibration()
    shard_of_row = _column(source, "shard")
    refusals = read_rows(open_checked(source.uri, REJECTED), REJECTED_SCHEMA.names)
    rejected = pa.Table.from_batches([batch for _, batch in refusals], REJECTED_SCHEMA)
    by_shard = np.argsort(shard_of_row, kind="stable")
    begins = np.searchsorted(shard_of_row[by_shard], shards, "left")
    ends = np.searchsorted(shard_of_row[by_shard], shards, "right")
    empty = source.table.schema.empty_table()
    for shard, begin, end in zip(shards, begins, ends, strict=True):
        parts = [_recoded(part, source, target, calibration) for part in _take(source, by_shard[begin:end])]
        refused = rejected.filter(pc.call_function("equal", [rejected.column("shard"), pa.scalar(shard, pa.uint32())]))
        rows = pa.concat_tables([empty, *parts]).drop_columns("shard")
        yield write_fragment(recoded.uri, shard, rows, refused.drop_columns("shard"))


def _column(store: Store, name: str) -> np.ndarray:
    values = [batch.column(0).to_numpy() for _, batch in read_rows(store.table, [name])]
    return np.concatenate(values) if values else np.empty(0, np.int64)


def _take(store: Store, rows: np.ndarray) -> Iterator[pa.Table]:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        with lance_errors(f"cannot read the store at {store.uri}"):
            yield store.table.take(pa.array(rows[start : start + _ROWS_AT_ONCE]))


def _payloads(rows: pa.Table) -> tuple[list[bytes], list[str]]:
    """Payloads and ids of the rows that have memory."""
    rows = rows.filter(rows.column("payload").is_valid())
    return rows.column("payload").to_pylist(), rows.column("doc_id").to_pylist()


def _recoded(rows: pa.Table, source: Store, target: Codec, calibration: Calibration | None) -> pa.Table:
    payloads, doc_ids = _payloads(rows)
    if not payloads:
        return rows
    values, lengths = decode_batch(payloads, doc_ids, source.calibration)
    made = dict(zip(doc_ids, encode_batch(doc_ids, values, lengths.tolist(), target, calibration), strict=True))
    place = rows.schema.get_field_index("payload")
    column = pa.array([made.get(doc_id) for doc_id in rows.column("doc_id").to_pylist()], pa.large_binary())
    return rows.set_column(place, rows.schema.field(place), column)
