"""A build from beginning to end: checkpoint and corpus, plan, pool, driver, report."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from ..configs import BuildConfig
from ..corpus import Corpus, open_corpus
from ..errors import (
    BuildIncompleteError,
    BuildInterruptedError,
    ConfigError,
    CorpusError,
    PlanMismatchError,
    StoreError,
    some,
)
from ..model.compressor import COMPRESSION_VERSION
from ..model.device import choose_device
from ..model.families.pisco import Checkpoint
from ..model.memory import Stage
from ..store import (
    CONNECTOR_ASSET,
    Contents,
    Fingerprint,
    Store,
    StoreMeta,
    begin_update,
    build_lock,
    codec_by_name,
    done_shards,
    fallbacks,
    forget_rejected,
    is_altered,
    is_calibrated,
    plan_in_force,
    remove_orphans,
    resolve_uri,
)
from .calibrate import calibrate
from .driver import Driven, Driver
from .estimate import Estimate, estimate
from .interrupt import Interrupt
from .planning.plan import Changes, CorpusWatch, Plan, plan_corpus, resume_plan
from .planning.update import plan_update
from .pools.crashes import CrashLog
from .pools.pool import InProcessPool, Pool
from .watch.progress import BuildProgress, Listeners, told_of_its_end
from .watch.running import StatusFile
from .watch.totals import CONFIG_ASSET, PLAN_ASSET, current_plan
from .worker import WorkerSpec, passage_tokenizer


@dataclass(frozen=True)
class BuildReport:
    """How a build ended.

    Attributes:
        uri: the store.
        shards: of the plan.
        done_before: shards that an earlier run had committed.
        committed: shards that this run committed.
        dropped: records left out on purpose, by reason.
        rejected: records left out because they cannot be used, by reason; the store's table ``rejected`` names them.
        changes: what the update that this run made, or went on with, changed; None where it made none.
        gone: documents of the store that are not in the corpus, and stay there without ``prune``.
        fallbacks: documents that lost too much in the store's codec and were written by another, by that one's name;
            all runs together, so that one that was replaced counts again.
        seconds: the run took.
    """

    uri: str
    shards: int
    done_before: int
    committed: int
    dropped: Mapping[str, int]
    rejected: Mapping[str, int]
    changes: Changes | None
    gone: int
    fallbacks: Mapping[str, int]
    seconds: float


@dataclass(frozen=True)
class _Turn:
    """A plan to carry out: of a new store, of an update that has to begin first, or one that is in force already.

    Attributes:
        plan: whose shards are to be done.
        store: as it was at planning; None for a new one.
        gone: addresses of the rows that the beginning of an update deletes, ``(k,)`` uint64; None where none begins.
    """

    plan: Plan
    store: Store | None
    gone: np.ndarray | None = None


@dataclass(frozen=True)
class Job:
    """Inputs that were opened and found to fit together; nothing is written yet."""

    paths: tuple[str, ...]
    checkpoint: Checkpoint
    uri: str
    config: BuildConfig
    stage: Stage
    device: str
    prune: bool = False
    replan: bool = False

    @property
    def fingerprint(self) -> Fingerprint:
        """Identity of everything that determines the memory of this build."""
        settings = self.config.compression.components
        return Fingerprint({**self.checkpoint.identity, **settings, "compression": COMPRESSION_VERSION})

    @property
    def dim(self) -> int:
        """Width of the vectors to store."""
        connector = self.checkpoint.connector
        return connector.in_dim if self.stage == "hidden" else connector.out_dim

    def worker_spec(self, plan: Plan) -> WorkerSpec:
        """What a worker needs to do this job's shards."""
        return WorkerSpec(
            checkpoint=str(self.checkpoint.path.resolve()),
            compression=self.config.compression,
            stage=self.stage,
            codec=self.config.store.codec,
            keep=self.config.store.keep,
            uri=self.uri,
            sources=plan.sources,
            device=self.device,
            token_budget=self.config.run.token_budget,
            compiled=self.config.run.compiled,
            store_patience_s=self.config.run.store_patience_seconds,
        )


