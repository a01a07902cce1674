"""Configuration of a build: the corpus, its compression, the store, and the machines that the build runs on."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Config, FileOnly, Flag
from .corpus import CorpusConfig
from .names import AttentionName, CodecName, Dtype, Keep, Stage
from .search import SearchConfig


class CompressionConfig(Config):
    """Settings that determine a document's memory, together with the checkpoint. The fingerprint holds all of them."""

    max_length: int = Field(512, ge=1, description="Largest number of tokens in a passage, not counting memory tokens.")
    on_long: Literal["chunk", "truncate"] = Field(
        "chunk", description="Treatment of longer documents: chunk splits them into passages, truncate drops the end."
    )
    overlap: int = Field(0, ge=0, description="Number of tokens that each chunk repeats from the chunk before it.")
    template: str = Field(
        "{title}\n{text}",
        description="Text to compress for a document with a title. A document without a title is compressed as it is.",
    )
    repeat_title: Annotated[bool, Flag(names=("--repeat-title/--title-once",))] = Field(
        False, description="Repeat the document's title before every passage, not only the first."
    )
    dtype: Dtype = Field(
        "bfloat16", description="Dtype of the compressor's weights and of memory. A CPU may compute in float32 anyway."
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
        """Return the settings by name, as a store's fingerprint holds them."""
        settings = {key: str(value) for key, value in self.model_dump().items()}
        if not self.repeat_title:
            # Fingerprints of stores that are older than this setting do not have it.
            del settings["repeat_title"]
        return settings

    @classmethod
    def of(cls, components: Mapping[str, str]) -> "CompressionConfig":
        """Return the settings that a store's fingerprint holds; defaults for those that it lacks."""
        return cls.model_validate({key: components[key] for key in cls.model_fields if key in components})

    def input_text(self, text: str, title: str | None) -> str:
        """Return the text that is compressed for a document."""
        if not title:
            return text
        after = self.template.partition("{text}")[2]
        return self._heading(title) + text + after.replace("{title}", title)

    def repeated_heading(self, title: str | None) -> str:
        """Return the text that the second and later passages of a document begin with; empty by default."""
        return self._heading(title) if self.repeat_title and title else ""

    def _heading(self, title: str) -> str:
        # str.format would read braces in a title as fields.
        return self.template.partition("{text}")[0].replace("{title}", title)


class StoreConfig(Config):
    """Settings of the stored memory. They are fixed when the store is made."""

    stage: Literal["auto", "question", Stage] = Field(
        "auto",
        description="Vectors to store: before the connector (hidden) or after it (embedding); auto is hidden if the "
        "connector widens them. question keeps the text only, for memory that is made with each question, as OSCAR's.",
    )
    codec: CodecName = Field(
        "int8",
        description="Codec that turns vectors into bytes: fp32, for tests, stores the most, klt2 and fisher2 the "
        "least; fisher codecs are fitted to the decoder.",
    )
    measure_kl: bool | None = Field(
        None,
        description="Measure with the checkpoint's decoder what the codec loses, and fit fisher codecs to it; default: "
        "if its weights take at most 1 GB, or for fisher.",
    )
    keep: Annotated[tuple[Keep, ...], Flag(empty="nothing")] = Field(
        ("title",), description="Fields of a document to store with its memory: title, text."
    )
    index: bool = Field(
        True, description="Make the documents searchable: store the text that is compressed, and index it."
    )


class RunConfig(Config):
    """Settings of where and how a build runs. None of them changes what is stored, except for rounding."""

    device: str = Field(
        "auto", description="Device to compute on: cpu, cuda, cuda:1, …; auto uses a GPU if there is one."
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="Number of compressing processes; default: one per GPU, or this process if there is at most one.",
    )
    ray: Annotated[str | None, Flag(metavar="ADDRESS")] = Field(
        None, description="Run on Ray: local, auto (the cluster that this machine is in) or a cluster's address."
    )
    reader_processes: int | None = Field(
        None,
        ge=0,
        description="Number of processes that read for each worker; default: as many as the device needs and the cores "
        "allow, none if reading is quick. 0 reads in the worker itself.",
    )
    token_budget: int | None = Field(
        None,
        ge=1,
        description="Largest number of tokens in a batch; default: 2,048 on a CPU, on a GPU as many as fit. "
        "It changes rounding only.",
    )
    compiled: bool | None = Field(
        None, description="Compile the compressor's layers; default: on a GPU only. It changes rounding only."
    )
    attention: AttentionName = Field(
        "auto",
        description="Attention kernel: torch or flash-attn, which need a GPU, or padded; auto takes the fastest that "
        "works. It changes rounding only.",
    )
    planning_processes: int | None = Field(
        None,
        ge=1,
        description="Number of processes that read the corpus to plan a build; default: one per core, or fewer for a "
        "small corpus. It does not change the plan.",
    )
    shard_documents: int = Field(
        4096,
        ge=1,
        description="Size of a shard, in documents of about 1,000 characters. An existing store keeps its shards.",
    )
    commit_shards: FileOnly[int] = Field(16, ge=1, description="Number of finished shards that triggers a commit.")
    commit_seconds: FileOnly[float] = Field(
        30.0, gt=0, description="Seconds after which finished shards are committed even if there are fewer."
    )
    attempts: FileOnly[int] = Field(
        2, ge=1, description="Number of attempts at a failing shard before its documents are tried one by one."
    )
    hang_seconds: FileOnly[float] = Field(
        600.0, gt=0, description="Time without progress after which a worker counts as hung and is ended."
    )
    store_patience_seconds: FileOnly[float] = Field(
        3600.0, ge=0, description="Time to wait for a store that cannot be reached before the build ends."
    )


class BuildConfig(Config):
    """Configuration of a build: the five sections of its YAML file."""

    corpus: CorpusConfig = CorpusConfig()
    compression: CompressionConfig = CompressionConfig()
    store: StoreConfig = StoreConfig()
    search: SearchConfig = SearchConfig()
    run: RunConfig = RunConfig()
