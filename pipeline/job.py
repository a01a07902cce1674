"""A job: the inputs of a build, opened and checked for consistency."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ..configs import BuildConfig
from ..errors import ConfigError, StoreError
from ..model.device import choose_device
from ..model.families import Checkpoint, open_checkpoint
from ..model.identity import memory_components
from ..model.memory import Stage
from ..store import Fingerprint, Store, StoreMeta, codec_by_name
from .planning.plan import Plan
from .pools.cluster import require_reachable
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
        prune: True to delete documents of the store that the corpus lacks.
        replan: True to give up an unfinished plan, and to update from what the store holds.
    """

    paths: tuple[str, ...]
    checkpoint: Checkpoint
    uri: str
    config: BuildConfig
    stage: Stage
    device: str
    prune: bool = False
    replan: bool = False

    @property
    def dim(self) -> int:
        """Width of the vectors to store."""
        return self.checkpoint.memory_dim(self.stage)

    @property
    def meta(self) -> StoreMeta:
        """Description of the store that this job creates."""
        checkpoint = self.checkpoint
        return StoreMeta(
            fingerprint=Fingerprint(memory_components(checkpoint, self.config.compression)),
            stage=self.stage,
            dim=self.dim,
            codec=self.config.store.codec,
            checkpoint={"path": str(checkpoint.path), "rate": checkpoint.rate, "decoder": checkpoint.decoder_base},
            package_version=version("pisco-index"),
            optional_columns=self.config.store.keep,
        )

    def require_same_settings(self, store: Store) -> None:
        """Check that an existing store was begun with the settings of this job.

        Raises:
            FingerprintMismatchError: its memory was made by another checkpoint or with another compression.
            StoreError: its stage, codec or kept fields differ.
        """
        store.meta.fingerprint.require_equal(self.meta.fingerprint, "this build")
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
            uri=self.uri,
            sources=plan.sources,
            device=self.device,
            token_budget=self.config.run.token_budget,
            compiled=self.config.run.compiled,
            store_patience_s=self.config.run.store_patience_seconds,
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
    """Open the inputs of a build and check that they fit together, without writing anything.

    Raises:
        InputError: an input cannot be used, or two of them do not fit together.
    """
    if isinstance(paths, (str, Path)):
        raise TypeError(f"build takes a list of corpus paths, not the one path {str(paths)!r}")
    opened = open_checkpoint(checkpoint)
    stage = opened.default_stage if config.store.stage == "auto" else config.store.stage
    codec_by_name(config.store.codec)
    opened.passage_tokenizer(config.compression)
    uri = str(out)
    if not uri:
        raise ConfigError("the store has no address. Name a folder or an object-store URI (--out).")
    if not Store.exists(uri):
        Store.require_free(uri)
    if config.run.ray:
        require_reachable(config.run.ray)
    # On a cluster the devices of its nodes count, not those of this machine.
    device = config.run.device if config.run.ray else choose_device(config.run.device)
    return Job(tuple(map(str, paths)), opened, uri, config, stage, device, prune, replan)
