"""What a build will take: counted from the plan, measured on a sample of the corpus."""

import time
from dataclasses import dataclass
from itertools import islice

import torch

from ..configs import CompressionConfig
from ..model.checkpoint import Checkpoint
from ..model.compressor import Compressor
from ..model.memory import Stage
from ..store import codec_by_name
from .plan import Plan, Slice, open_sources
from .worker import passage_tokenizer

SAMPLE_SHARDS = 8
SAMPLE_DOCUMENTS = 32

# What a row takes beside its vectors (id, counts, hash, headers, a short title) and a shard's file beside its rows.
ROW_BYTES = 80
SHARD_BYTES = 5_500


@dataclass(frozen=True)
class Estimate:
    """The size of a build. All but the first two are extrapolated from a sample.

    Attributes:
        records: lines, rows or pages of the corpus.
        shards: of the plan.
        documents: what they become.
        tokens: of their texts.
        memory_tokens: vectors to store.
        store_bytes: on disk.
        device: that was probed.
        workers: that are to be used.
        passages_per_s: of one worker on the device.
        seconds: of computing, all workers together.
    """

    records: int
    shards: int
    documents: int
    tokens: int
    memory_tokens: int
    store_bytes: int
    device: str
    workers: int
    passages_per_s: float
    seconds: float


def estimate(
    plan: Plan,
    checkpoint: Checkpoint,
    compression: CompressionConfig,
    *,
    stage: Stage,
    codec: str,
    device: str,
    workers: int,
    token_budget: int | None = None,
) -> Estimate:
    """Read and tokenize a sample of the corpus, compress it once, and extrapolate by characters.

    Raises:
        CorpusError: if the sample cannot be read.
    """
    sources = open_sources(plan.sources)
    tokenizer = passage_tokenizer(checkpoint, compression)
    step = max(1, len(plan.shards) // SAMPLE_SHARDS)
    texts: list[str] = []
    for shard in plan.shards[::step]:
        part: Slice = shard.slices[0]
        documents = list(islice(sources[part.source].read(part.start, part.stop), SAMPLE_DOCUMENTS))
        texts += [compression.input_text(document.text, document.title) for document in documents]
    characters = sum(map(len, texts))
    tokenized = list(tokenizer.tokenize(texts))
    # Records are cut into documents only where their source says so; elsewhere one is one.
    cut = any(spec["passage_words"] for spec in plan.sources)
    documents = round(plan.characters * len(texts) / max(characters, 1)) if cut else plan.records
    scale = documents / max(len(texts), 1)
    passages = [passage for document in tokenized for passage in document.passages]
    memory_tokens = sum(document.n_mem for document in tokenized)
    dim = checkpoint.connector.in_dim if stage == "hidden" else checkpoint.connector.out_dim
    vector_bytes = dim * codec_by_name(codec).bits_per_value / 8

    compressor = Compressor.load(
        checkpoint, dtype=getattr(torch, compression.dtype), device=device, token_budget=token_budget
    )
    compressor.compress(passages[:2], stage=stage)
    began = time.perf_counter()
    compressor.compress(passages, stage=stage)
    speed = len(passages) / max(time.perf_counter() - began, 1e-9)
    return Estimate(
        records=plan.records,
        shards=len(plan.shards),
        documents=documents,
        tokens=round(sum(document.tokens_total for document in tokenized) * scale),
        memory_tokens=round(memory_tokens * scale),
        store_bytes=round((memory_tokens * vector_bytes + ROW_BYTES * len(texts)) * scale)
        + SHARD_BYTES * len(plan.shards),
        device=device,
        workers=workers,
        passages_per_s=speed,
        seconds=len(passages) * scale / speed / workers,
    )
