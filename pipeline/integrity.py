"""Verify a store against its plan, its assets and a checkpoint, and repair it."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..configs import BuildConfig, CompressionConfig
from ..corpus import is_cut
from ..errors import ConfigError, CorruptStoreError
from ..model.connector import Connector
from ..model.device import choose_device
from ..model.families import Checkpoint, open_checkpoint
from ..model.identity import memory_components, settings_components
from ..model.passages import memory_bounds_of
from ..store import (
    CONNECTOR_ASSET,
    RESTORE,
    Expectations,
    Findings,
    Fingerprint,
    Problem,
    build_lock,
    check_assets,
    check_index,
    check_rows,
    damage_to_drop,
    drop_damage,
    empty_shards_of,
    keep_index,
    no_memory,
)
from .planning.plan import Plan, Shard
from .planning.stored import CONFIG_ASSET, PLAN_ASSET, keeps_input_text
from .upkeep.sample_check import check_sample

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class VerifyReport:
    """Result of verifying a store.

    Attributes:
        uri: address of the store.
        version: version of the table ``memory``; None if it cannot be opened.
        documents: number of rows that were read and checked.
        failed_documents: number of rows with an error in place of memory.
        payload_bytes: size of the rows' payloads.
        shards_done: number of finished shards of the plan in force.
        shards_planned: number of shards in that plan; None if it cannot be read.
        sampled: number of documents that were compressed again.
        largest_error: largest relative error among these; None without a sample.
        problems: the first thousand problems.
        problem_count: number of all problems.
        notes: remarks that are not problems.
        unchecked: parts of the store in which damage may go unnoticed, a sentence each; none if everything was checked.
        seconds: duration of the check.
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
    unchecked: tuple[str, ...]
    seconds: float

    @property
    def is_sound(self) -> bool:
        """True if no problem was found."""
        return not self.problem_count

    @property
    def rows_per_s(self) -> float:
        """Documents that were checked per second."""
        return self.documents / max(self.seconds, 1e-9)

    @property
    def mb_per_s(self) -> float:
        """Megabytes of payload that were checked per second."""
        return self.payload_bytes / 1e6 / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able values."""
        rates = {"rows_per_s": self.rows_per_s, "mb_per_s": self.mb_per_s}
        return asdict(self) | {"is_sound": self.is_sound} | rates


@dataclass(frozen=True)
class RepairReport:
    """Result of a repair, or of its dry run.

    Attributes:
        uri: address of the store.
        dry_run: True if nothing was changed.
        problem_count: number of problems before the repair.
        rows: number of damaged rows that were dropped.
        files: damaged files that were dropped, each with its table.
        is_index_damaged: True if the search index was damaged, and was made anew.
        bytes_freed: size of the files that no version refers to any more; None for a dry run.
        recorded: number of files whose checksums were recorded, because they had none.
    """

    uri: str
    dry_run: bool
    problem_count: int
    rows: int
    files: tuple[str, ...]
    is_index_damaged: bool
    bytes_freed: int | None
    recorded: int

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able values."""
        return asdict(self)


