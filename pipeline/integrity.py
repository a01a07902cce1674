"""Whether a store is whole, and mending it: its rows against its plan, its assets, a checkpoint and a corpus."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ..configs import BuildConfig, CompressionConfig
from ..corpus import Document, open_corpus
from ..errors import ConfigError, CorruptStoreError
from ..model.compressor import COMPRESSION_VERSION, Compressor
from ..model.connector import Connector
from ..model.device import choose_device
from ..model.families.pisco import Checkpoint
from ..store import (
    CONNECTOR_ASSET,
    RESTORE,
    Expectations,
    Findings,
    Fingerprint,
    Problem,
    Store,
    build_lock,
    check_assets,
    check_rows,
    codec_by_id,
    damage_to_drop,
    decode,
    drop_damage,
    empty_shards_of,
    encode,
    read_header,
    text_hash,
)
from .planning.plan import Plan, Shard
from .watch.totals import CONFIG_ASSET, PLAN_ASSET
from .worker import passage_tokenizer

Parsed = TypeVar("Parsed")

# Largest relative error of memory that is computed again, from the order of additions alone: other documents in the
# batch, another device or another number of threads.
ROUNDING = {"bfloat16": 0.05, "float32": 1e-3}


@dataclass(frozen=True)
class VerifyReport:
    """What a check of a store found.

    Attributes:
        uri: the store.
        version: of the table ``memory``; None if that cannot be opened.
        documents: rows that were read and checked.
        failed_documents: those of them that have an error and no memory.
        payload_bytes: of their payloads.
        shards_done: shards of the plan in force that are done.
        shards_planned: of that plan; None if that cannot be read.
        sampled: documents that were compressed again.
        largest_error: the largest relative error among them; None without a sample.
        problems: the first thousand.
        problem_count: how many there are.
        notes: what is worth knowing and no problem.
        seconds: the check took.
    """

    uri: str
    version: int | None
    documents: int
    failed_documents: int
    payload_bytes: int
    shards_done: int
    shards_planned: int | None
    sampled: int
    largest_error: float | None
    problems: tuple[Problem, ...]
    problem_count: int
    notes: tuple[str, ...]
    seconds: float

    @property
    def is_sound(self) -> bool:
        """Whether there is no problem."""
        return not self.problem_count

    @property
    def rows_per_s(self) -> float:
        """Documents checked per second."""
        return self.documents / max(self.seconds, 1e-9)

    @property
    def mb_per_s(self) -> float:
        """Megabytes of payload checked per second."""
        return self.payload_bytes / 1e6 / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """All of it as values that JSON knows."""
        rates = {"rows_per_s": self.rows_per_s, "mb_per_s": self.mb_per_s}
        return asdict(self) | {"is_sound": self.is_sound} | rates


@dataclass(frozen=True)
class RepairReport:
    """What a repair took out of a store, or would take out.

    Attributes:
        uri: the store.
        dry_run: whether nothing was changed.
        problem_count: problems that there were.
        rows: damaged documents that went.
        files: data files that could not be read and went, each with its table.
        bytes_freed: of files that no version refers to any more; None for a dry run.
    """

    uri: str
    dry_run: bool
    problem_count: int
    rows: int
    files: tuple[str, ...]
    bytes_freed: int | None

    def to_dict(self) -> dict[str, Any]:
        """All of it as values that JSON knows."""
        return asdict(self)


def verify(
    uri: str | Path,
    *,
    checkpoint: str | Path | None = None,
    corpus: Sequence[str | Path] = (),
    sample: int = 0,
    seed: int | None = None,
    device: str = "auto",
    progress: Callable[[int, int], object] | None = None,
) -> VerifyReport:
    """Check every file, row and payload of a store; it changes nothing and may run while a build goes on.

    Args:
        uri: the store.
        checkpoint: compare the store's fingerprint with this checkpoint's.
        corpus: files and folders that the sample is read from.
        sample: compress so many random documents of the corpus again, and compare their memory.
        seed: of the choice of documents; None chooses others each time.
        device: where the sample is compressed.
        progress: told how many of how many rows have been read.

    Raises:
        StoreError: there is no store.
        ConfigError: a sample without a corpus or a checkpoint.
        CheckpointError: the checkpoint cannot be read.
        CorpusError: the corpus cannot be read.
    """
    if sample and not (corpus and checkpoint):
        raise ConfigError("A sample is compressed again: name the corpus and the checkpoint (--corpus, --checkpoint).")
    began = time.monotonic()
    opened = None if checkpoint is None else Checkpoint(checkpoint)
    findings, plan, config = _check(uri, progress)
    seconds = time.monotonic() - began
    if opened is not None and config is not None:
        _check_checkpoint(findings, opened, config.compression)
    errors: list[float] = []
    # What does not open is told already, and memory of another checkpoint differs everywhere.
    if sample and opened is not None and config is not None and not findings.problem_count:
        errors = _check_sample(findings, config, opened, corpus, sample, seed, choose_device(device))
    return VerifyReport(
        uri=findings.uri,
        version=findings.version,
        documents=findings.documents,
        failed_documents=findings.failed_documents,
        payload_bytes=findings.payload_bytes,
        shards_done=findings.shards_done,
        shards_planned=None if plan is None else len(plan.shards),
        sampled=len(errors),
        largest_error=max(errors, default=None),
        problems=tuple(findings.problems),
        problem_count=findings.problem_count,
        notes=tuple(findings.notes),
        seconds=seconds,
    )


def repair(
    uri: str | Path,
    *,
    dry_run: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> RepairReport:
    """Drop what is damaged in a store, so that the next build of its corpus refills exactly that.

    Args:
        uri: the store.
        dry_run: only say what would be dropped.
        progress: told how many of how many rows have been read.

    Raises:
        StoreError: there is no store, it cannot be written, or its tables or assets are damaged beyond repair.
        StoreLockedError: a build is writing it.
    """
    # A lock makes the store's folder; where there is no store this says so first.
    check_assets(uri)
    with nullcontext() if dry_run else build_lock(uri):
        findings, plan, _ = _check(uri, progress)
        if beyond := [problem for problem in findings.problems if problem.remedy == RESTORE]:
            raise CorruptStoreError(f"The store at {findings.uri} cannot be repaired. {beyond[0]}")
        planned = {shard.number for shard in plan.shards} if plan else set()
        dropped = damage_to_drop(findings.damage) if dry_run else drop_damage(findings, planned)
    return RepairReport(
        uri=findings.uri,
        dry_run=dry_run,
        problem_count=findings.problem_count,
        rows=dropped.rows,
        files=dropped.files,
        bytes_freed=dropped.bytes_freed,
    )


def _check(
    uri: str | Path, progress: Callable[[int, int], object] | None
) -> tuple[Findings, Plan | None, BuildConfig | None]:
    findings, assets = check_assets(uri)
    plan = _parsed(findings, assets, findings.plan or PLAN_ASSET, Plan.from_json)
    config = _parsed(findings, assets, CONFIG_ASSET, BuildConfig.model_validate_json)
    if findings.meta is not None:
        components = findings.meta.fingerprint.components
        _parsed(
            findings,
            assets,
            CONNECTOR_ASSET,
            lambda content: Connector.from_bytes(content, components.get("connector", ""), "the store"),
        )
        if config is not None:
            settings = config.compression.components | {"compression": COMPRESSION_VERSION}
            fixed = components.keys() - CompressionConfig.model_fields.keys() - {"compression"}
            stored = {key: value for key, value in components.items() if key not in fixed}
            changed = sorted(key for key in settings.keys() | stored.keys() if settings.get(key) != stored.get(key))
            if changed:
                what = f"the fingerprint in the description and {CONFIG_ASSET} differ in {', '.join(changed)}."
                findings.add(Problem("assets", what, RESTORE))
    check_rows(findings, _expected(findings, plan, config), empty_shards_of(findings, assets), progress=progress)
    return findings, plan, config


def _parsed(
    findings: Findings, assets: Mapping[str, bytes], name: str, parse: Callable[[bytes], Parsed]
) -> Parsed | None:
    if name not in assets:
        findings.add(Problem("assets", f"there is no asset {name!r}.", RESTORE))
        return None
    try:
        return parse(assets[name])
    # JSON that is damaged and still JSON fails in any of these ways.
    except (ValueError, TypeError, KeyError, AttributeError, CorruptStoreError) as error:
        findings.add(Problem("assets", f"the asset {name!r} cannot be used: {error!r}.", RESTORE))
        return None


def _expected(findings: Findings, plan: Plan | None, config: BuildConfig | None) -> Expectations:
    shards = None
    if plan is not None:
        shards = {shard.number: None if findings.is_altered else _rows_of(shard, plan) for shard in plan.shards}
    rate, input_text = None, None
    if findings.meta is not None:
        stated = findings.meta.fingerprint.components.get("rate", "")
        rate = int(stated) if stated.isdecimal() and int(stated) > 0 else None
        kept = findings.meta.optional_columns
        # A title that is not kept may have been part of the text.
        if config is not None and "text" in kept and ("title" in kept or "{title}" not in config.compression.template):
            input_text = config.compression.input_text
    return Expectations(shards, plan.next if plan else 0, rate, input_text)


def _rows_of(shard: Shard, plan: Plan) -> int | None:
    """How many documents a shard has; None where its records are cut into documents when they are read."""
    if shard.selection is not None:
        return sum(shard.selection.chosen)
    return None if any(plan.sources[part.source]["passage_words"] for part in shard.slices) else shard.records


def _check_checkpoint(findings: Findings, checkpoint: Checkpoint, compression: CompressionConfig) -> None:
    if findings.meta is None:
        return
    theirs = Fingerprint({**checkpoint.identity, **compression.components, "compression": COMPRESSION_VERSION})
    for difference in findings.meta.fingerprint.differences(theirs):
        what = f"the store and the checkpoint {checkpoint.path} differ in {difference}."
        findings.add(Problem("assets", what, "Name the checkpoint that the store was built with."))


def _check_sample(
    findings: Findings,
    config: BuildConfig,
    checkpoint: Checkpoint,
    corpus: Sequence[str | Path],
    count: int,
    seed: int | None,
    device: str,
) -> list[float]:
    """Compress random documents again and compare; returns their relative errors."""
    assert findings.meta is not None
    store = Store.open(findings.uri)
    chosen = store.sample(count, seed)
    documents = list(_find(corpus, config, set(chosen)))
    for doc_id in chosen:
        if doc_id not in {document.doc_id for document in documents}:
            what = "is not in the corpus given."
            findings.add(Problem("memory", what, "Name the corpus that the store was built from.", doc_id=doc_id))
    if not documents:
        return []
    rows = store.fetch([document.doc_id for document in documents], columns=["text_hash"])
    texts = [config.compression.input_text(document.text, document.title) for document in documents]
    repeated = [config.compression.repeated(document.title) for document in documents]
    tokenized = list(passage_tokenizer(checkpoint, config.compression).tokenize(texts, repeated))
    dtype = config.compression.dtype
    compressor = Compressor.load(checkpoint, dtype=getattr(torch, dtype), device=device, compiled=False)
    passages = [passage for document in tokenized for passage in document.passages]
    memory = compressor.compress(passages, stage=findings.meta.stage).values.float()
    errors: list[float] = []
    fresh = memory.split([document.n_mem for document in tokenized])
    for i, doc_id in enumerate(rows.doc_ids):
        if text_hash(texts[i]) != rows.columns["text_hash"][i]:
            what = "its text in the corpus is not the one that was compressed."
            findings.add(Problem("memory", what, "Name the corpus that the store was built from.", doc_id=doc_id))
            continue
        error, tolerance = _compare(store, doc_id, rows.payloads[i], fresh[i].numpy(), ROUNDING[dtype])
        errors.append(error)
        if not error <= tolerance:
            what = f"compressed again its memory differs by {error:.2g} relatively; {tolerance:.2g} is allowed."
            findings.add(
                Problem("memory", what, "Build the store anew if that is so on the same device.", doc_id=doc_id)
            )
    return errors


def _compare(store: Store, doc_id: str, payload: bytes, fresh: np.ndarray, rounding: float) -> tuple[float, float]:
    """Relative error of stored memory against fresh, and how large it may be.

    What a codec loses on this very document is measured by coding the fresh memory too: the stored memory lost as much,
    in another direction at worst.
    """
    stored = decode(payload, doc_id, store.calibration)
    if stored.shape != fresh.shape:
        return np.inf, rounding
    finite = np.isfinite(fresh)
    if (np.isfinite(stored) != finite).any():
        return np.inf, rounding
    stored, kept = np.where(finite, stored, 0), np.where(finite, fresh, 0)
    norm = max(float(np.linalg.norm(kept)), float(np.finfo(np.float32).tiny))
    codec = codec_by_id(read_header(payload).codec_id)
    coded = decode(encode(doc_id, fresh, codec, store.own_calibration()), doc_id, store.calibration)
    lost = float(np.linalg.norm(np.where(finite, coded, 0) - kept)) / norm
    return float(np.linalg.norm(stored - kept)) / norm, rounding + 2 * lost


def _find(corpus: Sequence[str | Path], config: BuildConfig, wanted: set[str]) -> Iterator[Document]:
    """Documents of a corpus by id, in its order; it is read only as far as the last of them."""
    wanted = set(wanted)
    # The store's documents are asked for; what else is in its corpus does not matter.
    lenient = config.corpus.model_copy(update={"on_error": "skip"})
    for source in open_corpus([str(path) for path in corpus], lenient).sources:
        for document in source.read(0, None):
            if not wanted:
                return
            if document.doc_id in wanted:
                wanted.remove(document.doc_id)
                yield document
