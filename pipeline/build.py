"""A build from beginning to end: checkpoint and corpus, plan, pool, driver, report."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save as save_tensors

from ..configs import BuildConfig
from ..errors import BuildIncompleteError, BuildInterruptedError, ConfigError, StoreError
from ..model.checkpoint import Checkpoint
from ..model.compressor import COMPRESSION_VERSION
from ..model.device import choose_device
from ..model.memory import Stage
from ..store import (
    CONNECTOR_ASSET,
    Fingerprint,
    Store,
    StoreMeta,
    build_lock,
    codec_by_name,
    done_shards,
    remove_orphans,
)
from .corpus import Corpus, open_corpus
from .driver import Driver, FailedShard
from .estimate import Estimate, estimate
from .interrupt import Interrupt
from .plan import CorpusWatch, Plan, plan_corpus, resume_plan
from .pool import InProcessPool, Pool
from .progress import BuildProgress
from .status import PLAN_ASSET
from .worker import WorkerSpec, passage_tokenizer

CONFIG_ASSET = "config.json"


@dataclass(frozen=True)
class BuildReport:
    """How a build ended.

    Attributes:
        uri: the store.
        shards: of the plan.
        done_before: shards that an earlier run had committed.
        committed: shards that this run committed.
        dropped: records left out on purpose, by reason.
        seconds: the run took.
    """

    uri: str
    shards: int
    done_before: int
    committed: int
    dropped: Mapping[str, int]
    seconds: float


@dataclass(frozen=True)
class Job:
    """Inputs that were opened and found to fit together; nothing is written yet."""

    paths: tuple[str, ...]
    checkpoint: Checkpoint
    uri: str
    config: BuildConfig
    stage: Stage
    device: str

    @property
    def fingerprint(self) -> Fingerprint:
        """Identity of everything that determines the memory of this build."""
        settings = {key: str(value) for key, value in self.config.compression.model_dump().items()}
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
        )


def build(
    corpus: Sequence[str | Path],
    checkpoint: str | Path,
    out: str | Path,
    config: BuildConfig | None = None,
    *,
    progress: BuildProgress | None = None,
) -> BuildReport:
    """Compress a corpus into a store, or go on with a build that ended before it was done.

    Args:
        corpus: files or folders, read in this order.
        checkpoint: a "pisco" checkpoint folder.
        out: the store: a folder that is new, empty, or holds this build's store; or an object-store URI.
        config: default: ``BuildConfig()``.
        progress: told of everything; default: silence.

    Raises:
        InputError: something given cannot be used; nothing that a rerun would trip over is left.
        StoreLockedError: another build is writing the store.
        BuildIncompleteError: shards were given up; the rest is committed.
        BuildInterruptedError: a signal came; what was finished is committed.
    """
    progress = progress or BuildProgress()
    try:
        return _build(prepare(corpus, checkpoint, out, config or BuildConfig()), progress)
    finally:
        progress.ended()


def dry_run(
    corpus: Sequence[str | Path],
    checkpoint: str | Path,
    out: str | Path,
    config: BuildConfig | None = None,
    *,
    progress: BuildProgress | None = None,
) -> Estimate:
    """Plan a build and estimate its size and time, writing nothing.

    Raises:
        InputError: as ``build`` would.
    """
    progress = progress or BuildProgress()
    try:
        job = prepare(corpus, checkpoint, out, config or BuildConfig())
        found = open_corpus(job.paths, job.config.corpus)
        plan = _resumed(job, Store.open(job.uri), found) if Store.exists(job.uri) else _plan(job, found, progress)
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
    )


def prepare(paths: Sequence[str | Path], checkpoint: str | Path, out: str | Path, config: BuildConfig) -> Job:
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
        from .ray_pool import require_reachable

        require_reachable(config.run.ray)
    # On a cluster its own devices count, not those of the machine that asks.
    device = config.run.device if config.run.ray else choose_device(config.run.device)
    return Job(tuple(map(str, paths)), opened, uri, config, stage, device)


def _build(job: Job, progress: BuildProgress) -> BuildReport:
    began = time.monotonic()
    failed: Sequence[FailedShard] = ()
    interrupted = False
    with ExitStack() as stack:
        store, plan, watch = _open(job, stack, progress)
        done = done_shards(store) if store else set()
        todo = [shard for shard in plan.shards if shard.number not in done]
        if todo:
            # Before the store is made: workers that cannot open what they are given leave no trace.
            pool = stack.enter_context(_open_pool(job, plan))
            if store is None:
                store = _create(job, plan, stack)
            with Interrupt() as interrupt:
                characters = {shard.number: shard.characters for shard in todo}
                progress.started(len(plan.shards), len(done), characters, pool.description)
                driver = Driver(store, pool, job.config.run, progress, lambda: watch.require_unchanged(plan.files))
                failed = driver.drive(todo, interrupt)
                interrupted = interrupt.requested
        assert store is not None
        # Under the lock, with no worker at work: what nobody refers to is what killed workers left behind.
        if _is_local(job.uri):
            remove_orphans(store)
        done_now = len(done_shards(store))
    planned = len(plan.shards)
    if interrupted and done_now < planned:
        raise BuildInterruptedError(
            f"Stopped with {done_now} of {planned} shards committed to {job.uri}. Run the same command again to go on."
        )
    if failed:
        raise BuildIncompleteError(
            f"{len(failed)} of {planned} shards failed {job.config.run.attempts} times and are not in "
            f"{job.uri}; the first, shard {failed[0].number}: {failed[0].error}. All others are committed; run the "
            "same command again to retry."
        )
    return BuildReport(job.uri, planned, len(done), done_now - len(done), plan.dropped, time.monotonic() - began)


def _open(job: Job, stack: ExitStack, progress: BuildProgress) -> tuple[Store | None, Plan, CorpusWatch]:
    """The store, locked, with its plan; or for one that is not there yet a new plan."""
    corpus = open_corpus(job.paths, job.config.corpus)
    watch = CorpusWatch(corpus.sources)
    if not Store.exists(job.uri):
        return None, _plan(job, corpus, progress), watch
    stack.enter_context(build_lock(job.uri))
    store = Store.open(job.uri)
    return store, _resumed(job, store, corpus), watch


def _create(job: Job, plan: Plan, stack: ExitStack) -> Store:
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
    }
    return Store.create(job.uri, meta=meta, assets=assets)


def _plan(job: Job, corpus: Corpus, progress: BuildProgress) -> Plan:
    progress.planning(len(corpus.sources))
    return plan_corpus(corpus, shard_documents=job.config.run.shard_documents, on_records=progress.planned_records)


def _resumed(job: Job, store: Store, corpus: Corpus) -> Plan:
    store.meta.fingerprint.require_equal(job.fingerprint, "this build")
    asked = {"stage": job.stage, "codec": job.config.store.codec, "keep": sorted(job.config.store.keep)}
    stored = {"stage": store.meta.stage, "codec": store.meta.codec, "keep": sorted(store.meta.optional_columns)}
    changed = [f"{key} {stored[key]!r}, not {asked[key]!r}" for key in asked if asked[key] != stored[key]]
    if changed:
        raise StoreError(
            f"The store at {store.uri} was begun with {', '.join(changed)}. Give the same, or name another store."
        )
    return resume_plan(Plan.from_json(store.asset(PLAN_ASSET)), corpus)


def _open_pool(job: Job, plan: Plan) -> Pool:
    run, spec = job.config.run, job.worker_spec(plan)
    several = run.workers is not None and run.workers > 1
    every_gpu = run.workers is None and job.device == "cuda" and torch.cuda.device_count() > 1
    if run.ray is None and not several and not every_gpu:
        return InProcessPool(spec)
    # Imported here: a build in this process needs no Ray and does not wait for it.
    from .ray_pool import RayPool

    return RayPool(spec, address=run.ray or "local", workers=run.workers)


def _is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")
