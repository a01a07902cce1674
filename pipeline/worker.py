"""The worker: turns one shard of records into a written fragment. It knows no framework and commits nothing."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from ..configs import CompressionConfig
from ..configs.names import AttentionName
from ..corpus import Document, OnRejected, RejectedRecord, is_cut
from ..errors import CorpusError, PiscoIndexError
from ..model.compressor import Compressor
from ..model.families import open_checkpoint
from ..model.forward.packing import Passages
from ..model.forward.pending import PendingMemory
from ..model.memory import Memory, Stage
from ..model.passages import DocumentTokenizer, TokenizedDocument, tokenize_documents
from ..store import (
    Calibration,
    Store,
    WrittenShard,
    codec_by_name,
    encode_batch,
    has_contents,
    memory_rows,
    rejected_rows,
    text_hash,
    write_fragment,
)
from .nothing import NoCompressor, NoMemory, NoPassages
from .patience import patiently
from .planning.plan import Shard
from .planning.reading import open_sources, read_shard
from .steps import Pulse, Steps

Item = TypeVar("Item")

# Shards in flight in one worker: one is computed, one prepared, one finished and written.
DEPTH = 3
# Documents encoded together, and documents read or tokenized between two steps.
ENCODED_AT_ONCE = 256


class ShardCancelledError(PiscoIndexError):
    """The worker was stopped before it began to compute the shard."""


@dataclass(frozen=True)
class WorkerSpec:
    """Everything a worker requires, as plain values that any process can receive.

    Attributes:
        checkpoint: folder of the checkpoint.
        compression: settings that turn documents into passages.
        stage: stage at which memory is stored.
        codec: name of the codec that memory is stored with.
        keep: fields of the document that are stored with its memory.
        uri: address of the store.
        sources: descriptions from which the plan's sources are opened.
        device: device that the compressor runs on.
        token_budget: largest number of tokens in a batch; None is the device's default.
        compiled: True to compile the compressor's layers; None compiles them on a GPU.
        attention: name of the attention kernel.
        threads: number of CPU threads to compute with; None keeps torch's own number.
        store_patience_s: seconds to wait for a store that cannot be reached.
        at_question: True if memory is made with each question: the worker writes texts and compresses nothing.
        decoder_base: base decoder, if not the one that the checkpoint names.
        compressor_base: base of the compressor, if not the one that the checkpoint names.
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
    compiled: bool | None = None
    attention: AttentionName = "auto"
    threads: int | None = None
    store_patience_s: float = 0.0
    at_question: bool = False
    decoder_base: str | None = None
    compressor_base: str | None = None


@dataclass(frozen=True)
class Quarantined:
    """A document that cannot be compressed, with its error."""

    doc_id: str
    error: str


@dataclass(frozen=True)
class ShardResult:
    """A worker's report of a shard: under 100 KB, because the data are in the store's files.

    Attributes:
        written: written files and counts, for the commit.
        quarantined: documents whose rows have an error in place of memory.
    """

    written: WrittenShard
    quarantined: tuple[Quarantined, ...] = ()


