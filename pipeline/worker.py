"""The worker: turns one shard of records into a written fragment. It knows no framework and commits nothing."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from ..configs import CompressionConfig
from ..configs.names import AttentionName
from ..corpus import Document
from ..model.compressor import Compressor
from ..model.decoding.sensitivity import Divergence
from ..model.families import open_checkpoint
from ..model.forward.packing import Passages
from ..model.forward.pending import PendingMemory
from ..model.memory import Memory, Stage
from ..model.passages import DocumentTokenizer
from ..store import (
    Calibration,
    MemorySample,
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
from .decoder_reader import DecoderReader
from .nothing import NoCompressor, NoMemory
from .patience import patiently
from .planning.plan import Shard
from .reading.readers import Readers, ShardCancelledError, readers_limit
from .reading.shard import NoPassages, Reading, ReadShard, Tokens
from .steps import Pulse, Steps

Item = TypeVar("Item")

# Documents encoded together, between two steps.
ENCODED_AT_ONCE = 256


def depth(readers: int) -> int:
    """Return the number of shards in flight in a worker: one is computed, one written, and each reader reads one.

    Args:
        readers: number of reader processes; 0 if the worker's threads read.
    """
    return max(readers, 1) + 2


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
        reader_processes: number of processes that read; None starts as many as it takes, 0 reads in threads.
        hang_s: seconds without a step after which a reader process hangs.
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
    reader_processes: int | None = 0
    hang_s: float = 600.0

    @property
    def reader_limit(self) -> int:
        """Largest number of reader processes that the worker may start on the machine of this process."""
        return readers_limit(self.reader_processes, self.threads)


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

    ``run`` is called from ``depth(readers)`` threads, so that reading and writing overlap with computing.

    Args:
        spec: everything the worker requires.
    """

    def __init__(self, spec: WorkerSpec):
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        self._spec = spec
        self._codec = codec_by_name(spec.codec)
        tokenizer, self._compressor = _compressing(spec)
        self._memory_token_ids = tokenizer.memory_token_ids
        # The same thread computes every time: torch keeps its thread pool, and CUDA its stream, for each thread.
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._computed_at = 0.0
        self._stopping = threading.Event()
        self._steps = Steps()
        self._readers = Readers(
            Reading(spec.sources, spec.compression, tokenizer),
            count=spec.reader_processes,
            limit=spec.reader_limit,
            hang_s=spec.hang_s,
            steps=self._steps,
        )
        self._decoder = DecoderReader(
            *(spec.checkpoint, spec.stage, spec.device),
            decoder_base=spec.decoder_base,
            compressor_base=spec.compressor_base,
            on_step=self._steps.take,
        )
        self._counted: tuple[int, list[Document]] | None = None

    def run(self, shard: Shard, quarantined: Mapping[int, str] | None = None) -> ShardResult:
        """Do one shard. Its files are not visible in the store until they are committed.

        Args:
            shard: shard to do.
            quarantined: errors of the documents that are not compressed, by their places in the shard.

        Raises:
            CorpusError: the corpus cannot be read as it was planned.
            StoreError: the store cannot be written.
            ReaderDiedError: the processes that read the shard died or hung.
            ShardCancelledError: ``stop`` was called before the shard was computed.
        """
        # Another worker may have measured the divergence, or the decoder could read nothing.
        self._decoder.drop()
        errors = quarantined or {}
        read = self._readers.read(shard, frozenset(errors))
        compressed = [doc_id for place, doc_id in enumerate(read.doc_ids) if place not in errors]
        payloads, computed_s = self._payloads(shard, compressed, read.tokens)
        self._readers.compare(read.seconds, computed_s)
        with self._steps.doing("writing", shard):
            written = self._write(shard, read, errors, payloads)
        return ShardResult(written, tuple(Quarantined(read.doc_ids[place], errors[place]) for place in errors))

    def count(self, shard: Shard) -> int:
        """Return the number of a shard's documents, and keep them for ``attempt``.

        Raises:
            CorpusError: the corpus cannot be read as it was planned.
        """
        with self._steps.doing("reading", shard):
            documents = self._readers.here.documents(shard)
        self._counted = shard.number, documents
        return len(documents)

    def attempt(self, shard: Shard, start: int, stop: int) -> None:
        """Tokenize, compress and encode some documents of a shard and discard the result, to see whether they fail.

        Args:
            shard: shard of the documents.
            start: place of the first document.
            stop: place after the last document.
        """
        if self._counted is None or self._counted[0] != shard.number:
            self.count(shard)
        assert self._counted is not None
        documents = self._counted[1][start:stop]
        tokens = Tokens.of(self._readers.here.tokenize(documents))
        self._payloads(shard, [document.doc_id for document in documents], tokens)

    @property
    def token_budget(self) -> int:
        """Largest number of tokens in a batch of the compressor."""
        return self._compressor.token_budget

    def pulse(self) -> Pulse:
        """Return the present activity. It answers while other threads work."""
        return replace(self._steps.pulse(), readers=self._readers.count)

    def sample(self, shard: Shard, vectors: int) -> MemorySample:
        """Compress documents spread evenly over a shard, to fit a codec to them. Of long ones, the beginning suffices.

        Args:
            shard: shard of the documents.
            vectors: number of vectors wanted; the shard's documents may have fewer.

        Raises:
            CorpusError: the corpus cannot be read as it was planned.
        """
        reader = self._readers.here
        with self._steps.doing("reading", shard):
            # Each document has at least one vector, so ``vectors`` documents are enough.
            documents = _evenly(reader.documents(shard), vectors)
            whole = zip(documents, reader.tokenize(documents), strict=True)
            read = [(each, tokenized.beginning(vectors, self._memory_token_ids)) for each, tokenized in whole]
        total = sum(tokenized.n_mem for _, tokenized in read)
        chosen = _evenly(read, -(-vectors * len(read) // max(total, 1)))
        memory, _ = self._memory(shard, Tokens.of([tokenized for _, tokenized in chosen]))
        return MemorySample(
            memory.values.float().numpy(),
            [tokenized.n_mem for _, tokenized in chosen],
            [
                tokenized.fed_text(self._spec.compression.input_text(each.text, each.title))
                for each, tokenized in chosen
            ],
        )

    def sensitivity(self, sample: MemorySample) -> np.ndarray:
        """Return the Fisher matrix of a sample's memory (see ``DecoderReader``)."""
        return self._decoder.sensitivity(sample)

    def divergence(self, sample: MemorySample, decoded: np.ndarray) -> Divergence:
        """Measure how decoded memory changes predictions, and drop the decoder (see ``DecoderReader``)."""
        return self._decoder.divergence(sample, decoded)

    def stop(self) -> None:
        """Cancel the shards whose computation has not begun."""
        self._stopping.set()
        self._readers.stop()

    def close(self, *, wait: bool = True) -> None:
        """End the reader processes, and the compute thread when it has finished its shard.

        Args:
            wait: True to wait until the thread has ended.
        """
        self._readers.close()
        self._compute.shutdown(wait=wait, cancel_futures=True)

    def _require_running(self, shard: Shard) -> None:
        if self._stopping.is_set():
            raise ShardCancelledError(f"shard {shard.number} was not begun")

    def _payloads(self, shard: Shard, doc_ids: Sequence[str], tokens: Tokens) -> tuple[list[bytes], float]:
        """Return the payloads of documents, and the seconds that the device took for their memory alone."""
        memory, seconds = self._memory(shard, tokens)
        with self._steps.doing("writing", shard):
            return list(self._encode(doc_ids, tokens, memory)), seconds

    def _memory(self, shard: Shard, tokens: Tokens) -> tuple[Memory, float]:
        """Return the memory of a shard's passages, and the seconds that the device took for it alone."""
        passages = Passages(tokens.ids, tokens.lengths)
        with ExitStack() as computing:
            launched, began = self._compute.submit(self._compress, shard, tokens, passages, computing).result()
            # Meanwhile the compute thread launches the next shard.
            memory = launched.finish()
        now = time.perf_counter()
        seconds, self._computed_at = now - max(began, self._computed_at), now
        return memory, seconds

    def _compress(
        self, shard: Shard, tokens: Tokens, passages: Passages, computing: ExitStack
    ) -> tuple[PendingMemory | NoMemory, float]:
        self._require_running(shard)
        began = time.perf_counter()
        computing.enter_context(self._steps.doing("compressing", shard))
        total, done = len(passages.ids), 0

        def computed(count: int, batch_tokens: int) -> None:
            nonlocal done
            done += batch_tokens
            self._steps.computed(shard, len(tokens) * count / len(passages), batch_tokens, done / total)

        return self._compressor.launch(passages, stage=self._spec.stage, on_batch=computed), began

    def _write(
        self, shard: Shard, read: ReadShard, errors: Mapping[int, str], payloads: Sequence[bytes]
    ) -> WrittenShard:
        order = range(len(read.doc_ids))
        places = [place for place in order if place not in errors]
        payload_of = dict(zip(places, payloads, strict=True))
        tokens_total, tokens_fed = np.zeros((2, len(order)), np.int64)
        tokens_total[places], tokens_fed[places] = read.tokens.total, read.tokens.fed
        keep = self._spec.keep
        contents = [self._spec.compression.input_text(*each) for each in zip(read.texts, read.titles, strict=True)]
        rows = memory_rows(
            doc_ids=read.doc_ids,
            tokens_total=tokens_total.tolist(),
            tokens_fed=tokens_fed.tolist(),
            payloads=[payload_of.get(place) for place in order],
            text_hashes=list(map(text_hash, contents)),
            errors=[errors.get(place) for place in order],
            titles=read.titles if "title" in keep else None,
            texts=read.texts if "text" in keep else None,
            contents=contents if has_contents(self._store.table) else None,
        )
        refused = rejected_rows(
            sources=[record.source for record in read.rejected],
            doc_ids=[record.doc_id for record in read.rejected],
            errors=[record.error for record in read.rejected],
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

    def _encode(self, doc_ids: Sequence[str], tokens: Tokens, memory: Memory) -> Iterator[bytes]:
        lengths = tokens.n_mem.tolist()
        start = 0
        for first in range(0, len(doc_ids), ENCODED_AT_ONCE):
            part = slice(first, first + ENCODED_AT_ONCE)
            stop = start + sum(lengths[part])
            values = memory.numbers[start:stop]
            yield from encode_batch(doc_ids[part], values, lengths[part], self._codec, self._calibration)
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
