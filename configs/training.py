"""Settings of the two training stages: checkpoint, data, task, and the settings of transformers' Trainer."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from .base import Config, Flag
from .build import CompressionConfig
from .corpus import CorpusConfig

# Fewest tokens of a text to be continued: one each for its beginning, middle and end.
CONTINUED = 3


class TrainingConfig(Config):
    """Settings that both stages share."""

    checkpoint: Annotated[str | None, Flag(names=("--checkpoint", "-k"), metavar="DIR")] = Field(
        None, description="Checkpoint folder to start from."
    )
    data: tuple[str, ...] = Field((), description="Files or folders with the training data.")
    out: Annotated[str | None, Flag(names=("--out", "-o"), metavar="DIR")] = Field(
        None, description="Folder for the trained checkpoint and the training's state."
    )
    decoder: Literal["lora", "full"] = Field(
        "lora",
        description="Trained weights: LoRA pairs and embeddings (lora), or all, as a new base (full).",
    )
    lora_dropout: float = Field(0.1, ge=0, lt=1, description="Dropout rate at the input of the LoRA pairs.")
    compression: CompressionConfig = Field(
        CompressionConfig(), description="Settings that cut documents into passages; give build the same."
    )
    max_tokens: int | None = Field(
        None, ge=2, description="Largest number of tokens of a prompt with its answer; default: the decoder's context."
    )
    compile: bool = Field(False, description="Compile both models, which takes minutes and makes steps faster.")
    trainer: dict[str, Any] = Field({}, description="Settings of transformers' TrainingArguments.")


class PretrainingConfig(TrainingConfig):
    """Settings of the first stage, which teaches memory to carry a text."""

    corpus: CorpusConfig = Field(CorpusConfig(), description="Settings for reading the data.")
    autoencoding: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of samples that restore a text; the others continue one.",
    )
    windows: tuple[int, ...] = Field(
        (128,),
        min_length=1,
        description="Largest numbers of compressor tokens of a text; one is drawn for each batch.",
    )

    @field_validator("windows")
    @classmethod
    def _check(cls, windows: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        # ``info.data`` lacks the values that are wrong themselves.
        compression, autoencoding = info.data.get("compression"), info.data.get("autoencoding", 1)
        if min(windows) < 1:
            raise ValueError("each must be at least 1")
        if autoencoding < 1 and min(windows) < CONTINUED:
            raise ValueError(f"each must be at least {CONTINUED} to be continued, or autoencoding 1")
        if compression and compression.on_long == "truncate" and max(windows) > compression.max_length:
            raise ValueError(
                f"none may exceed compression.max_length ({compression.max_length}) if on_long is truncate: text "
                "that is not in memory cannot be restored"
            )
        return windows


class FinetuningConfig(TrainingConfig):
    """Settings of the second stage, which teaches the decoder to answer from memory."""

    text_ratio: float = Field(
        0.0, ge=0, le=1, description="Share of batches whose documents are given as text instead of memory."
    )
    query_dependent: bool = Field(
        False, description="Compress each passage with the question before it, as OSCAR does."
    )

    @model_validator(mode="after")
    def _check(self) -> "FinetuningConfig":
        if self.query_dependent and self.compression.repeat_title:
            raise ValueError(
                "query_dependent puts the question before each passage, so compression.repeat_title must be false"
            )
        return self