def build(
    corpus: Sequence[str | Path],
    checkpoint: str | Path,
    out: str | Path,
    config: BuildConfig | None = None,
    *,
    prune: bool = False,
    replan: bool = False,
    progress: BuildProgress | None = None,
) -> BuildReport:
    """Make a store hold a corpus: compress it, go on with a build that ended before it was done, or update it.

    Over a store whose build is finished, the corpus is compared with it: documents that are new, or have another text
    or title, are compressed, all others stay as they are.

    Args:
        corpus: files or folders, read in this order.
        checkpoint: a "pisco" checkpoint folder.
        out: the store: a folder that is new, empty, or holds a store of this checkpoint and configuration; or an
            object-store URI.
        config: default: ``BuildConfig()``.
        prune: delete the documents of the store that are not in the corpus.
        replan: give up what is left of a build that is not finished, and update from what it stored.
        progress: told of everything; default: silence.

    Raises:
        InputError: something given cannot be used; nothing that a rerun would trip over is left.
        StoreLockedError: another build is writing the store.
        BuildIncompleteError: shards were given up; the rest is committed.
        BuildInterruptedError: a signal came; what was finished is committed.
    """
    progress = Listeners(progress or BuildProgress(), StatusFile())
    with told_of_its_end(progress):
        job = prepare(corpus, checkpoint, out, config or BuildConfig(), prune=prune, replan=replan)
        progress.began(resolve_uri(job.uri), job.config)
        return _build(job, progress)


def dry_run(
    corpus: Sequence[str | Path],
    checkpoint: str | Path,
    out: str | Path,
    config: BuildConfig | None = None,
    *,
    prune: bool = False,
    replan: bool = False,
    progress: BuildProgress | None = None,
) -> Estimate:
    """Plan a build or an update and estimate its size and time, writing nothing. The arguments are those of ``build``.

    Raises:
        InputError: as ``build`` would.
    """
    progress = progress or BuildProgress()
    try:
        job = prepare(corpus, checkpoint, out, config or BuildConfig(), prune=prune, replan=replan)
        plan = _next_turn(job, open_corpus(job.paths, job.config.corpus), progress).plan
    finally:
        progress.ended()
    run = job.config.run
    # The probe runs here, wherever the build will.
    device = choose_device(run.device)
    workers = run.workers or (max(torch.cuda.device_count(), 1) if device.startswith("cuda") else 1)
    return estimate(
        plan,
        job.checkpoint,
        job.config.compression,
        stage=job.stage,
        codec=job.config.store.codec,
        device=device,
        workers=workers,
        token_budget=run.token_budget,
        compiled=run.compiled,
    )


def prepare(
    paths: Sequence[str | Path],
    checkpoint: str | Path,
    out: str | Path,
    config: BuildConfig,
    *,
    prune: bool = False,
    replan: bool = False,
) -> Job:
    """Open what a build is given and check that it fits together, without writing anything.

    Raises:
        InputError: if it does not.
    """
    if isinstance(paths, (str, Path)):
        raise TypeError(f"build takes a list of corpus paths, not the one path {str(paths)!r}")
    opened = Checkpoint(checkpoint)
    connector = opened.connector
    stage = config.store.stage
    if stage == "auto":
        stage = "hidden" if connector.in_dim < connector.out_dim else "embedding"
    codec_by_name(config.store.codec)
    try:
        passage_tokenizer(opened, config.compression)
    except ValueError as error:
        raise ConfigError(f"compression: {error}.") from None
    uri = str(out)
    if not uri:
        raise ConfigError("The store's place is empty: name a folder or an object-store URI (--out).")
    if not Store.exists(uri):
        Store.require_free(uri)
    if config.run.ray:
        from .pools.ray_pool import require_reachable

        require_reachable(config.run.ray)
    # On a cluster its own devices count, not those of the machine that asks.
    device = config.run.device if config.run.ray else choose_device(config.run.device)
    return Job(tuple(map(str, paths)), opened, uri, config, stage, device, prune, replan)


