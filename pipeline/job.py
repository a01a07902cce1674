"""A job: the inputs of a build, opened and checked for consistency."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..configs import BuildConfig, CorpusConfig
from ..corpus import Corpus, open_corpus
from ..errors import ConfigError, StoreError
from ..model.device import choose_device
from ..model.families import Checkpoint, open_checkpoint
from ..model.identity import memory_components
from ..model.memory import Stage
from ..places import local_path
from ..store import Fingerprint, Store, StoreMeta, codec_by_name, has_contents, resolve_uri
from .planning.plan import Plan
from .planning.stored import kept_config, with_kept_settings
from .pools.cluster import require_reachable
from .watch.progress import BuildProgress
from .worker import WorkerSpec


@dataclass(frozen=True)
class Job:
    """The inputs of a build. Nothing is written yet.

    Attributes:
        paths: files and folders of the corpus.
        checkpoint: checkpoint to compress with.
        uri: address of the store.
        config: configuration of the build.
        stage: stage at which memory is stored.
        device: device of the workers.
        at_question: True if memory is made with each question; the store then holds texts and no memory.
        decoder_base: base decoder that the user named, for every process that opens the checkpoint.
        compressor_base: base of the compressor that the user named.
        prune: True to delete documents of the store that the corpus lacks.
        replan: True to give up an unfinished plan, and to update from what the store holds.
        recompress: True to compress most documents of a store again, or to read its corpus with other settings.
        kept: corpus settings of the store; None for a new store, or one that keeps no settings.
        taken: settings of the store that were not given and differ from the defaults, by ``section.key``.
    """

    paths: tuple[str, ...]
    checkpoint: Checkpoint
    uri: str
    config: BuildConfig
    stage: Stage
    device: str
    at_question: bool = False
    decoder_base: str | None = None
    compressor_base: str | None = None
    prune: bool = False
    replan: bool = False
    recompress: bool = False
    kept: CorpusConfig | None = None
    taken: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Width of the vectors to store."""
        return self.checkpoint.memory_dim(self.stage)

    @property
    def meta(self) -> StoreMeta:
        """Description of the store that this job creates."""
        checkpoint = self.checkpoint
        described = {"path": str(checkpoint.path), "rate": checkpoint.rate, "decoder": checkpoint.decoder_base}
        if checkpoint.connector is None:
            described["connector"] = False
        return StoreMeta(
            fingerprint=Fingerprint(self._components()),
            stage=self.stage,
            dim=self.dim,
            codec=self.config.store.codec,
            checkpoint=described,
            package_version=version("pisco-index"),
            optional_columns=self.config.store.keep,
        )

    def _components(self, stored: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the components of this job's fingerprint, in a store's form if one is given."""
        return memory_components(self.checkpoint, self.config.compression, at_question=self.at_question, stored=stored)

    @property
    def is_searchable(self) -> bool:
        """True if the job writes the column that is searched: a store that exists has it or has it not."""
        if Store.exists(self.uri):
            return has_contents(Store.open(self.uri).table)
        return self.config.store.index

    def notify(self, progress: BuildProgress) -> None:
        """Notify a listener of settings that the user did not give."""
        progress.took_settings(self.taken)
        if self.at_question:
            progress.keeping_text(self.config.store.keep)

    def open_corpus(self, progress: BuildProgress) -> Corpus:
        """Open the corpus, and notify a listener of files in it that are not read.

        Raises:
            CorpusError: a file cannot be read.
        """
        corpus = open_corpus(self.paths, self.config.corpus)
        progress.left_out(corpus.left_out)
        return corpus

    def require_same_settings(self, store: Store) -> None:
        """Check that an existing store was begun with the settings of this job.

        Raises:
            FingerprintMismatchError: its memory was made by another checkpoint or with another compression.
            StoreError: its stage, codec or kept fields differ.
        """
        stored = store.meta.fingerprint
        stored.require_equal(Fingerprint(self._components(stored.components)), "this build")
        asked = {"stage": self.stage, "codec": self.config.store.codec, "keep": sorted(self.config.store.keep)}
        stored = {"stage": store.meta.stage, "codec": store.meta.codec, "keep": sorted(store.meta.optional_columns)}
        changed = [f"{key} {stored[key]!r}, not {asked[key]!r}" for key in asked if asked[key] != stored[key]]
        if changed:
            raise StoreError(
                f"the store at {store.uri} was begun with {', '.join(changed)}. Give the same settings, or name "
                "another store."
            )

    def worker_spec(self, plan: Plan) -> WorkerSpec:
        """Return everything that a worker requires to do the shards of a plan."""
        return WorkerSpec(
            checkpoint=str(self.checkpoint.path.resolve()),
            compression=self.config.compression,
            stage=self.stage,
            codec=self.config.store.codec,
            keep=self.config.store.keep,
            uri=resolve_uri(self.uri),
            sources=plan.sources,
            device=self.device,
            token_budget=self.config.run.token_budget,
            compiled=self.config.run.compiled,
            attention=self.config.run.attention,
            at_question=self.at_question,
            decoder_base=self.decoder_base,
            compressor_base=self.compressor_base,
            store_patience_s=self.config.run.store_patience_seconds,
            reader_processes=self.config.run.reader_processes,
            hang_s=self.config.run.hang_seconds,
        )


def prepare(
    paths: Sequence[str | Path],
    checkpoint: str | Path,
    out: str | Path,
    config: BuildConfig,
    *,
    decoder_base: str | None = None,
    compressor_base: str | None = None,
    prune: bool = False,
    replan: bool = False,
    recompress: bool = False,
) -> Job:
    """Open the inputs of a build and check that they fit together, without writing anything.

    Settings that are not given are those of the store, if it exists.

    Raises:
        InputError: an input cannot be used, or two of them do not fit together.
    """
    if isinstance(paths, (str, Path)):
        raise TypeError(f"build takes a list of corpus paths, not the one path {str(paths)!r}")
    uri = str(out)
    if not uri:
        raise ConfigError("the store has no address. Name a folder or an object-store URI (--out).")
    kept, taken = None, {}
    if not Store.exists(uri):
        Store.require_free(uri)
    elif kept := kept_config(Store.open(uri)):
        config, taken = with_kept_settings(config, kept)
    bases = _from_anywhere(decoder_base), _from_anywhere(compressor_base)
    opened = open_checkpoint(checkpoint, decoder_base=bases[0], compressor_base=bases[1])
    stage, at_question = _stage(opened, config.store.stage)
    if at_question:
        config = _keeping_text(config)
    codec_by_name(config.store.codec)
    opened.passage_tokenizer(config.compression)
    if (config.run.ray or (config.run.workers or 1) > 1) and ":" in config.run.device:
        raise ConfigError(
            f"device {config.run.device!r} is one GPU, but several workers take one each. Leave out its number, or the "
            "workers."
        )
    if config.run.ray:
        require_reachable(config.run.ray)
    # On a cluster the devices of its nodes count, not those of this machine.
    device = config.run.device if config.run.ray else choose_device(config.run.device)
    return Job(
        *(tuple(map(str, paths)), opened, uri, config, stage, device, at_question, *bases),
        prune=prune,
        replan=replan,
        recompress=recompress,
        kept=kept.corpus if kept else None,
        taken=taken,
    )


def _from_anywhere(base: str | None) -> str | None:
    """Return the name or folder of a base model as workers in any working directory find it."""
    if base is None:
        return None
    path = local_path(base, ConfigError)
    return str(path.resolve()) if path.is_dir() else base


def _stage(checkpoint: Checkpoint, asked: str) -> tuple[Stage, bool]:
    """Return the stage of memory, and True if memory is made with each question.

    Raises:
        ConfigError: the checkpoint cannot give memory at the stage that was asked for.
    """
    if asked == "question" or (asked == "auto" and checkpoint.is_query_dependent):
        return checkpoint.default_stage, True
    if checkpoint.is_query_dependent:
        raise ConfigError(
            f"{checkpoint.path}: memory of this checkpoint depends on the question, so that no stage {asked!r} can be "
            "stored. Leave the stage out; the store then keeps the text, and memory is made at question time."
        )
    stages = {each: each for each in checkpoint.stages} | {"auto": checkpoint.default_stage}
    if asked not in stages:
        raise ConfigError(
            f"{checkpoint.path}: a checkpoint of family {checkpoint.family} has memory at stage "
            f"{' or '.join(checkpoint.stages)} only, not {asked!r}. Leave the stage out (--stage)."
        )
    return stages[asked], False


def _keeping_text(config: BuildConfig) -> BuildConfig:
    """Return the configuration of a store that holds what memory is made from at question time."""
    needed = ("title", "text") if "{title}" in config.compression.template else ("text",)
    keep = tuple(dict.fromkeys((*config.store.keep, *needed)))
    # Without vectors there is nothing for a codec to lose, and nothing to calibrate it with.
    store = config.store.model_copy(update={"stage": "question", "codec": "fp32", "keep": keep})
    return config.model_copy(update={"store": store})
