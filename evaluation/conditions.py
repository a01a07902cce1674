"""Conditions of an evaluation: each puts something else into the prompt for a question's documents."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..configs.names import MissingIds, Stage
from ..errors import PromptError, StoreError
from ..model.compressor import Compressor
from ..model.decoder import Decoder
from ..model.decoding.sensitivity import fisher_matrix, sampled_documents
from ..model.families import Checkpoint
from ..model.memory import Memory
from ..reader.compatibility import require_checkpoint
from ..reader.memory_source import compress_documents
from ..reader.questions import Question
from ..reader.reader import Reader
from ..store import (
    CODECS,
    SENSITIVITY_DOCUMENTS,
    Calibration,
    Codec,
    MemorySample,
    Rows,
    Store,
    codec_by_name,
    decode_batch,
    encode_batch,
    is_calibrated,
    sample_memory,
    uses_sensitivity,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Condition:
    """Names what stands in the prompt for a question's documents.

    Attributes:
        name: ``none`` for nothing, ``text`` for the documents' text, ``stored`` for the store's own memory, ``fresh``
            for memory that is made of the stored text with the question, ``recoded`` for the reference's memory after
            another stage or codec.
        stage: stage of the memory; None for a condition without memory.
        codec: codec of the memory; None for a condition without memory.
    """

    name: Literal["none", "text", "stored", "fresh", "recoded"]
    stage: Stage | None = None
    codec: str | None = None


@dataclass(frozen=True)
class ShownDocuments:
    """k documents as they stand in a prompt under one condition.

    Attributes:
        prompt: argument of ``Decoder.prompt_ids`` for each document: its number of memory tokens, or its text. Empty
            if nothing stands in the prompt.
        memory: memory of the documents; without documents if none has memory tokens.
        sizes: size of each document in bytes, k. If memory depends on the question, k' documents of the store.
        places: places of each question's documents among the k.
    """

    prompt: tuple[int | str, ...]
    memory: Memory
    sizes: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]

    def of(self, question: int) -> tuple[tuple[int | str, ...], Memory]:
        """Return the prompt and the memory of the documents of a question, by its number among the questions."""
        picks = self.places[question]
        prompt = tuple(self.prompt[i] for i in picks) if self.prompt else ()
        return prompt, self.memory.select(picks if self.memory.lengths else ())


class EvaluatedStore:
    """A store whose documents are shown under different conditions.

    Args:
        uri: folder or object-store URI of the store.
        checkpoint: checkpoint that the store must have been built with.
        device: device of the compressor, if memory is made with each question.

    Attributes:
        decoder: decoder that codecs are fitted to, if the store keeps the text; None until it is loaded.

    Raises:
        FingerprintMismatchError: if the store was built with another checkpoint.
    """

    def __init__(self, uri: str | Path, checkpoint: Checkpoint, device: str = "cpu"):
        with Reader(uri) as reader:
            require_checkpoint(reader, checkpoint)
            self._store = Store.open(uri, reader.version)
            self._compression = reader.compression
            self.version = reader.version
        self.uri = self._store.uri
        self.meta = self._store.meta
        self._checkpoint = checkpoint
        self._device = device
        self._kept_columns = self.meta.optional_columns
        self.decoder: Decoder | None = None
        self._calibrations: dict[tuple[Stage, str], Calibration | None] = {}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages at which the store's memory is available: the stored one, and the one behind the connector."""
        return ("hidden", "embedding") if self.meta.stage == "hidden" else ("embedding",)

    @property
    def own(self) -> Condition:
        """The condition of the store as it is."""
        if not self.meta.holds_memory:
            return Condition("fresh", self.meta.stage)
        return Condition("stored", self.meta.stage, self.meta.codec)

    @property
    def has_text(self) -> bool:
        """True if the store keeps the documents' text."""
        return "text" in self._kept_columns

    def fetch(self, doc_ids: Sequence[str], *, missing: MissingIds = "error") -> Rows:
        """Return the rows of documents, in request order, with the title and text that the store keeps."""
        return self._store.fetch(doc_ids, columns=self._kept_columns, missing=missing)

    def show(
        self, rows: Rows, condition: Condition, questions: Sequence[Question], *, is_trial: bool = False
    ) -> ShownDocuments:
        """Return the documents of rows as they stand in the prompts of questions under a condition.

        Args:
            rows: the documents of all questions.
            condition: the condition.
            questions: the questions.
            is_trial: True if only the prompts are of interest: memory with a question has its size then, and no values.

        Raises:
            PromptError: naming a question that does not fit the compressor.
        """
        place = {doc_id: i for i, doc_id in enumerate(rows.doc_ids)}
        places = tuple(tuple(place[doc_id] for doc_id in question.doc_ids) for question in questions)
        memory = self._as_memory(*rows.memory(), rows.doc_ids)
        match condition.name:
            case "none":
                return ShownDocuments((), memory.select(()), (), places)
            case "text":
                texts = self._texts(rows)
                return ShownDocuments(texts, memory.select(()), _bytes(texts), places)
            case "stored":
                return ShownDocuments(memory.lengths, memory, tuple(map(len, rows.payloads)), places)
            case "fresh":
                return self._fresh(self._texts(rows), places, questions, is_trial)
        assert condition.codec is not None
        if condition.stage == "embedding":
            memory = self._connected(memory)
        codec = codec_by_name(condition.codec)
        memory, sizes = _recode(memory, codec, self._calibration(codec, memory.stage))
        return ShownDocuments(memory.lengths, memory, sizes, places)

    def _fresh(
        self, texts: Sequence[str], places: Sequence[tuple[int, ...]], questions: Sequence[Question], is_trial: bool
    ) -> ShownDocuments:
        documents, of_question = [], []
        for question, picks in zip(questions, places, strict=True):
            try:
                found = self._checkpoint.query_passages(question.text, [texts[i] for i in picks], self._compression)
            except PromptError as error:
                raise PromptError(f"Question {question.id!r}: {error}") from None
            of_question.append(tuple(range(len(documents), len(documents) + len(found))))
            documents += found
        ids = [doc_id for question in questions for doc_id in question.doc_ids]
        if is_trial:
            lengths = [document.n_mem for document in documents]
            memory = self._as_memory(np.empty((sum(lengths), self.meta.dim), np.float32), lengths, tuple(ids))
        else:
            memory = compress_documents(self._compressor, documents, ids)
        return ShownDocuments(memory.lengths, memory, _bytes(texts), tuple(of_question))

    @cached_property
    def _compressor(self) -> Compressor:
        return Compressor.load(
            self._checkpoint, dtype=getattr(torch, self._compression.dtype), device=self._device, compiled=False
        )

    def _texts(self, rows: Rows) -> tuple[str, ...]:
        titles = rows.columns.get("title", [None] * len(rows))
        return tuple(map(self._compression.input_text, rows.columns["text"], titles))

    def _connected(self, memory: Memory) -> Memory:
        connector = self._checkpoint.connector
        return memory if connector is None else connector.connect(memory)

    def _as_memory(self, values: np.ndarray, lengths: Iterable[int], doc_ids: tuple[str, ...] = ()) -> Memory:
        counts = tuple(int(n) for n in lengths)
        return Memory(torch.from_numpy(values), counts, self.meta.stage, self._checkpoint.memory_digest, doc_ids)

    def _calibration(self, codec: Codec, stage: Stage) -> Calibration | None:
        """Return a codec's calibration for this store's memory at a stage, fitted to a sample as ``recode`` does."""
        key = stage, codec.name
        if is_calibrated(codec) and key not in self._calibrations:
            dim = self._checkpoint.memory_dim(stage)
            found = sample_memory(self._store, codec.sample_vectors(dim), with_texts=uses_sensitivity(codec))
            sample = self._as_memory(found.values, found.lengths)
            if stage == "embedding":
                sample = self._connected(sample)
            values = sample.values.float().numpy()
            matrix = None
            if self.decoder is not None and any(found.texts):
                read = MemorySample(values, found.lengths, found.texts).spread(SENSITIVITY_DOCUMENTS)
                documents = sampled_documents(
                    read.values, read.lengths, read.texts, stage, self._checkpoint.memory_digest
                )
                try:
                    matrix = fisher_matrix(self.decoder, documents)
                except PromptError as error:
                    log.warning("Codec %s is fitted without the decoder, as klt is: %s", codec.name, error)
            self._calibrations[key] = codec.calibrate(values, matrix)
        return self._calibrations.get(key)