def _build(job: Job, progress: BuildProgress) -> BuildReport:
    began = time.monotonic()
    shards = done_before = committed = 0
    changes: Changes | None = None
    with ExitStack() as stack:
        corpus = open_corpus(job.paths, job.config.corpus)
        watch = CorpusWatch(corpus.sources)
        if Store.exists(job.uri):
            stack.enter_context(build_lock(job.uri))
        while True:
            turn = _next_turn(job, corpus, progress)
            counts = _take_turn(job, turn, watch, progress, stack)
            if counts is None:
                # Somebody else changed the store, which is possible where there is no lock.
                continue
            shards += len(turn.plan.shards)
            done_before += counts[0]
            committed += counts[1]
            is_resumed = turn.store is not None and turn.gone is None
            if counts[1] or not is_resumed:
                changes = turn.plan.changes
            # What was resumed may have been planned without prune, or before documents were deleted by id.
            if not (is_resumed and _is_behind(job, Store.open(job.uri), turn.plan)):
                break
    return BuildReport(
        uri=job.uri,
        shards=shards,
        done_before=done_before,
        committed=committed,
        dropped=turn.plan.dropped,
        rejected=turn.plan.rejected,
        changes=changes,
        gone=turn.plan.changes.gone if turn.plan.changes else 0,
        fallbacks=fallbacks(job.uri),
        seconds=time.monotonic() - began,
    )


def _next_turn(job: Job, corpus: Corpus, progress: BuildProgress) -> _Turn:
    """What is to be done next; it only reads."""
    if not Store.exists(job.uri):
        progress.planning(len(corpus.sources))
        documents = job.config.run.shard_documents
        return _Turn(plan_corpus(corpus, shard_documents=documents, on_records=progress.planned_records), None)
    store = Store.open(job.uri)
    _require_same_settings(job, store)
    former = current_plan(store)
    if not job.replan:
        if former.missing(done_shards(store)):
            return _Turn(resume_plan(former, corpus), store)
        if not _is_behind(job, store, former):
            with suppress(PlanMismatchError):
                return _Turn(resume_plan(former, corpus), store)
    progress.planning(len(corpus.sources))
    contents = Contents.of(store)
    plan = plan_update(
        corpus,
        contents,
        job.config.compression,
        keeps_title="title" in store.meta.optional_columns,
        prune=job.prune,
        first=former.next,
        shard_documents=job.config.run.shard_documents,
        on_records=progress.planned_records,
    )
    if job.prune and plan.rejected and contents.unseen.size:
        raise CorpusError(
            f"--prune would delete {contents.unseen.size:,} documents, and some of them may be among the "
            f"{sum(plan.rejected.values()):,} records of the corpus that cannot be used: a broken record does not say "
            "whose it is. Mend the corpus, or leave out --prune."
        )
    return _Turn(plan, store, contents.unseen if job.prune else np.empty(0, np.uint64))


def _is_behind(job: Job, store: Store, plan: Plan) -> bool:
    """Whether a store differs from the corpus of its plan, though all shards are done."""
    keeps_gone = plan.changes is not None and plan.changes.gone > 0
    return is_altered(store.table) or (job.prune and keeps_gone)


def _take_turn(
    job: Job, turn: _Turn, watch: CorpusWatch, progress: BuildProgress, stack: ExitStack
) -> tuple[int, int] | None:
    """Do the shards of a plan.

    Returns:
        Shards that were done before, and that were committed now; None if an update could not begin.
    """
    plan = turn.plan
    driven = Driven()
    interrupted = False
    done = done_shards(turn.store) if turn.store is not None else set()
    todo = plan.missing(done)
    before = len(plan.shards) - len(todo)
    with ExitStack() as workers:
        # Before anything is written: workers that cannot open what they are given leave no trace.
        if todo:
            progress.loading(job.device, job.config.run.compiled)
        pool = workers.enter_context(_open_pool(job, plan, progress)) if todo else None
        if turn.store is None:
            store = _create(job, plan, stack, _calibrated(job, plan, pool, progress) if pool is not None else {})
        elif turn.gone is None:
            store = turn.store
        elif begin_update(turn.store, plan.to_json(), turn.gone):
            store = turn.store.refresh()
        else:
            return None
        if pool is not None:
            with Interrupt() as interrupt:
                characters = {shard.number: shard.characters for shard in todo}
                progress.started(len(plan.shards), before, characters, pool.description)
                driver = Driver(
                    store,
                    pool,
                    job.config.run,
                    progress,
                    before_commit=lambda: watch.require_unchanged(plan.files),
                    plan=plan_in_force(store.table),
                    crashes=CrashLog(job.uri) if isinstance(pool, InProcessPool) else None,
                )
                driven = driver.drive(todo, interrupt)
                interrupted = interrupt.requested
        if plan.first:
            forget_rejected(job.uri, plan.first)
        # Under the lock, with no worker at work: what nobody refers to is what killed workers left behind.
        remove_orphans(store)
    planned = len(plan.shards)
    done_now = planned - len(plan.missing(done_shards(store)))
    if done_now == planned:
        # The process that did the last shard may have died before it could.
        CrashLog(job.uri).forget()
    if interrupted and (done_now < planned or _is_behind(job, store.refresh(), plan)):
        raise BuildInterruptedError(
            f"Stopped with {done_now} of {planned} shards committed to {job.uri}. Run the same command again to go on."
        )
    _require_complete(job.uri, driven, planned)
    return before, done_now - before


