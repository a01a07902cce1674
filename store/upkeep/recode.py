"""Recode: write a store's memory into a new store in another codec, without the compressor and the corpus."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import StoreError
from ..assets import META_ASSET, NOTE_PREFIXES, ORIGIN_ASSET
from ..codecs import Codec, codec_by_name
from ..codecs.calibration import CALIBRATION_PREFIX, Calibration
from ..codecs.payload import decode_batch, encode_batch
from ..codecs.prediction import MemoryReader, Prediction, fit
from ..codecs.registry import uses_sensitivity
from ..commit import commit, done_shards
from ..ledger import empty_shards, fallbacks
from ..lock import build_lock
from ..meta import StoreMeta
from ..plans import plan_in_force
from ..sampling import sample_memory
from ..schema import CONTENTS, REJECTED_SCHEMA
from ..search.index import has_contents, search_index
from ..search.keep import keep_index
from ..store import Store
from ..table.addresses import REJECTED, resolve_uri
from ..table.deletions import open_checked
from ..table.fragment import WrittenShard, write_fragment
from ..table.rows import pieces, read_rows
from .compact import remove_orphans

# Number of shards in a commit: each commit adds a manifest, and a crash loses the shards that are not committed yet.
_COMMIT_SHARDS = 16
# Documents that are decoded and encoded at a time, and bytes of their memory in float32, unless one has more.
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 1024, 64 << 20
# Number of vectors that a prediction is computed from if the codec needs no sample.
_PREDICTION_VECTORS = 1024
# Assets that differ for every store, and are therefore not copied.
_NOT_COPIED = (META_ASSET, ORIGIN_ASSET, CALIBRATION_PREFIX, *NOTE_PREFIXES)
# Key of the origin that says whether a decoder was given, for codecs that are fitted to its sensitivity.
_DECODER = "decoder_given"


@dataclass(frozen=True)
class RecodeReport:
    """The result of recoding.

    Attributes:
        uri: address of the new store.
        shards: number of shards in the new store.
        done_before: number of those shards that an earlier run had committed.
        documents: number of documents in the new store.
        fallbacks: number of documents stored in another codec, which keeps more, by its name.
        prediction: predicted loss of the codec, from a sample of the memory; None if nothing was left to do.
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
    reader: MemoryReader | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RecodeReport:
    """Write the memory of a store into a new store in another codec. The first store is not touched.

    The new store has the same ids, rows, shards, plan and settings of the search index: an unfinished build resumes in
    it, with the new codec. If recoding is stopped, the same call resumes it. A codec cannot restore what another one
    has lost, so a store is not recoded to a codec that keeps more than its own.

    Args:
        uri: address of the store, which is read at its latest version.
        codec: name of the new store's codec.
        out: address of the new store; by default the first address, a hyphen and the codec's name.
        reader: decoder that reads a sample of the documents, if the store keeps their texts: a codec that uses its
            sensitivity is fitted to it, and the codec's KL divergence is measured. Without it such a codec treats all
            channels alike.
        progress: callback that is given the number of finished shards and the total.

    Raises:
        StoreError: the store cannot be read, its codec keeps less, or ``out`` holds something else, or was begun with a
            decoder and none is given, or the reverse, for a codec that uses its sensitivity.
        StoreLockedError: another build or recoding is writing ``out``.
    """
    # Read before the store is opened: a shard that is recorded as empty later may have rows in the opened version.
    empty = empty_shards(resolve_uri(uri)) if Store.exists(uri) else set()
    source = Store.open(uri)
    target = codec_by_name(codec)
    out = resolve_uri(f"{source.uri}-{codec}" if out is None else out)
    _require_sense(source, target, out)
    with build_lock(out):
        recoded, prediction = _open(source, target, out, reader)
        before = done_shards(recoded)
        # The shards of the opened version only: a build may add others meanwhile, whose rows are not read here.
        shards = sorted(source.ledger.shards(source.table) | empty)
        todo = [shard for shard in shards if shard not in before]
        written: list[WrittenShard] = []
        for done, each in enumerate(_rewrite(source, recoded, todo, target), len(shards) - len(todo) + 1):
            written.append(each)
            if len(written) == _COMMIT_SHARDS or done == len(shards):
                commit(recoded, written, plan_in_force(recoded.table))
                written.clear()
            if progress is not None:
                progress(done, len(shards))
        index = search_index(source.table)
        if index is not None and index.settings is not None:
            keep_index(out, index.settings)
        remove_orphans(recoded)
    return RecodeReport(
        uri=out,
        shards=len(shards),
        done_before=len(before),
        documents=recoded.refresh().count,
        fallbacks=fallbacks(out),
        prediction=prediction if todo else None,
    )


def _require_sense(source: Store, target: Codec, out: str) -> None:
    source.meta.require_memory(source.uri)
    own = codec_by_name(source.meta.codec)
    if out == source.uri:
        raise StoreError(f"the store at {out} cannot be recoded into itself. Name another place.")
    if target is own:
        raise StoreError(f"the store at {source.uri} has codec {own.name} already. Name another codec.")
    if target.fidelity > own.fidelity:
        raise StoreError(
            f"the store at {source.uri} has codec {own.name}, which keeps less than {target.name}: recoding would make "
            "it larger and bring nothing back. Build it again from the corpus."
        )


