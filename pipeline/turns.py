"""The turns of a build: create a store, resume its plan, or update it. ``next_turn`` chooses one."""

from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from safetensors.torch import save as save_tensors

from ..configs import CorpusConfig
from ..corpus import Corpus, open_corpus, reading_options, taken_for
from ..errors import ConfigError, CorpusError, InputError, PlanMismatchError
from ..store import (
    CONNECTOR_ASSET,
    CONTENTS,
    Contents,
    Store,
    begin_update,
    build_lock,
    codec_by_name,
    done_shards,
    is_altered,
    is_calibrated,
    kept_out,
    known_records,
    records_asset,
)
from .calibrate import calibrate
from .decoder_reader import why_unread
from .job import Job
from .planning.comparison import Comparison
from .planning.files import resume_plan
from .planning.plan import Plan, Shard
from .planning.planner import plan_corpus
from .planning.stored import CONFIG_ASSET, PLAN_ASSET, current_plan
from .pools.pool import Pool
from .watch.progress import BuildProgress

# Smallest number of documents that an update compresses again only if it is confirmed: fewer cost seconds.
CONFIRMED_DOCUMENTS = 20


@dataclass(frozen=True)
class Create:
    """Create a store and fill it.

    Attributes:
        plan: plan of the whole corpus.
    """

    plan: Plan

    @property
    def todo(self) -> tuple[Shard, ...]:
        """All shards of the plan."""
        return self.plan.shards

    def begin(self, job: Job, pool: Pool | None, progress: BuildProgress, lock: ExitStack) -> Store:
        """Fit the codec to a sample of the corpus, lock the store's address and create the store there."""
        # The plan of a new store has at least one shard, and so the pool is open.
        assert pool is not None
        calibration = self._calibration(job, pool, progress)
        lock.enter_context(build_lock(job.uri))
        meta, connector = job.meta, job.checkpoint.connector
        assets = {
            **({CONNECTOR_ASSET: save_tensors(connector.state())} if connector and meta.has_connector else {}),
            PLAN_ASSET: self.plan.to_json(),
            **({records_asset(None): self.plan.known.to_bytes()} if self.plan.known else {}),
            CONFIG_ASSET: job.config.model_dump_json().encode(),
            **calibration,
        }
        searched = (CONTENTS,) if job.config.store.index else ()
        return Store.create(job.uri, meta=meta, assets=assets, further_columns=searched)

    def is_last(self, job: Job) -> bool:  # noqa: ARG002
        """Return True: the store equals the corpus after this turn."""
        return True

    def _calibration(self, job: Job, pool: Pool, progress: BuildProgress) -> dict[str, bytes]:
        """Return the calibration of the job's codec as an asset, if the codec has one."""
        codec = codec_by_name(job.config.store.codec)
        if not is_calibrated(codec):
            return {}
        progress.calibrating(codec.name)
        calibration, prediction = calibrate(
            codec, pool, self.plan, job.dim, why_unread(job.checkpoint, job.config.store)
        )
        assert calibration is not None
        progress.calibrated(prediction)
        return {calibration.asset: calibration.to_bytes()}


@dataclass(frozen=True)
class Resume:
    """Do what is left of the plan in force, which may be nothing.

    Attributes:
        plan: plan in force, with the present paths of the corpus.
        store: store at the version at which the turn was chosen.
    """

    plan: Plan
    store: Store

    @property
    def todo(self) -> tuple[Shard, ...]:
        """Shards of the plan that are not committed yet."""
        return self.plan.missing(done_shards(self.store))

    def begin(self, job: Job, pool: Pool | None, progress: BuildProgress, lock: ExitStack) -> Store:  # noqa: ARG002
        """Return the store as it is: its plan has begun."""
        return self.store

    def is_last(self, job: Job) -> bool:
        """Return True unless the plan was made without ``prune``, or documents were deleted by id since."""
        return not is_behind(job, Store.open(job.uri), self.plan)


@dataclass(frozen=True)
class Update:
    """Replace a finished plan, or one that is given up, by a plan of what differs between the store and the corpus.

    Attributes:
        plan: plan of the new and changed documents.
        store: store at the version that the corpus was compared with.
        gone: addresses of the rows to delete, ``(k,)`` uint64.
    """

    plan: Plan
    store: Store
    gone: np.ndarray

    @property
    def todo(self) -> tuple[Shard, ...]:
        """All shards of the plan, which may have none."""
        return self.plan.shards

    def begin(self, job: Job, pool: Pool | None, progress: BuildProgress, lock: ExitStack) -> Store | None:  # noqa: ARG002
        """Delete the rows that are gone and put the plan in force.

        Returns:
            The store with its new plan; None if another process changed the store since it was compared.
        """
        records = self.plan.known.to_bytes() if self.plan.known else None
        if not begin_update(self.store, self.plan.to_json(), self.gone, records):
            return None
        return self.store.refresh()

    def is_last(self, job: Job) -> bool:  # noqa: ARG002
        """Return True: the store equals the corpus after this turn."""
        return True

    @property
    def replaced(self) -> int:
        """Number of documents to compress that take the place of documents in the store, under the same id or not."""
        assert self.plan.changes is not None
        return self.plan.changes.changed + min(self.plan.changes.new, self.plan.changes.pruned)

    def require_confirmed(self, job: Job) -> None:
        """Check that the update leaves most of the store as it is, unless ``job.recompress`` confirms it.

        Raises:
            CorpusError: more than half of the store's documents would be compressed again.
        """
        if not job.recompress and self.needs_confirmation:
            raise CorpusError(
                f"this update would compress {self.replaced:,} documents in place of most of the {self._stored:,} in "
                f"{job.uri}, which has other texts or titles for them, or other ids. If that is not meant, check the "
                "corpus and its settings (--title-field, --text-field, --id-field, --passage-words, --preset); if it "
                "is, give --recompress."
            )

    @property
    def needs_confirmation(self) -> bool:
        """True if more than half of the store's documents would be replaced, and more than a few."""
        return self.replaced >= CONFIRMED_DOCUMENTS and 2 * self.replaced > self._stored

    @property
    def _stored(self) -> int:
        changes = self.plan.changes
        assert changes is not None
        return changes.changed + changes.same + changes.gone + changes.pruned


