"""What a build does: corpus, compression, storage and the machines it runs on."""

from typing import Literal

from pydantic import Field, model_validator

from .base import Config
from .corpus import CorpusConfig


class CompressionConfig(Config):
    """Everything that, beside the checkpoint, determines a document's memory. All of it is in the fingerprint."""

    max_length: int = Field(512, ge=1, description="Most tokens of a passage, memory tokens not counted.")
    on_long: Literal["chunk", "truncate"] = Field(
        "chunk", description="A longer document is cut into passages (chunk) or loses its end (truncate)."
    )
    overlap: int = Field(0, ge=0, description="Tokens that each further chunk repeats from the one before it.")
    template: str = Field(
        "{title}\n{text}", description="What is compressed of a document with a title; one without gives its text."
    )
    repeat_title: bool = Field(
        False,
        description="Begin each passage of a chunked document, not its first alone, with what the template puts before "
        "its text.",
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16",
        description="Dtype of the compressor's weights and memory; on a CPU arithmetic may be float32 all the same.",
    )

    @model_validator(mode="after")
    def _check(self) -> "CompressionConfig":
        if self.overlap >= self.max_length:
            raise ValueError(f"overlap {self.overlap} must be less than max_length {self.max_length}")
        if "{text}" not in self.template:
            raise ValueError("template must contain {text}")
        if self.repeat_title and self.on_long == "truncate":
            raise ValueError("repeat_title needs on_long chunk: a truncated document is one passage")
        return self

    @property
    def components(self) -> dict[str, str]:
        """The settings by name, as they are part of a store's fingerprint."""
        settings = {key: str(value) for key, value in self.model_dump().items()}
        if not self.repeat_title:
            # Not in the fingerprints of stores from before there was this setting.
            del settings["repeat_title"]
        return settings

    def input_text(self, text: str, title: str | None) -> str:
        """The string that is compressed."""
        if not title:
            return text
        after = self.template.partition("{text}")[2]
        return self._heading(title) + text + after.replace("{title}", title)

    def repeated(self, title: str | None) -> str:
        """What each further passage of a document begins with; mostly nothing."""
        return self._heading(title) if self.repeat_title and title else ""

    def _heading(self, title: str) -> str:
        # Not str.format: a title may itself hold braces.
        return self.template.partition("{text}")[0].replace("{title}", title)


class StoreConfig(Config):
    """How memory is stored."""

    stage: Literal["auto", "hidden", "embedding"] = Field(
        "auto",
        description="Store vectors before the connector (hidden) or after it (embedding); "
        "auto takes hidden where the connector widens.",
    )
    codec: Literal["fp32", "bf16", "bf16z", "int8", "int4", "klt3", "klt2"] = Field(
        "int8", description="How vectors become bytes, from the largest to the smallest; fp32 is for tests."
    )
    keep: tuple[Literal["title", "text"], ...] = Field(
        ("title",),
        description="Fields of the document stored beside its memory: title, text; on the command line also nothing.",
    )


class RunConfig(Config):
    """Where and how a build runs. Nothing here changes what is stored."""

    device: str = Field("auto", description="cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")
    workers: int | None = Field(
        None, ge=1, description="Compressing processes; default: one a GPU, or this process alone."
    )
    ray: str | None = Field(
        None, description="Run on Ray: local, auto (the cluster this node is in) or a cluster's address."
    )
    token_budget: int | None = Field(
        None,
        ge=1,
        description="Most tokens in a batch; default: 2,048 on a CPU, on a GPU what fits. Changes rounding only.",
    )
    compiled: bool | None = Field(
        None, description="Compile the compressor's layers; default: on a GPU. Changes rounding only."
    )
    shard_documents: int = Field(
        4096,
        ge=1,
        description="Documents of about 1,000 characters in a shard; a store that was begun keeps its shards.",
    )
    commit_shards: int = Field(16, ge=1, description="Commit after this many finished shards …")
    commit_seconds: float = Field(30.0, gt=0, description="… or this many seconds, whichever comes first.")
    attempts: int = Field(2, ge=1, description="Tries of a shard that fails before its documents are tried one by one.")
    hang_seconds: float = Field(
        600.0, gt=0, description="A worker that takes no step for so long has hung, and is ended."
    )
    store_patience_seconds: float = Field(
        3600.0, ge=0, description="Wait so long for a store that cannot be reached before the build ends."
    )


class BuildConfig(Config):
    """A whole build, as a YAML file gives it."""

    corpus: CorpusConfig = CorpusConfig()
    compression: CompressionConfig = CompressionConfig()
    store: StoreConfig = StoreConfig()
    run: RunConfig = RunConfig()
