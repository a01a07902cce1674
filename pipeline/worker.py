"""The worker: one shard from records to a written fragment. It knows no framework and commits nothing."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..configs import CompressionConfig
from ..errors import CorpusError, PiscoIndexError
from ..model.checkpoint import Checkpoint
from ..model.compressor import Compressor
from ..model.memory import Memory, Stage
from ..model.passages import PassageTokenizer, TokenizedDocument
from ..store import (
    Calibration,
    Store,
    WrittenShard,
    codec_by_name,
    encode_batch,
    memory_rows,
    rejected_rows,
    text_hash,
    write_fragment,
)
from .corpus import Document, RejectedRecord
from .plan import Shard, open_sources, read_shard

# Shards a worker has in hand: one computing, one being prepared, one being written.
DEPTH = 3
# Documents that are encoded together.
ENCODED_AT_ONCE = 256


class ShardCancelledError(PiscoIndexError):
    """The worker was told to stop before it began to compute the shard."""


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker needs, wherever it runs; plain values only.

    Attributes:
        checkpoint: the checkpoint's folder.
        compression: how documents become passages.
        stage: where memory is taken.
        codec: name of the codec it is stored with.
        keep: fields of the document that are stored beside it.
        uri: of the store.
        sources: the plan's sources.
        device: where the compressor runs.
        token_budget: most padded tokens in a batch; None is the device's default.
        threads: CPU threads to compute with; None leaves torch's own number.
    """

    checkpoint: str
    compression: CompressionConfig
    stage: Stage
    codec: str
    keep: tuple[str, ...]
    uri: str
    sources: tuple[Mapping[str, Any], ...]
    device: str
    token_budget: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class ShardResult:
    """What a worker reports of a shard: under 100 KB, the data are in the store's files.

    Attributes:
        written: for the commit.
    """

    written: WrittenShard