def conditions(
    measured: EvaluatedStore, reference: EvaluatedStore, codecs: Sequence[str], stage: Stage | None, text: bool
) -> list[Condition]:
    """Return the conditions of an evaluation, in the order of its rows.

    They are: no documents, the text if it is kept and wanted, the store as it is, and every other codec and stage that
    the reference's memory can be recoded to. Memory that is made with each question is not recoded.

    Args:
        measured: the store to evaluate.
        reference: the store whose memory is recoded.
        codecs: codecs to recode to; all codecs that do not use the sensitivity of a decoder if empty.
        stage: stage to recode at; None for every available stage.
        text: False to leave out the documents' text.

    Raises:
        StoreError: if a codec is unknown, or the reference cannot give the stage.
    """
    if codecs or stage:
        reference.meta.require_memory(reference.uri)
    if stage is not None and stage not in reference.stages:
        raise StoreError(
            f"{reference.uri}: the memory is stored at stage {reference.meta.stage!r}; stage {stage!r} cannot be "
            "computed from it. Name a reference of that stage (--reference)."
        )
    names = [codec_by_name(name).name for name in dict.fromkeys(codecs)]
    # The sensitivity of a decoder is computed only for a codec that is asked for: it takes longer than the answers.
    names = names or [codec.name for codec in CODECS if not uses_sensitivity(codec)]
    stages = reference.stages if stage is None else (stage,)
    stored = measured.own
    rows = [Condition("none"), *([Condition("text")] if text and measured.has_text else []), stored]
    if not reference.meta.holds_memory:
        return rows
    recoded = [Condition("recoded", each, name) for each in stages for name in names]
    return rows + [each for each in recoded if (each.stage, each.codec) != (stored.stage, stored.codec)]


def _bytes(texts: Iterable[str]) -> tuple[int, ...]:
    return tuple(len(text.encode()) for text in texts)


def _recode(memory: Memory, codec: Codec, calibration: Calibration | None) -> tuple[Memory, tuple[int, ...]]:
    """Encode and decode memory; return it with the size of each document's payload."""
    payloads = encode_batch(memory.doc_ids, memory.values.numpy(), memory.lengths, codec, calibration)
    values, _ = decode_batch(payloads, memory.doc_ids, None if calibration is None else lambda _: calibration)
    return replace(memory, values=torch.from_numpy(values)), tuple(map(len, payloads))
