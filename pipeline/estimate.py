"""What a build will take: counted from the plan, measured on a sample of the corpus."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..configs import CompressionConfig
from ..model.compressor import Compressor
from ..model.families.pisco import Checkpoint
from ..model.forward.packing import Passages
from ..model.memory import Stage
from ..model.passages import TokenizedDocument
from ..store import Prediction, codec_by_name, predict
from .planning.plan import Changes, Plan, open_sources, read_shard
from .worker import passage_tokenizer

SAMPLE_SHARDS = 8
SAMPLE_DOCUMENTS = 256
# For so long the probe is timed again and again: a moment may be a busy one of the machine.
PROBE_SECONDS = 2.0
PROBE_TOKENS = 16_384
PROBE_BATCHES = 4

# What a row takes beside its payload (id, counts, hash, a short title) and a shard's file beside its rows.
ROW_BYTES = 56
SHARD_BYTES = 5_500


@dataclass(frozen=True)
class Estimate:
    """The size of a build. All but the first two are extrapolated from a sample.

    Attributes:
        records: lines, rows or pages of the corpus.
        shards: of the plan.
        documents: what they become.
        passages: what these become.
        tokens: of their texts.
        memory_tokens: vectors to store.
        store_bytes: on disk.
        device: that was probed.
        workers: that are to be used.
        passages_per_s: of one worker on the device; the median of some timings.
        passages_per_s_range: the slowest and the fastest of them.
        seconds: of computing, all workers together.
        codec: what the codec makes of what was compressed. Its error is told where that suffices to fit the codec.
        rejected: records that cannot be used, by reason.
        changes: what an update changes; None for a new store or one whose build goes on.
    """

    records: int
    shards: int
    documents: int
    passages: int
    tokens: int
    memory_tokens: int
    store_bytes: int
    device: str
    workers: int
    passages_per_s: float
    passages_per_s_range: tuple[float, float]
    seconds: float
    codec: Prediction
    rejected: Mapping[str, int]
    changes: Changes | None = None


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
    compiled: bool | None = None,
) -> Estimate:
    """Read and tokenize a sample of the corpus, compress it once, and extrapolate by characters.

    Raises:
        CorpusError: if the sample cannot be read.
    """
    sources = open_sources(plan.sources)
    shards = [shard for shard in plan.shards if shard.records]
    shards = shards[:: max(1, len(shards) // SAMPLE_SHARDS)]
    sample = [document for shard in shards for document in read_shard(shard, sources)]
    # Records are cut into documents only where their source says so; elsewhere one is one.
    cut = any(spec["passage_words"] for spec in plan.sources)
    # A record more than its characters, since a corpus may have none.
    sampled = sum(shard.characters + shard.records for shard in shards)
    sampled_share = sampled / max(plan.characters + plan.records, 1)
    documents = round(len(sample) / max(sampled_share, 1e-9)) if cut else plan.records

    picked = sample[:: max(1, len(sample) // SAMPLE_DOCUMENTS)]
    texts = [compression.input_text(d.text, d.title) for d in picked]
    repeated = [compression.repeated(d.title) for d in picked]
    tokenized = list(passage_tokenizer(checkpoint, compression).tokenize(texts, repeated))
    scale = documents / max(len(texts), 1)
    passages = [passage for document in tokenized for passage in document.passages]
    memory_tokens = sum(document.n_mem for document in tokenized)
    dim = checkpoint.connector.in_dim if stage == "hidden" else checkpoint.connector.out_dim

    compressor = Compressor.load(
        checkpoint,
        dtype=getattr(torch, compression.dtype),
        device=device,
        token_budget=token_budget,
        compiled=compiled,
    )
    probed = list(_up_to(tokenized, max(PROBE_TOKENS, compressor.token_budget)))
    probe = [passage for document in probed for passage in document.passages]
    values = compressor.compress(probe, stage=stage).values.float().numpy()
    chosen = codec_by_name(codec)
    # A sample that is the whole corpus is all that a build would fit the codec to, too.
    is_enough = len(values) >= chosen.sample_vectors(dim) or len(probed) == documents
    prediction = predict(
        chosen, values, [document.n_mem for document in probed], chosen.calibrate(values), is_enough=is_enough
    )
    # A GPU is not filled by less than some batches.
    repeats = -(-PROBE_BATCHES * compressor.token_budget // max(sum(map(len, probe)), 1))
    speeds = _passages_per_s(compressor, Passages.of(probe * repeats), stage)
    speed = statistics.median(speeds)
    return Estimate(
        records=plan.records,
        shards=len(plan.shards),
        documents=documents,
        passages=round(len(passages) * scale),
        tokens=round(sum(document.tokens_total for document in tokenized) * scale),
        memory_tokens=round(memory_tokens * scale),
        store_bytes=round((memory_tokens * dim * prediction.bits_per_value / 8 + ROW_BYTES * len(texts)) * scale)
        + SHARD_BYTES * len(plan.shards),
        device=device,
        workers=workers,
        passages_per_s=speed,
        passages_per_s_range=(min(speeds), max(speeds)),
        seconds=len(passages) * scale / speed / workers,
        codec=prediction,
        rejected=plan.rejected,
        changes=plan.changes,
    )


def _up_to(documents: Sequence[TokenizedDocument], tokens: int) -> Iterator[TokenizedDocument]:
    for document in documents:
        yield document
        tokens -= sum(map(len, document.passages))
        if tokens <= 0:
            return


def _passages_per_s(compressor: Compressor, passages: Passages, stage: Stage) -> list[float]:
    speeds, began = [], time.perf_counter()
    while not speeds or time.perf_counter() - began < PROBE_SECONDS:
        start = time.perf_counter()
        compressor.compress(passages, stage=stage)
        speeds.append(max(len(passages), 1) / max(time.perf_counter() - start, 1e-9))
    return speeds