class ShardWorker:
    """Reads, tokenizes, compresses, encodes and writes shards. Several are in flight, one of them is computed.

    ``run`` is called from ``DEPTH`` threads, so that reading and writing overlap with computing.

    Args:
        spec: everything the worker requires.
    """

    def __init__(self, spec: WorkerSpec):
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        self._spec = spec
        self._sources = open_sources(spec.sources)
        self._codec = codec_by_name(spec.codec)
        self._tokenizer, self._compressor = _compressing(spec)
        # The same thread computes every time: torch keeps its thread pool, and CUDA its stream, for each thread.
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._reading = threading.Lock()
        self._stopping = threading.Event()
        self._steps = Steps()
        self._read: tuple[int, list[Document]] | None = None

    def run(self, shard: Shard, quarantined: Mapping[int, str] | None = None) -> ShardResult:
        """Do one shard. Its files are not visible in the store until they are committed.

        Args:
            shard: shard to do.
            quarantined: errors of the documents that are not compressed, by their places in the shard.

        Raises:
            CorpusError: the corpus cannot be read as it was planned.
            StoreError: the store cannot be written.
            ShardCancelledError: ``stop`` was called before the shard was computed.
        """
        errors = quarantined or {}
        with self._reading, self._steps.doing("reading", shard):
            self._require_running(shard)
            rejected: list[RejectedRecord] = []
            documents = self._documents(shard, rejected.append)
            kept = [document for place, document in enumerate(documents) if place not in errors]
            tokenized = self._tokenize(kept)
        memory = self._memory(shard, tokenized)
        with self._steps.doing("writing", shard):
            written = self._write(shard, documents, errors, tokenized, memory, rejected)
        return ShardResult(written, tuple(Quarantined(documents[place].doc_id, errors[place]) for place in errors))

    def count(self, shard: Shard) -> int:
        """Return the number of a shard's documents, and keep them for ``attempt``.

        Raises:
            CorpusError: the corpus cannot be read as it was planned.
        """
        with self._reading, self._steps.doing("reading", shard):
            documents = self._documents(shard)
        self._read = shard.number, documents
        return len(documents)

    def attempt(self, shard: Shard, start: int, stop: int) -> None:
        """Tokenize, compress and encode some documents of a shard and discard the result, to see whether they fail.

        Args:
            shard: shard of the documents.
            start: place of the first document.
            stop: place after the last document.
        """
        if self._read is None or self._read[0] != shard.number:
            self.count(shard)
        assert self._read is not None
        documents = self._read[1][start:stop]
        tokenized = self._tokenize(documents)
        memory = self._memory(shard, tokenized)
        with self._steps.doing("writing", shard):
            list(self._encode(documents, tokenized, memory))

    @property
    def token_budget(self) -> int:
        """Largest number of tokens in a batch of the compressor."""
        return self._compressor.token_budget

    def pulse(self) -> Pulse:
        """Return the present activity. It answers while other threads work."""
        return self._steps.pulse()

    def sample(self, shard: Shard, vectors: int) -> tuple[np.ndarray, list[int]]:
        """Compress documents spread evenly over a shard, to fit a codec to them.

        Args:
            shard: shard of the documents.
            vectors: number of vectors wanted; the shard's documents may have fewer.

        Returns:
            Values, ``(Σ n_mem, dim)`` float32, and the number of vectors of each document.

        Raises:
            CorpusError: the corpus cannot be read as it was planned.
        """
        with self._reading, self._steps.doing("reading", shard):
            # Each document has at least one vector, so ``vectors`` documents are enough.
            tokenized = self._tokenize(_evenly(list(read_shard(shard, self._sources)), vectors))
        total = sum(document.n_mem for document in tokenized)
        chosen = _evenly(tokenized, -(-vectors * len(tokenized) // max(total, 1)))
        memory = self._memory(shard, chosen)
        return memory.values.float().numpy(), [document.n_mem for document in chosen]

    def stop(self) -> None:
        """Cancel the shards whose computation has not begun."""
        self._stopping.set()

    def close(self, *, wait: bool = True) -> None:
        """End the compute thread when it has finished its shard.

        Args:
            wait: True to wait until the thread has ended.
        """
        self._compute.shutdown(wait=wait, cancel_futures=True)

    def _require_running(self, shard: Shard) -> None:
        if self._stopping.is_set():
            raise ShardCancelledError(f"shard {shard.number} was not begun")

    def _documents(self, shard: Shard, on_rejected: OnRejected = bool) -> list[Document]:
        documents = []
        for document in read_shard(shard, self._sources, on_rejected):
            documents.append(document)
            if len(documents) % ENCODED_AT_ONCE == 0:
                self._steps.take()
        self._require_planned(shard, documents)
        return documents

    def _require_planned(self, shard: Shard, documents: Sequence[Document]) -> None:
        # The plan of a new store does not know the number of documents if records are cut into several. The documents
        # of an update were counted when they were read.
        cut = any(is_cut(self._spec.sources[part.source]) for part in shard.slices)
        if shard.selection is None and not cut and len(documents) != shard.records:
            names = ", ".join(self._sources[part.source].name for part in shard.slices)
            raise CorpusError(
                f"shard {shard.number} was planned with {shard.records} documents, but {names} now has "
                f"{len(documents)} there. The corpus changed while it was read: run the build again."
            )

    def _tokenize(self, documents: Sequence[Document]) -> list[TokenizedDocument]:
        tokenized = []
        for document in tokenize_documents(self._tokenizer, documents, self._spec.compression):
            tokenized.append(document)
            if len(tokenized) % ENCODED_AT_ONCE == 0:
                self._steps.take()
        return tokenized

    def _memory(self, shard: Shard, tokenized: Sequence[TokenizedDocument]) -> Memory:
        # The passages become one array here, because the device waits for all work of the compute thread.
        passages = Passages.of([passage for document in tokenized for passage in document.passages])
        with ExitStack() as computing:
            launched = self._compute.submit(self._compress, shard, tokenized, passages, computing).result()
            # Meanwhile the compute thread launches the next shard.
            return launched.finish()

    def _compress(
        self, shard: Shard, tokenized: Sequence[TokenizedDocument], passages: Passages, computing: ExitStack
    ) -> PendingMemory | NoMemory:
        self._require_running(shard)
        computing.enter_context(self._steps.doing("compressing", shard))
        total, done = len(passages.ids), 0

        def computed(count: int, tokens: int) -> None:
            nonlocal done
            done += tokens
            self._steps.computed(shard, len(tokenized) * count / len(passages), tokens, done / total)

        return self._compressor.launch(passages, stage=self._spec.stage, on_batch=computed)

    def _write(
        self,
        shard: Shard,
        documents: Sequence[Document],
        errors: Mapping[int, str],
        tokenized: Sequence[TokenizedDocument],
        memory: Memory,
        rejected: Sequence[RejectedRecord],
    ) -> WrittenShard:
        order = range(len(documents))
        places = [place for place in order if place not in errors]
        tokens = dict(zip(places, tokenized, strict=True))
        encoded = self._encode([documents[place] for place in places], tokenized, memory)
        payloads = dict(zip(places, encoded, strict=True))
        keep = self._spec.keep
        contents = [self._spec.compression.input_text(document.text, document.title) for document in documents]
        rows = memory_rows(
            doc_ids=[document.doc_id for document in documents],
            tokens_total=[tokens[place].tokens_total if place in tokens else 0 for place in order],
            tokens_fed=[tokens[place].tokens_fed if place in tokens else 0 for place in order],
            payloads=[payloads.get(place) for place in order],
            text_hashes=list(map(text_hash, contents)),
            errors=[errors.get(place) for place in order],
            titles=[document.title for document in documents] if "title" in keep else None,
            texts=[document.text for document in documents] if "text" in keep else None,
            contents=contents if has_contents(self._store.table) else None,
        )
        refused = rejected_rows(
            sources=[record.source for record in rejected],
            doc_ids=[record.doc_id for record in rejected],
            errors=[record.error for record in rejected],
        )
        return patiently(
            lambda: write_fragment(self._spec.uri, shard.number, rows, refused),
            self._spec.uri,
            self._spec.store_patience_s,
            given_up=self._is_given_up,
        )

    def _is_given_up(self) -> bool:
        # A worker that waits for the store takes steps, because it does not hang.
        self._steps.take()
        return self._stopping.is_set()

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
            self._steps.take()

    @cached_property
    def _store(self) -> Store:
        """The store, which exists before the first shard is submitted. Only what never changes is read from it."""
        return Store.open(self._spec.uri)

    @cached_property
    def _calibration(self) -> Calibration | None:
        return self._store.own_calibration()


def _compressing(spec: WorkerSpec) -> tuple[DocumentTokenizer, Compressor | NoCompressor]:
    checkpoint = open_checkpoint(spec.checkpoint, decoder_base=spec.decoder_base, compressor_base=spec.compressor_base)
    if spec.at_question:
        return NoPassages(), NoCompressor(checkpoint.memory_dim(spec.stage), spec.stage)
    compressor = Compressor.load(
        checkpoint,
        dtype=getattr(torch, spec.compression.dtype),
        device=spec.device,
        token_budget=spec.token_budget,
        compiled=spec.compiled,
        attention=spec.attention,
    )
    return checkpoint.passage_tokenizer(spec.compression), compressor


def _evenly(items: list[Item], count: int) -> list[Item]:
    """Return ``count`` items spread evenly over a list, or all of it if it is shorter."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places.tolist()]