class ShardWorker:
    """Reads, tokenizes, compresses, encodes and writes shards; several at a time, computing one.

    ``run`` is called from ``DEPTH`` threads, so that reading and writing overlap with computing.
    """

    def __init__(self, spec: WorkerSpec):
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        checkpoint = Checkpoint(spec.checkpoint)
        self._spec = spec
        self._sources = open_sources(spec.sources)
        self._codec = codec_by_name(spec.codec)
        self._tokenizer = passage_tokenizer(checkpoint, spec.compression)
        self._compressor = Compressor.load(
            checkpoint,
            dtype=getattr(torch, spec.compression.dtype),
            device=spec.device,
            token_budget=spec.token_budget,
        )
        # One thread computes, always the same: torch keeps its thread pool and CUDA its stream by thread.
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._reading = threading.Lock()
        self._stopping = threading.Event()

    def run(self, shard: Shard) -> ShardResult:
        """Do one shard; what it wrote is not visible until it is committed.

        Raises:
            CorpusError: if the corpus cannot be read as it was planned.
            StoreError: if the store cannot be written.
            ShardCancelledError: after ``stop``, unless computing had begun.
        """
        with self._reading:
            self._continue_or_cancel(shard)
            rejected: list[RejectedRecord] = []
            documents = list(read_shard(shard, self._sources, rejected.append))
            self._require_planned(shard, documents)
            tokenized = self._tokenize(documents)
        memory = self._compute.submit(self._compress, shard, tokenized).result()
        return ShardResult(self._write(shard, documents, tokenized, memory, rejected))

    def sample(self, shard: Shard, vectors: int) -> tuple[np.ndarray, list[int]]:
        """Compress documents spread evenly over a shard, for a calibration: so many vectors, or all that it has.

        Returns:
            values ``(Σ n_mem, dim)`` float32, and the lengths of the documents.

        Raises:
            CorpusError: if the corpus cannot be read as it was planned.
        """
        with self._reading:
            tokenized = self._tokenize(list(read_shard(shard, self._sources)))
        total = sum(document.n_mem for document in tokenized)
        count = min(len(tokenized), -(-vectors * len(tokenized) // max(total, 1)))
        places = np.linspace(0, len(tokenized) - 1, count).round().astype(int).tolist()
        chosen = [tokenized[place] for place in places]
        memory = self._compute.submit(self._compress, shard, chosen).result()
        return memory.values.float().numpy(), [document.n_mem for document in chosen]

    def stop(self) -> None:
        """Cancel the shards that have not begun to compute."""
        self._stopping.set()

    def close(self) -> None:
        """End the compute thread."""
        self._compute.shutdown(cancel_futures=True)

    def _continue_or_cancel(self, shard: Shard) -> None:
        if self._stopping.is_set():
            raise ShardCancelledError(f"shard {shard.number} was not begun")

    def _require_planned(self, shard: Shard, documents: Sequence[Document]) -> None:
        # Where records are cut into documents the first plan does not know how many there will be; those of an update
        # were counted as they were read.
        cut = any(self._spec.sources[part.source]["passage_words"] for part in shard.slices)
        if shard.selection is None and not cut and len(documents) != shard.records:
            names = ", ".join(self._sources[part.source].name for part in shard.slices)
            raise CorpusError(
                f"Shard {shard.number} was planned with {shard.records} documents and {names} now has "
                f"{len(documents)} there. The corpus changed while it was read: run the build again."
            )

    def _tokenize(self, documents: Sequence[Document]) -> list[TokenizedDocument]:
        compression = self._spec.compression
        texts = [compression.input_text(document.text, document.title) for document in documents]
        repeated = [compression.repeated(document.title) for document in documents]
        return list(self._tokenizer.tokenize(texts, repeated))

    def _compress(self, shard: Shard, tokenized: Sequence[TokenizedDocument]) -> Memory:
        self._continue_or_cancel(shard)
        passages = [passage for document in tokenized for passage in document.passages]
        return self._compressor.compress(passages, stage=self._spec.stage)

    def _write(
        self,
        shard: Shard,
        documents: Sequence[Document],
        tokenized: Sequence[TokenizedDocument],
        memory: Memory,
        rejected: Sequence[RejectedRecord],
    ) -> WrittenShard:
        payloads = [*self._encode(documents, tokenized, memory)]
        keep, compression = self._spec.keep, self._spec.compression
        rows = memory_rows(
            doc_ids=[document.doc_id for document in documents],
            tokens_total=[document.tokens_total for document in tokenized],
            tokens_fed=[document.tokens_fed for document in tokenized],
            payloads=payloads,
            text_hashes=[text_hash(compression.input_text(d.text, d.title)) for d in documents],
            errors=[None] * len(documents),
            titles=[document.title for document in documents] if "title" in keep else None,
            texts=[document.text for document in documents] if "text" in keep else None,
        )
        refused = rejected_rows(
            sources=[record.source for record in rejected],
            doc_ids=[record.doc_id for record in rejected],
            errors=[record.error for record in rejected],
        )
        return write_fragment(self._spec.uri, shard.number, rows, refused)

    def _encode(
        self, documents: Sequence[Document], tokenized: Sequence[TokenizedDocument], memory: Memory
    ) -> Iterator[bytes]:
        ids = [document.doc_id for document in documents]
        lengths = [tokens.n_mem for tokens in tokenized]
        start = 0
        for first in range(0, len(ids), ENCODED_AT_ONCE):
            part = slice(first, first + ENCODED_AT_ONCE)
            stop = start + sum(lengths[part])
            values = memory.values[start:stop].float().numpy()
            yield from encode_batch(ids[part], values, lengths[part], self._codec, self._calibration)
            start = stop

    @cached_property
    def _calibration(self) -> Calibration | None:
        """The store's, which is there before the first shard is given out."""
        return Store.open(self._spec.uri).own_calibration()


def passage_tokenizer(checkpoint: Checkpoint, compression: CompressionConfig) -> PassageTokenizer:
    """The tokenizer of a checkpoint's compressor, cutting as configured."""
    return PassageTokenizer(
        checkpoint.compressor_tokenizer,
        rate=checkpoint.rate,
        max_length=compression.max_length,
        on_long=compression.on_long,
        overlap=compression.overlap,
    )