def verify(
    uri: str | Path,
    *,
    checkpoint: str | Path | None = None,
    corpus: Sequence[str | Path] = (),
    sample: int = 0,
    seed: int | None = None,
    device: str = "auto",
    decoder_base: str | None = None,
    compressor_base: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> VerifyReport:
    """Check every file, row and payload of a store, changing nothing; it may run during a build.

    Args:
        uri: address of the store.
        checkpoint: checkpoint whose fingerprint is compared with the store's.
        corpus: files and folders to read the sample from.
        sample: number of random documents to compress again and compare.
        seed: seed of the choice of documents; None chooses others each time.
        device: device to compress the sample on.
        decoder_base: base decoder to use in place of the one that the checkpoint names.
        compressor_base: base of the compressor to use in place of the one that the checkpoint names.
        progress: callback that is given the number of rows read and the total.

    Raises:
        StoreError: there is no store.
        ConfigError: a sample was requested without a corpus or a checkpoint.
        CheckpointError: the checkpoint cannot be read.
        CorpusError: the corpus cannot be read.
    """
    if sample and not (corpus and checkpoint):
        raise ConfigError("--sample compresses documents again. Give --corpus and --checkpoint.")
    began = time.monotonic()
    opened = None
    if checkpoint is not None:
        opened = open_checkpoint(checkpoint, decoder_base=decoder_base, compressor_base=compressor_base)
    findings, plan, config = _check(uri, progress)
    seconds = time.monotonic() - began
    if opened is not None and config is not None:
        _check_checkpoint(findings, opened, config.compression)
    errors: list[float] = []
    if sample and findings.meta is not None and not findings.meta.holds_memory:
        findings.notes.append("no sample was compressed, because memory is made with each question")
    # A store with problems is reported already, and memory of another checkpoint would differ everywhere.
    elif sample and opened is not None and config is not None and not findings.problem_count:
        errors = check_sample(findings, config, opened, corpus, sample, seed, choose_device(device))
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
        unchecked=tuple(findings.unchecked),
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
        uri: address of the store.
        dry_run: True to only report what would be dropped.
        progress: callback that is given the number of rows read and the total.

    Raises:
        StoreError: there is no store, it cannot be written, or its tables or assets are damaged beyond repair.
        StoreLockedError: a build is writing it.
    """
    # Before the lock, which would create the folder of a store that does not exist.
    check_assets(uri)
    with nullcontext() if dry_run else build_lock(uri):
        findings, plan, config = _check(uri, progress)
        if beyond := [problem for problem in findings.problems if problem.remedy == RESTORE]:
            raise CorruptStoreError(f"the store at {findings.uri} cannot be repaired. {beyond[0]}")
        planned = {shard.number for shard in plan.shards} if plan else set()
        is_index_damaged = findings.damage.is_index_damaged
        dropped = damage_to_drop(findings.damage) if dry_run else drop_damage(findings, planned)
        if is_index_damaged and not dry_run:
            settings = findings.index.settings if findings.index else None
            if settings is None and config is not None:
                settings = config.search
            keep_index(findings.uri, settings, rebuild=True)
    return RepairReport(
        uri=findings.uri,
        dry_run=dry_run,
        problem_count=findings.problem_count,
        rows=dropped.rows,
        files=dropped.files,
        is_index_damaged=is_index_damaged,
        bytes_freed=dropped.bytes_freed,
        recorded=dropped.recorded,
    )


def _check(
    uri: str | Path, progress: Callable[[int, int], object] | None
) -> tuple[Findings, Plan | None, BuildConfig | None]:
    findings, assets = check_assets(uri)
    plan = _parsed(findings, assets, findings.plan or PLAN_ASSET, Plan.from_json)
    config = _parsed(findings, assets, CONFIG_ASSET, BuildConfig.model_validate_json)
    if findings.meta is not None:
        components = findings.meta.fingerprint.components
        if findings.meta.has_connector:
            _parsed(
                findings,
                assets,
                CONNECTOR_ASSET,
                lambda content: Connector.from_bytes(content, components.get("connector", ""), "the store"),
            )
        if config is not None:
            settings = settings_components(config.compression)
            fixed = components.keys() - CompressionConfig.model_fields.keys() - {"compression"}
            stored = {key: value for key, value in components.items() if key not in fixed}
            changed = sorted(key for key in settings.keys() | stored.keys() if settings.get(key) != stored.get(key))
            if changed:
                what = f"the fingerprint in the description and {CONFIG_ASSET} differ in {', '.join(changed)}."
                findings.add(Problem("assets", what, RESTORE))
    check_rows(findings, _expected(findings, plan, config), empty_shards_of(findings, assets), progress=progress)
    check_index(findings, assets)
    return findings, plan, config


def _parsed(
    findings: Findings, assets: Mapping[str, bytes], name: str, parse: Callable[[bytes], Parsed]
) -> Parsed | None:
    if name not in assets:
        findings.add(Problem("assets", f"there is no asset {name!r}.", RESTORE))
        return None
    try:
        return parse(assets[name])
    # Damaged JSON that still parses fails in any of these ways.
    except (ValueError, TypeError, KeyError, AttributeError, CorruptStoreError) as error:
        findings.add(Problem("assets", f"the asset {name!r} cannot be used: {error!r}.", RESTORE))
        return None


def _expected(findings: Findings, plan: Plan | None, config: BuildConfig | None) -> Expectations:
    shards = None
    if plan is not None:
        shards = {shard.number: None if findings.is_altered else _rows_of(shard, plan) for shard in plan.shards}
    n_mem_bounds, input_text = None, None
    if findings.meta is not None:
        holds_memory, components = findings.meta.holds_memory, findings.meta.fingerprint.components
        n_mem_bounds = memory_bounds_of(components) if holds_memory else no_memory
        if config is not None and keeps_input_text(findings.meta, config.compression):
            input_text = config.compression.input_text
    return Expectations(shards, plan.next if plan else 0, n_mem_bounds, input_text)


def _rows_of(shard: Shard, plan: Plan) -> int | None:
    """Return a shard's number of documents; None if its records are cut into documents when they are read."""
    if shard.selection is not None:
        chosen = sum(shard.selection.chosen)
        return len(range(chosen)[shard.share.of(chosen)]) if shard.share else chosen
    return None if any(is_cut(plan.sources[part.source]) for part in shard.slices) else shard.records


def _check_checkpoint(findings: Findings, checkpoint: Checkpoint, compression: CompressionConfig) -> None:
    if findings.meta is None:
        return
    at_question = not findings.meta.holds_memory
    ours = findings.meta.fingerprint
    theirs = memory_components(checkpoint, compression, at_question=at_question, stored=ours.components)
    for difference in ours.differences(Fingerprint(theirs)):
        what = f"the store and the checkpoint {checkpoint.path} differ in {difference}."
        findings.add(Problem("assets", what, "Name the checkpoint that the store was built with."))
