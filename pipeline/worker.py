"""The worker: one shard from records to a written fragment. It knows no framework and commits nothing."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch

from ..configs import CompressionConfig
from ..corpus import Document, OnRejected, RejectedRecord
from ..errors import CorpusError, PiscoIndexError
from ..model.compressor import Compressor, Launched
from ..model.families.pisco import Checkpoint
from ..model.forward.packing import Passages
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
from .patience import patiently
from .planning.plan import Shard, open_sources, read_shard

Item = TypeVar("Item")

# Shards a worker has in hand: one computing, one being prepared, one being finished and written.
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
        token_budget: most tokens in a batch; None is the device's default.
        compiled: whether the compressor's layers are compiled; None is on a GPU.
        threads: CPU threads to compute with; None leaves torch's own number.
        store_patience_s: for how long to wait for a store that cannot be reached.
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
    threads: int | None = None
    store_patience_s: float = 0.0


@dataclass(frozen=True)
class Quarantined:
    """A document that cannot be compressed."""

    doc_id: str
    error: str


@dataclass(frozen=True)
class ShardResult:
    """What a worker reports of a shard: under 100 KB, the data are in the store's files.

    Attributes:
        written: for the commit.
        quarantined: documents whose rows have an error in place of memory.
    """

    written: WrittenShard
    quarantined: tuple[Quarantined, ...] = ()


Busy = Literal["compressing", "reading", "writing"]


@dataclass(frozen=True)
class Pulse:
    """What a worker does, and a count of its steps: one that hangs takes none.

    Attributes:
        doing: what it is busy with; computing counts before reading and writing.
        shard: with which shard.
        documents: compressed since it started.
        tokens: compressed since it started.
        steps: batches computed, chunks read and encoded, files written.
        part: of that shard that is compressed, 0 to 1; None without one.
    """

    doing: Literal["waiting"] | Busy
    shard: int | None
    documents: int
    tokens: int
    steps: int
    part: float | None = None


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
            compiled=spec.compiled,
        )
        # One thread computes, always the same: torch keeps its thread pool and CUDA its stream by thread.
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._reading = threading.Lock()
        self._stopping = threading.Event()
        self._steps = _Steps()
        self._read: tuple[int, list[Document]] | None = None

    def run(self, shard: Shard, quarantined: Mapping[int, str] | None = None) -> ShardResult:
        """Do one shard; what it wrote is not visible until it is committed.

        Args:
            shard: which.
            quarantined: errors of documents that are not compressed, by their place in the shard.

        Raises:
            CorpusError: if the corpus cannot be read as it was planned.
            StoreError: if the store cannot be written.
            ShardCancelledError: after ``stop``, unless computing had begun.
        """
        errors = quarantined or {}
        with self._reading, self._steps.doing("reading", shard):
            self._continue_or_cancel(shard)
            rejected: list[RejectedRecord] = []
            documents = self._documents(shard, rejected.append)
            kept = [document for place, document in enumerate(documents) if place not in errors]
            tokenized = self._tokenize(kept)
        memory = self._memory(shard, tokenized)
        with self._steps.doing("writing", shard):
            written = self._write(shard, documents, errors, tokenized, memory, rejected)
        return ShardResult(written, tuple(Quarantined(documents[place].doc_id, errors[place]) for place in errors))

    def count(self, shard: Shard) -> int:
        """Number of a shard's documents, which ``attempt`` then does not read again.

        Raises:
            CorpusError: if the corpus cannot be read as it was planned.
        """
        with self._reading, self._steps.doing("reading", shard):
            documents = self._documents(shard)
        self._read = shard.number, documents
        return len(documents)

    def attempt(self, shard: Shard, start: int, stop: int) -> None:
        """Tokenize, compress and encode some of a shard's documents, and keep nothing: to see whether they can be.

        Args:
            shard: which.
            start: place of the first.
            stop: place behind the last.
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
        """Most tokens in a batch of its compressor."""
        return self._compressor.token_budget

    def pulse(self) -> Pulse:
        """What it does now. It answers while other threads work."""
        return self._steps.pulse()

    def sample(self, shard: Shard, vectors: int) -> tuple[np.ndarray, list[int]]:
        """Compress documents spread evenly over a shard, for a calibration: so many vectors, or all that it has.

        Returns:
            values ``(Σ n_mem, dim)`` float32, and the lengths of the documents.

        Raises:
            CorpusError: if the corpus cannot be read as it was planned.
        """
        with self._reading, self._steps.doing("reading", shard):
            # Each has a vector at least, so no more are tokenized.
            tokenized = self._tokenize(_evenly(list(read_shard(shard, self._sources)), vectors))
        total = sum(document.n_mem for document in tokenized)
        chosen = _evenly(tokenized, -(-vectors * len(tokenized) // max(total, 1)))
        memory = self._memory(shard, chosen)
        return memory.values.float().numpy(), [document.n_mem for document in chosen]

    def stop(self) -> None:
        """Cancel the shards that have not begun to compute."""
        self._stopping.set()

    def close(self, *, wait: bool = True) -> None:
        """End the compute thread, when it is done with what it computes."""
        self._compute.shutdown(wait=wait, cancel_futures=True)

    def _continue_or_cancel(self, shard: Shard) -> None:
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
        tokenized = []
        for document in self._tokenizer.tokenize(texts, repeated):
            tokenized.append(document)
            if len(tokenized) % ENCODED_AT_ONCE == 0:
                self._steps.take()
        return tokenized

    def _memory(self, shard: Shard, tokenized: Sequence[TokenizedDocument]) -> Memory:
        # Put into one array here, since what the compute thread does not compute the device waits for.
        passages = Passages.of([passage for document in tokenized for passage in document.passages])
        with ExitStack() as computing:
            launched = self._compute.submit(self._compress, shard, tokenized, passages, computing).result()
            # That thread has the next shard to launch by now.
            return launched.finish()

    def _compress(
        self, shard: Shard, tokenized: Sequence[TokenizedDocument], passages: Passages, computing: ExitStack
    ) -> Launched:
        self._continue_or_cancel(shard)
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
        places = [place for place in range(len(documents)) if place not in errors]
        tokens = dict(zip(places, tokenized, strict=True))
        payloads = dict(
            zip(places, self._encode([documents[place] for place in places], tokenized, memory), strict=True)
        )
        keep, compression = self._spec.keep, self._spec.compression
        order = range(len(documents))
        rows = memory_rows(
            doc_ids=[document.doc_id for document in documents],
            tokens_total=[tokens[place].tokens_total if place in tokens else 0 for place in order],
            tokens_fed=[tokens[place].tokens_fed if place in tokens else 0 for place in order],
            payloads=[payloads.get(place) for place in order],
            text_hashes=[text_hash(compression.input_text(d.text, d.title)) for d in documents],
            errors=[errors.get(place) for place in order],
            titles=[document.title for document in documents] if "title" in keep else None,
            texts=[document.text for document in documents] if "text" in keep else None,
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
        # One that waits does not hang.
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
    def _calibration(self) -> Calibration | None:
        """The store's, which is there before the first shard is given out."""
        return Store.open(self._spec.uri).own_calibration()


class _Steps:
    """Counts what a worker's threads do."""

    # Of several threads the one that computes tells what the worker does.
    _RANKS: tuple[Busy, ...] = get_args(Busy)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # What is done with which shards, and the part of each that is done.
        self._busy: dict[Busy, dict[int, float]] = {name: {} for name in self._RANKS}
        self._documents = 0.0
        self._tokens = self._count = 0

    @contextmanager
    def doing(self, what: Busy, shard: Shard) -> Iterator[None]:
        with self._lock:
            self._busy[what][shard.number] = 1.0 if what == "writing" else 0.0
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy[what].pop(shard.number, None)
                self._count += 1

    def take(self) -> None:
        with self._lock:
            self._count += 1

    def computed(self, shard: Shard, documents: float, tokens: int, part: float) -> None:
        with self._lock:
            if shard.number in self._busy["compressing"]:
                self._busy["compressing"][shard.number] = part
            self._documents += documents
            self._tokens += tokens
            self._count += 1

    def pulse(self) -> Pulse:
        with self._lock:
            doing = next((name for name in self._RANKS if self._busy[name]), None)
            shard, part = next(iter(self._busy[doing].items())) if doing else (None, None)
            return Pulse(doing or "waiting", shard, round(self._documents), self._tokens, self._count, part)


def _evenly(items: list[Item], count: int) -> list[Item]:
    """So many items spread evenly over a list, or all of it."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places.tolist()]


def passage_tokenizer(checkpoint: Checkpoint, compression: CompressionConfig) -> PassageTokenizer:
    """The tokenizer of a checkpoint's compressor, cutting as configured."""
    return PassageTokenizer(
        checkpoint.compressor_tokenizer,
        rate=checkpoint.rate,
        max_length=compression.max_length,
        on_long=compression.on_long,
        overlap=compression.overlap,
    )
