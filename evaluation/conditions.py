"""Conditions of an evaluation: each puts something else into the prompt for a question's documents."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..configs import CompressionConfig
from ..configs.names import MissingIds, Stage
from ..errors import StoreError
from ..model.connector import Connector
from ..model.families import Checkpoint
from ..model.memory import Memory
from ..reader.compatibility import require_checkpoint
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


@dataclass(frozen=True)
class Condition:
    """Names what stands in the prompt for a question's documents.

    Attributes:
        name: ``none`` for nothing, ``text`` for the documents' text, ``stored`` for the store's own memory, ``recoded``
            for the reference's memory after another stage or codec.
        stage: stage of the memory; None for a condition without memory.
        codec: codec of the memory; None for a condition without memory.
    """

    name: Literal["none", "text", "stored", "recoded"]
    stage: Stage | None = None
    codec: str | None = None


@dataclass(frozen=True)
class ShownDocuments:
    """k documents as they stand in a prompt under one condition.

    Attributes:
        prompt: argument of ``Decoder.prompt_ids`` for each document: its number of memory tokens, or its text. Empty
            if nothing stands in the prompt.
        memory: memory of the documents; without documents if none has memory tokens.
        sizes: size of each document in bytes, k.
    """

    prompt: tuple[int | str, ...]
    memory: Memory
    sizes: tuple[int, ...]

    def select(self, picks: Sequence[int]) -> tuple[tuple[int | str, ...], Memory]:
        """Return the prompt and the memory of some of the documents."""
        prompt = tuple(self.prompt[i] for i in picks) if self.prompt else ()
        return prompt, self.memory.select(picks if self.memory.lengths else ())


class EvaluatedStore:
    """A store whose documents are shown under different conditions.

    Args:
        uri: folder or object-store URI of the store.
        checkpoint: checkpoint that the store must have been built with.

    Raises:
        FingerprintMismatchError: if the store was built with another checkpoint.
    """

    def __init__(self, uri: str | Path, checkpoint: Checkpoint):
        with Reader(uri) as reader:
            require_checkpoint(reader, checkpoint)
            self._store = Store.open(uri, reader.version)
        self.uri = self._store.uri
        self.meta = self._store.meta
        self._connector: Connector = checkpoint.connector
        self._kept_columns = self.meta.optional_columns
        self._calibrations: dict[tuple[Stage, str], Calibration | None] = {}
        template = self.meta.fingerprint.components.get("template")
        self._compression = CompressionConfig() if template is None else CompressionConfig(template=template)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages at which the store's memory is available: the stored one, and the one behind the connector."""
        return ("hidden", "embedding") if self.meta.stage == "hidden" else ("embedding",)

    @property
    def has_text(self) -> bool:
        """True if the store keeps the documents' text."""
        return "text" in self._kept_columns

    def fetch(self, doc_ids: Sequence[str], *, missing: MissingIds = "error") -> Rows:
        """Return the rows of documents, in request order, with the title and text that the store keeps."""
        return self._store.fetch(doc_ids, columns=self._kept_columns, missing=missing)

    def show(self, rows: Rows, condition: Condition) -> ShownDocuments:
        """Return the documents of rows as they stand in a prompt under a condition."""
        memory = self._as_memory(*rows.memory(), rows.doc_ids)
        match condition.name:
            case "none":
                return ShownDocuments((), memory.select(()), ())
            case "text":
                titles = rows.columns.get("title", [None] * len(rows))
                texts = tuple(map(self._compression.input_text, rows.columns["text"], titles))
                return ShownDocuments(texts, memory.select(()), tuple(len(text.encode()) for text in texts))
            case "stored":
                return ShownDocuments(memory.lengths, memory, tuple(map(len, rows.payloads)))
        assert condition.codec is not None
        if condition.stage == "embedding":
            memory = self._connector.connect(memory)
        codec = codec_by_name(condition.codec)
        memory, sizes = _recode(memory, codec, self._calibration(codec, memory.stage))
        return ShownDocuments(memory.lengths, memory, sizes)

    def _as_memory(self, values: np.ndarray, lengths: Iterable[int], doc_ids: tuple[str, ...] = ()) -> Memory:
        counts = tuple(int(n) for n in lengths)
        return Memory(torch.from_numpy(values), counts, self.meta.stage, self._connector.digest, doc_ids)

    def _calibration(self, codec: Codec, stage: Stage) -> Calibration | None:
        """Return a codec's calibration for this store's memory at a stage, fitted to a sample as ``recode`` does."""
        key = stage, codec.name
        if is_calibrated(codec) and key not in self._calibrations:
            dim = self._connector.dim(stage)
            sample = self._as_memory(*sample_memory(self._store, codec.sample_vectors(dim)))
            if stage == "embedding":
                sample = self._connector.connect(sample)
            self._calibrations[key] = codec.calibrate(sample.values.numpy())
        return self._calibrations.get(key)


def conditions(
    measured: EvaluatedStore, reference: EvaluatedStore, codecs: Sequence[str], stage: Stage | None, text: bool
) -> list[Condition]:
    """Return the conditions of an evaluation, in the order of its rows.

    They are: no documents, the text if it is kept and wanted, the store as it is, and every other codec and stage that
    the reference's memory can be recoded to.

    Args:
        measured: the store to evaluate.
        reference: the store whose memory is recoded.
        codecs: codecs to recode to; all codecs if empty.
        stage: stage to recode at; None for every available stage.
        text: False to leave out the documents' text.

    Raises:
        StoreError: if a codec is unknown, or the reference cannot give the stage.
    """
    if stage is not None and stage not in reference.stages:
        raise StoreError(
            f"{reference.uri}: the memory is stored at stage {reference.meta.stage!r}; stage {stage!r} cannot be "
            "computed from it. Name a reference of that stage (--reference)."
        )
    names = [codec_by_name(name).name for name in dict.fromkeys(codecs)] or [codec.name for codec in CODECS]
    stages = reference.stages if stage is None else (stage,)
    stored = Condition("stored", measured.meta.stage, measured.meta.codec)
    rows = [Condition("none"), *([Condition("text")] if text and measured.has_text else []), stored]
    recoded = [Condition("recoded", each, name) for each in stages for name in names]
    return rows + [each for each in recoded if (each.stage, each.codec) != (stored.stage, stored.codec)]


def _recode(memory: Memory, codec: Codec, calibration: Calibration | None) -> tuple[Memory, tuple[int, ...]]:
    """Encode and decode memory; return it with the size of each document's payload."""
    payloads = encode_batch(memory.doc_ids, memory.values.numpy(), memory.lengths, codec, calibration)
    values, _ = decode_batch(payloads, memory.doc_ids, None if calibration is None else lambda _: calibration)
    return replace(memory, values=torch.from_numpy(values)), tuple(map(len, payloads))