def _open(source: Store, target: Codec, out: str, reader: MemoryReader | None) -> tuple[Store, Prediction | None]:
    """Open the new store to resume it, or create it and predict what its codec will lose."""
    origin = {"created_at": source.meta.created_at.isoformat(), "version": source.version, "codec": source.meta.codec}
    # A codec that needs no decoder is the same with one.
    if uses_sensitivity(target):
        origin[_DECODER] = reader is not None
    if Store.exists(out):
        return _resume(source, target, out, origin), None
    vectors = target.sample_vectors(source.meta.dim) or _PREDICTION_VECTORS
    sample = sample_memory(source, vectors, with_texts=reader is not None)
    if not sample.lengths:
        raise StoreError(f"the store at {source.uri} holds no memory yet. Run its build first.")
    missing = "" if reader else "no checkpoint is given (--checkpoint)"
    if reader is not None and not any(sample.texts):
        reader, missing = None, f"the store at {source.uri} keeps no text that the decoder could read"
    calibration, prediction = fit(target, sample, reader, missing=missing)
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
    searched = (CONTENTS,) if has_contents(source.table) else ()
    metadata = source.table.schema.metadata
    recoded = Store.create(out, meta=meta, assets=assets, metadata=metadata, further_columns=searched)
    return recoded, prediction


def _resume(source: Store, target: Codec, out: str, origin: Mapping[str, object]) -> Store:
    recoded = Store.open(out)
    if ORIGIN_ASSET not in recoded.asset_names() or recoded.meta.codec != target.name:
        raise StoreError(f"{out} holds a store that is not this one recoded to {target.name}. Name another place.")
    begun = json.loads(recoded.asset(ORIGIN_ASSET))
    if any(begun.get(name) != value for name, value in origin.items() if name != _DECODER):
        raise StoreError(
            f"{out} was recoded from another version of the store at {source.uri}. Delete it, or name another place."
        )
    # The codec stays as it was fitted at first. Origins of earlier versions do not have this key.
    if origin.get(_DECODER) and begun.get(_DECODER) is False:
        raise StoreError(
            f"{out} was begun without a decoder, to which {target.name} would be fitted. Leave out --checkpoint to go "
            f"on; or delete {out}, or name another place, to begin anew."
        )
    return recoded


def _rewrite(source: Store, recoded: Store, shards: list[int], target: Codec) -> Iterator[WrittenShard]:
    """Write the shards of the source into the new store, one by one, without committing them."""
    calibration = recoded.own_calibration()
    shard_of_row, n_mem = source.number_column("shard"), source.number_column("n_mem")
    refusals = read_rows(open_checked(source.uri, REJECTED), REJECTED_SCHEMA.names)
    rejected = pa.Table.from_batches([batch for _, batch in refusals], REJECTED_SCHEMA)
    # Rows of a shard need not lie together: a compaction or an update may have moved them.
    by_shard = np.argsort(shard_of_row, kind="stable")
    begins = np.searchsorted(shard_of_row[by_shard], shards, "left")
    ends = np.searchsorted(shard_of_row[by_shard], shards, "right")
    empty = source.table.schema.empty_table()
    for shard, begin, end in zip(shards, begins, ends, strict=True):
        parts = [_recoded(part, source, target, calibration) for part in _take(source, by_shard[begin:end], n_mem)]
        refused = rejected.filter(pc.call_function("equal", [rejected.column("shard"), pa.scalar(shard, pa.uint32())]))
        rows = pa.concat_tables([empty, *parts]).drop_columns("shard")
        yield write_fragment(recoded.uri, shard, rows, refused.drop_columns("shard"))


def _take(store: Store, rows: np.ndarray, n_mem: np.ndarray) -> Iterator[pa.Table]:
    for piece in pieces(n_mem[rows], _BYTES_AT_ONCE // (4 * store.meta.dim), _ROWS_AT_ONCE):
        yield store.take(rows[piece], store.table.schema.names)


def _recoded(rows: pa.Table, source: Store, target: Codec, calibration: Calibration | None) -> pa.Table:
    """Return rows with their payloads in the target codec; rows without memory stay as they are."""
    stored = rows.filter(rows.column("payload").is_valid())
    if not stored.num_rows:
        return rows
    doc_ids = stored.column("doc_id").to_pylist()
    values, lengths = decode_batch(stored.column("payload").to_pylist(), doc_ids, source.calibration)
    made = dict(zip(doc_ids, encode_batch(doc_ids, values, lengths.tolist(), target, calibration), strict=True))
    place = rows.schema.get_field_index("payload")
    column = pa.array([made.get(doc_id) for doc_id in rows.column("doc_id").to_pylist()], pa.large_binary())
    return rows.set_column(place, rows.schema.field(place), column)
