"""What a training stage does: from which checkpoint and data, on which task, with which Trainer settings."""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from .base import Config
from .build import CompressionConfig
from .corpus import CorpusConfig

# A token each for the beginning, the middle and the end of a text that is continued.
CONTINUED = 3


class TrainingConfig(Config):
    """What both stages share."""

    checkpoint: str | None = Field(None, description="Checkpoint folder to start from.")
    data: tuple[str, ...] = Field((), description="Files or folders with the training data.")
    out: str | None = Field(None, description="Folder for the trained checkpoint; the training goes on in it.")
    decoder: Literal["lora", "full"] = Field(
        "lora", description="Train the decoder's LoRA pairs and embeddings, or all of it and write it as the new base."
    )
    lora_dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of the LoRA pairs' input.")
    compression: CompressionConfig = Field(
        CompressionConfig(), description="How documents become passages; give build the same."
    )
    max_tokens: int | None = Field(
        None, ge=2, description="Most tokens of a prompt with its answer; default: the decoder's context."
    )
    compile: bool = Field(
        False, description="Compile both models with torch.compile: minutes at the start, then faster steps."
    )
    trainer: dict[str, Any] = Field(
        {}, description="Settings of transformers' TrainingArguments, under their own names."
    )


class PretrainingConfig(TrainingConfig):
    """The first stage: memory learns to carry a text."""

    corpus: CorpusConfig = Field(CorpusConfig(), description="How the data is read; any corpus that build takes.")
    autoencoding: float = Field(
        0.5, ge=0, le=1, description="Share of auto-encoding; the rest continues a text behind a compressed middle."
    )
    windows: tuple[int, ...] = Field(
        (128,),
        min_length=1,
        description="Most compressor tokens of a text that is learned at once; drawn for each batch.",
    )

    @field_validator("windows")
    @classmethod
    def _check(cls, windows: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        # Values that are wrong themselves are not among the data.
        compression, autoencoding = info.data.get("compression"), info.data.get("autoencoding", 1)
        if min(windows) < 1:
            raise ValueError("each must be at least 1")
        if autoencoding < 1 and min(windows) < CONTINUED:
            raise ValueError(f"each must be at least {CONTINUED} to be continued, or autoencoding 1")
        if compression and compression.on_long == "truncate" and max(windows) > compression.max_length:
            raise ValueError(
                f"none may exceed compression.max_length ({compression.max_length}) where on_long is truncate: what is "
                "left out of memory cannot be restored"
            )
        return windows


class FinetuningConfig(TrainingConfig):
    """The second stage: the decoder learns to answer from memory."""

    text_ratio: float = Field(
        0.0, ge=0, le=1, description="Share of batches whose documents are given as text, not as memory."
    )
    query_dependent: bool = Field(
        False, description="Put the question before each document that is compressed, as OSCAR does."
    )

    @model_validator(mode="after")
    def _check(self) -> "FinetuningConfig":
        if self.query_dependent and self.compression.repeat_title:
            raise ValueError(
                "query_dependent puts the question before each passage, so compression.repeat_title must be false"
            )
        return self
