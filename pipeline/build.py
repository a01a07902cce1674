"""A build from top to bottom: prepare the job, choose a turn, begin it, drive its shards, report."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ..configs import BuildConfig
from ..interrupt import Interrupt
from ..store import (
    Store,
    build_lock,
    done_shards,
    forget_rejected,
    keep_index,
    plan_in_force,
    remove_orphans,
    resolve_uri,
    search_index,
)
from .driver import Driven, Driver
from .job import Job, prepare
from .planning.files import CorpusWatch
from .planning.plan import Plan, Shard
from .pools.crashes import CrashLog
from .pools.opening import open_pool
from .pools.pool import Pool
from .report import BuildReport, Taken, interrupted, report, require_complete
from .turns import Turn, Update, is_behind, next_turn
from .watch.progress import BuildProgress, Listeners, notified_of_the_end
from .watch.running import StatusFile


def build(
    corpus: Sequence[str | Path],
    checkpoint: str | Path,
    out: str | Path,
    config: BuildConfig | None = None,
    *,
    decoder_base: str | None = None,
    compressor_base: str | None = None,
    prune: bool = False,
    replan: bool = False,
    recompress: bool = False,
    progress: BuildProgress | None = None,
) -> BuildReport:
    """Make a store hold a corpus: compress the corpus, resume a build that did not finish, or update a finished store.

    An update compresses the documents that are new or have another text or title, and leaves all others as they are.

    Args:
        corpus: files or folders, read in this order.
        checkpoint: folder of a checkpoint.
        out: address of the store: a folder that is new, empty, or a store of this checkpoint; or an object-store URI.
        config: configuration; keys that were not set are those of the store, and the defaults for a new store.
        decoder_base: base decoder to use in place of the one that the checkpoint names.
        compressor_base: base of the compressor to use in place of the one that the checkpoint names.
        prune: True to delete the documents of the store that the corpus lacks.
        replan: True to give up an unfinished plan, and to update from what the store holds.
        recompress: True to compress most documents of a store again, or to read its corpus with other settings.
        progress: listener that is notified of everything; silent by default.

    Raises:
        InputError: an input cannot be used. Nothing is left that would disturb a rerun.
        StoreLockedError: another build is writing the store.
        BuildIncompleteError: shards or documents failed; everything else is committed.
        BuildInterruptedError: a signal came; what was finished is committed.
    """
    progress = Listeners(progress or BuildProgress(), StatusFile())
    with notified_of_the_end(progress), ExitStack() as lock:
        options = {"decoder_base": decoder_base, "compressor_base": compressor_base, "prune": prune, "replan": replan}
        job = prepare(corpus, checkpoint, out, config or BuildConfig(), **options, recompress=recompress)
        progress.began(resolve_uri(job.uri), job.config)
        job.notify(progress)
        return _Run(job, progress, lock).build()


class _Run:
    """One run of a build: the turns that make the store equal to the corpus."""

    def __init__(self, job: Job, progress: BuildProgress, lock: ExitStack):
        self._job = job
        self._progress = progress
        self._lock = lock
        self._began = time.monotonic()
        self._corpus = job.open_corpus(progress)
        self._watch = CorpusWatch(self._corpus.sources)

    def build(self) -> BuildReport:
        """Take turns until one of them is the last."""
        if Store.exists(self._job.uri):
            self._lock.enter_context(build_lock(self._job.uri))
        taken: list[Taken] = []
        while not taken or not taken[-1].turn.is_last(self._job):
            turn = next_turn(self._job, self._corpus, self._progress)
            if isinstance(turn, Update):
                turn.require_confirmed(self._job)
            # None: another process changed the store first, which no lock prevents in an object store.
            if done := self._take(turn):
                taken.append(done)
        return report(self._job.uri, taken, time.monotonic() - self._began)

    def _take(self, turn: Turn) -> Taken | None:
        """Begin a turn and drive its shards; return None if it could not begin."""
        job, plan, todo = self._job, turn.plan, turn.todo
        with ExitStack() as workers:
            pool = None
            if todo:
                # Workers start before anything is written: if they cannot open their input, they leave no trace.
                if not job.at_question:
                    self._progress.loading(job.device, job.config.run.compiled)
                pool = open_pool(job.worker_spec(plan), job.config.run, self._progress)
                workers.enter_context(pool)
            store = turn.begin(job, pool, self._progress, self._lock)
            if store is None:
                return None
            driven = Driven() if pool is None else self._drive(plan, todo, store, pool)
            if plan.first:
                forget_rejected(job.uri, plan.first)
        planned, missing = len(plan.shards), len(plan.missing(done_shards(store)))
        if not missing:
            # The process that did the last shard may have died before it could delete its log.
            CrashLog(job.uri).delete()
        stopped = driven.interrupted and (missing or is_behind(job, store.refresh(), plan))
        if job.config.store.index and not stopped:
            self._index(store)
        # The lock is held and no worker works: files that nothing refers to were left by workers that died.
        remove_orphans(store)
        if stopped:
            raise interrupted(job.uri, planned - missing, planned)
        require_complete(job.uri, driven, planned)
        return Taken(turn, done_before=planned - len(todo), committed=len(todo) - missing)

    def _index(self, store: Store) -> None:
        """Bring the search index in step. It keeps settings that are known here: `pisco-index index` changes them."""
        found = search_index(store.refresh().table)
        settings = None if found and found.settings else self._job.config.search
        keep_index(store.uri, settings, progress=self._progress.indexing)

    def _drive(self, plan: Plan, todo: Sequence[Shard], store: Store, pool: Pool) -> Driven:
        """Do the shards until each is committed or given up, or a signal comes."""
        with Interrupt() as interrupt:
            before, characters = len(plan.shards) - len(todo), {shard.number: shard.characters for shard in todo}
            self._progress.started(len(plan.shards), before, characters, pool.description)
            unchanged = partial(self._watch.require_unchanged, plan.files)
            driver = Driver(store, pool, self._job.config.run, self._progress, unchanged, plan_in_force(store.table))
            return driver.drive(todo, interrupt)