def _require_complete(uri: str, driven: Driven, planned: int) -> None:
    failed, quarantined = driven.failed, driven.quarantined
    problems = []
    if failed:
        problems.append(
            f"{len(failed)} of {planned} shards failed, also when they were tried alone, and are not in {uri}; the "
            f"first, shard {failed[0].number}: {failed[0].error}. All others are committed; run the same command again "
            "to retry."
        )
    if quarantined:
        named = some([document.doc_id for document in quarantined])
        problems.append(
            f"{len(quarantined):,} documents could not be compressed and are stored with their error in place of "
            f"memory: {named}; the first: {quarantined[0].error}. All others are in {uri}."
        )
    if problems:
        raise BuildIncompleteError(" ".join(problems))


def _calibrated(job: Job, plan: Plan, pool: Pool, progress: BuildProgress) -> dict[str, bytes]:
    """The calibration of the job's codec as an asset, if it has one."""
    codec = codec_by_name(job.config.store.codec)
    if not is_calibrated(codec):
        return {}
    progress.calibrating(codec.name)
    crashes = CrashLog(job.uri) if isinstance(pool, InProcessPool) else None
    try:
        calibration, prediction = calibrate(codec, pool, plan, job.dim, crashes)
    finally:
        if crashes is not None:
            crashes.close()
    assert calibration is not None
    progress.calibrated(prediction)
    return {calibration.asset: calibration.to_bytes()}


def _create(job: Job, plan: Plan, stack: ExitStack, calibration: Mapping[str, bytes]) -> Store:
    stack.enter_context(build_lock(job.uri))
    checkpoint = job.checkpoint
    meta = StoreMeta(
        fingerprint=job.fingerprint,
        stage=job.stage,
        dim=job.dim,
        codec=job.config.store.codec,
        checkpoint={"path": str(checkpoint.path), "rate": checkpoint.rate, "decoder": checkpoint.decoder_base},
        package_version=version("pisco-index"),
        optional_columns=job.config.store.keep,
    )
    assets = {
        CONNECTOR_ASSET: save_tensors(checkpoint.connector.state()),
        PLAN_ASSET: plan.to_json(),
        CONFIG_ASSET: job.config.model_dump_json().encode(),
        **calibration,
    }
    return Store.create(job.uri, meta=meta, assets=assets)


def _require_same_settings(job: Job, store: Store) -> None:
    store.meta.fingerprint.require_equal(job.fingerprint, "this build")
    asked = {"stage": job.stage, "codec": job.config.store.codec, "keep": sorted(job.config.store.keep)}
    stored = {"stage": store.meta.stage, "codec": store.meta.codec, "keep": sorted(store.meta.optional_columns)}
    changed = [f"{key} {stored[key]!r}, not {asked[key]!r}" for key in asked if asked[key] != stored[key]]
    if changed:
        raise StoreError(
            f"The store at {store.uri} was begun with {', '.join(changed)}. Give the same, or name another store."
        )


def _open_pool(job: Job, plan: Plan, progress: BuildProgress) -> Pool:
    run, spec = job.config.run, job.worker_spec(plan)
    several = run.workers is not None and run.workers > 1
    every_gpu = run.workers is None and job.device == "cuda" and torch.cuda.device_count() > 1
    if run.ray is None and not several and not every_gpu:
        return InProcessPool(spec, hang_s=run.hang_seconds, on_lost=progress.lost_worker)
    # Imported here: a build in this process needs no Ray and does not wait for it.
    from .pools.ray_pool import RayPool

    return RayPool(
        spec,
        address=run.ray or "local",
        workers=run.workers,
        hang_s=run.hang_seconds,
        on_lost=progress.lost_worker,
    )