Turn = Create | Resume | Update


def next_turn(job: Job, corpus: Corpus, progress: BuildProgress) -> Turn:
    """Choose what to do next. This only reads.

    Raises:
        InputError: corpus, store and settings do not fit together.
    """
    if not Store.exists(job.uri):
        progress.planning(len(corpus.sources))
        run = job.config.run
        plan = plan_corpus(
            corpus,
            shard_documents=run.shard_documents,
            on_records=progress.planned_records,
            processes=run.planning_processes,
        )
        progress.recognised(taken_for(plan.sources))
        return Create(plan)
    store = Store.open(job.uri)
    job.require_same_settings(store)
    former = current_plan(store)
    if not job.replan:
        if former.missing(done_shards(store)):
            return Resume(resume_plan(former, corpus), store)
        if not is_behind(job, store, former):
            # A corpus that is not the planned one is compared with the store.
            with suppress(PlanMismatchError):
                return Resume(resume_plan(former, corpus), store)
    _require_kept_settings(job, corpus)
    progress.planning(len(corpus.sources))
    return _plan_update(job, corpus, store, former, progress)


def is_behind(job: Job, store: Store, plan: Plan) -> bool:
    """Return True if a store differs from the corpus of its plan even when all shards are done."""
    keeps_gone = plan.changes is not None and plan.changes.gone > 0
    return is_altered(store.table) or (job.prune and keeps_gone)


def _plan_update(job: Job, corpus: Corpus, store: Store, former: Plan, progress: BuildProgress) -> Update:
    contents = Contents.of(store)
    unwanted = kept_out(store.uri)
    # Rows of a plan that was finished after its documents were deleted for good.
    unwanted_rows = contents.rows_of(unwanted)
    keeps_title = "title" in store.meta.optional_columns
    # The records of an unfinished plan may have other documents in the store.
    known = None if former.missing(done_shards(store)) else known_records(store)
    plan = plan_corpus(
        corpus,
        shard_documents=job.config.run.shard_documents,
        first=former.next,
        comparison=Comparison(contents, job.config.compression, keeps_title, job.prune, unwanted, known),
        on_records=progress.planned_records,
        processes=job.config.run.planning_processes,
    )
    progress.recognised(taken_for(plan.sources))
    gone = contents.unseen if job.prune else np.empty(0, np.uint64)
    if plan.rejected and gone.size:
        raise CorpusError(
            f"--prune would delete {gone.size:,} documents, and some of them may be among the "
            f"{sum(plan.rejected.values()):,} records of the corpus that cannot be used: a broken record does not say "
            "which document it is. Fix the corpus, or leave out --prune."
        )
    plan = replace(plan, settings=job.config.corpus.model_dump(mode="json"))
    return Update(plan, store, np.concatenate([unwanted_rows, gone]))


def _require_kept_settings(job: Job, corpus: Corpus) -> None:
    """Check that an update reads the corpus with the settings of the store, unless ``job.recompress`` confirms others.

    Raises:
        ConfigError: a setting that was given makes other documents of the corpus.
    """
    if job.kept is None or job.recompress:
        return
    given = job.config.corpus
    # Skipping errors changes no document.
    keys = CorpusConfig.model_fields.keys() - {"on_error"}
    changed = {key: (before, now) for key in keys if (before := getattr(job.kept, key)) != (now := getattr(given, key))}
    if changed and _readings(job, job.kept) != _options(corpus):
        differences = ", ".join(f"{key} {before!r}, not {now!r}" for key, (before, now) in sorted(changed.items()))
        raise ConfigError(
            f"the store at {job.uri} was built from a corpus read with {differences}. Leave these settings out to read "
            "it in the same way, or confirm the new ones with --recompress: the build then compresses again what "
            "differs."
        )


def _readings(job: Job, settings: CorpusConfig) -> list[dict[str, Any]] | None:
    """Return how the settings read each file of the corpus; None if they cannot."""
    try:
        return _options(open_corpus(job.paths, settings))
    except InputError:
        return None


def _options(corpus: Corpus) -> list[dict[str, Any]]:
    return [reading_options(source.spec) | {"on_error": None} for source in corpus.sources]
