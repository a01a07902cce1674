"""The conditions under which questions are asked: what stands in the prompt for their documents."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..configs import CompressionConfig
from ..errors import StoreError
from ..model.connector import Connector
from ..model.families.pisco import Checkpoint
from ..model.memory import Memory, Stage
from ..reader.ask import require_checkpoint
from ..reader.reader import Reader
from ..store import (
    CODECS,
    Calibration,
    Codec,
    Rows,
    Store,
    codec_by_name,
    decode_batch,
    encode_batch,
    is_calibrated,
    sample_memory,
)

Name = Literal["none", "text", "stored", "recoded"]


@dataclass(frozen=True)
class Condition:
    """What stands for the documents.

    Attributes:
        name: ``none`` for no documents at all, ``text`` for their own text, ``stored`` for the store's memory as it
            is, ``recoded`` for the reference's memory taken to another stage or codec and back.
        stage: of memory.
        codec: of memory.
    """

    name: Name
    stage: Stage | None = None
    codec: str | None = None


@dataclass(frozen=True)
class Documents:
    """Documents as they stand in a prompt under one condition; k of them.

    Attributes:
        prompt: what ``Decoder.prompt_ids`` takes for each, k: memory tokens, or a text.
        memory: of the documents, for those that have memory tokens.
        sizes: bytes that each takes, k.
    """

    prompt: tuple[int | str, ...]
    memory: Memory
    sizes: tuple[int, ...]

    def select(self, picks: Sequence[int]) -> tuple[tuple[int | str, ...], Memory]:
        """What stands in the prompt for some of them, and its memory."""
        prompt = tuple(self.prompt[i] for i in picks) if self.prompt else ()
        return prompt, self.memory.select(picks if self.memory.lengths else ())


class Source:
    """A store that documents come from, and what can be made of them.

    Args:
        uri: the store.
        checkpoint: what its memory must have been made with.

    Raises:
        FingerprintMismatchError: if it was another one.
    """

    def __init__(self, uri: str | Path, checkpoint: Checkpoint):
        with Reader(uri) as reader:
            require_checkpoint(reader, checkpoint)
            self._store = Store.open(uri, reader.version)
        self.uri = self._store.uri
        self.meta = self._store.meta
        self._connector: Connector = checkpoint.connector
        self._keeps = self.meta.optional_columns
        self._calibrations: dict[tuple[Stage, str], Calibration | None] = {}
        template = self.meta.fingerprint.components.get("template")
        self._compression = CompressionConfig() if template is None else CompressionConfig(template=template)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages at which its memory can be had."""
        return ("hidden", "embedding") if self.meta.stage == "hidden" else ("embedding",)

    @property
    def has_text(self) -> bool:
        """Whether it keeps the documents' text."""
        return "text" in self._keeps

    def fetch(self, doc_ids: Sequence[str], *, missing: Literal["error", "skip"] = "error") -> Rows:
        """The rows of documents, in request order, with the text that is kept of them."""
        return self._store.fetch(doc_ids, columns=self._keeps, missing=missing)

    def documents(self, rows: Rows, condition: Condition) -> Documents:
        """What stands for documents under a condition."""
        memory = self._memory(rows)
        if condition.name == "none":
            return Documents((), memory.select(()), ())
        if condition.name == "text":
            titles = rows.columns.get("title", [None] * len(rows))
            texts = [self._compression.input_text(*both) for both in zip(rows.columns["text"], titles, strict=True)]
            return Documents(tuple(texts), memory.select(()), tuple(len(text.encode()) for text in texts))
        if condition.name == "stored":
            return Documents(memory.lengths, memory, tuple(map(len, rows.payloads)))
        assert condition.codec is not None
        if condition.stage == "embedding":
            memory = self._connector.connect(memory)
        codec = codec_by_name(condition.codec)
        memory, sizes = _round_trip(memory, codec, self._calibration(codec, memory.stage))
        return Documents(memory.lengths, memory, sizes)

    def _memory(self, rows: Rows) -> Memory:
        return self._as_memory(*rows.memory(), rows.doc_ids)

    def _as_memory(self, values: np.ndarray, lengths: Iterable[int], doc_ids: tuple[str, ...] = ()) -> Memory:
        counts = tuple(int(n) for n in lengths)
        return Memory(torch.from_numpy(values), counts, self.meta.stage, self._connector.digest, doc_ids)

    def _calibration(self, codec: Codec, stage: Stage) -> Calibration | None:
        """What a codec would know of this store's memory at a stage, fitted to a sample as recoding would."""
        key = stage, codec.name
        if is_calibrated(codec) and key not in self._calibrations:
            # The stages have different widths.
            dim = self._connector.out_dim if stage == "embedding" else self.meta.dim
            sample = self._as_memory(*sample_memory(self._store, codec.sample_vectors(dim)))
            if stage == "embedding":
                sample = self._connector.connect(sample)
            self._calibrations[key] = codec.calibrate(sample.values.numpy())
        return self._calibrations.get(key)


def conditions(
    measured: Source, reference: Source, codecs: Sequence[str], stage: Stage | None, text: bool
) -> list[Condition]:
    """The rows of an evaluation, in their order: no documents, text, the store, and what else it could hold.

    Raises:
        StoreError: for an unknown codec, or a stage that cannot be had any more.
    """
    if stage is not None and stage not in reference.stages:
        raise StoreError(
            f"the memory is stored at stage {reference.meta.stage!r}; stage {stage!r} cannot be had from it. "
            "Give a reference that holds it."
        )
    named = [codec_by_name(name).name for name in dict.fromkeys(codecs)] or [codec.name for codec in CODECS]
    stored = Condition("stored", measured.meta.stage, measured.meta.codec)
    stages = reference.stages if stage is None else (stage,)
    others = [Condition("recoded", each, name) for each in stages for name in named]
    rows = [Condition("none"), *([Condition("text")] if text and measured.has_text else []), stored]
    return rows + [each for each in others if (each.stage, each.codec) != (stored.stage, stored.codec)]


def _round_trip(memory: Memory, codec: Codec, calibration: Calibration | None) -> tuple[Memory, tuple[int, ...]]:
    """Memory as it comes back out of a store with that codec, and the bytes of each document in it."""
    payloads = encode_batch(memory.doc_ids, memory.values.numpy(), memory.lengths, codec, calibration)
    values, _ = decode_batch(payloads, memory.doc_ids, None if calibration is None else lambda _: calibration)
    return replace(memory, values=torch.from_numpy(values)), tuple(map(len, payloads))
