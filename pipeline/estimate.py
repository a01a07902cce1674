"""Estimate the size and duration of a build, from its plan and a compressed sample of the corpus."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..configs import BuildConfig, RunConfig
from ..corpus import is_cut, open_corpus, taken_for
from ..model.compressor import Compressor
from ..model.device import choose_device
from ..model.forward.packing import Passages
from ..model.memory import Stage
from ..model.passages import TokenizedDocument, tokenize_documents
from ..store import Prediction, codec_by_name, predict
from .job import Job, prepare
from .planning.plan import Changes, Plan
from .planning.reading import open_sources, read_shard
from .turns import next_turn
from .watch.progress import BuildProgress

# Shards that the sample is read from, and documents of them that are tokenized.
SAMPLE_SHARDS = 8
SAMPLE_DOCUMENTS = 256
# Seconds for which the probe is timed again and again, since the machine may be busy at any one moment.
PROBE_SECONDS = 2.0
# Smallest number of tokens compressed for the codec's prediction.
PROBE_TOKENS = 16_384
# Batches in a timed probe; fewer do not fill a GPU.
PROBE_BATCHES = 4

# Bytes of a row apart from its payload (id, counts, hash, a short title) and of a shard's file apart from its rows.
ROW_BYTES = 56
SHARD_BYTES = 5_500
# Size of the column that is searched, which Lance compresses, and of its index, per byte of the text.
SEARCH_SHARE = 0.9


@dataclass(frozen=True)
class Estimate:
    """The size of a build. Records and shards are counted, everything else is extrapolated from a sample.

    Attributes:
        records: number of lines, rows or pages of the corpus.
        shards: number of shards of the plan.
        documents: number of documents in the records.
        passages: number of passages in the documents.
        tokens: number of tokens of the texts.
        memory_tokens: number of vectors to store.
        store_bytes: size of the store on disk.
        device: device that was probed.
        workers: number of workers that the build would use.
        passages_per_s: passages per second of one worker on the device; the median of several timings.
        passages_per_s_range: slowest and fastest of these timings.
        seconds: seconds of computing for all workers together.
        codec: predicted size and error of the codec. The error is None if the sample is too small to fit the codec.
        rejected: number of records that cannot be used, by reason.
        changes: changes of an update; None for a new store or a resumed build.
        corpus: line for each file of the corpus, or several alike, that says what it was taken for.
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
    corpus: tuple[str, ...] = ()


def dry_run(
    corpus: Sequence[str | Path],
    checkpoint: str | Path,
    out: str | Path,
    config: BuildConfig | None = None,
    *,
    decoder_base: str | None = None,
    compressor_base: str | None = None,
    prune: bool = False,
    replan: bool = False,
    progress: BuildProgress | None = None,
) -> Estimate:
    """Plan a build and estimate its size and time without writing anything. The arguments are those of ``build``.

    Raises:
        InputError: an input cannot be used, as in ``build``.
    """
    progress = progress or BuildProgress()
    try:
        bases = {"decoder_base": decoder_base, "compressor_base": compressor_base}
        job = prepare(corpus, checkpoint, out, config or BuildConfig(), **bases, prune=prune, replan=replan)
        if job.at_question:
            progress.keeping_text(job.config.store.keep)
        opened = open_corpus(job.paths, job.config.corpus)
        progress.left_out(opened.left_out)
        plan = next_turn(job, opened, progress).plan
    finally:
        progress.ended()
    return estimate(plan, job)


def estimate(plan: Plan, job: Job) -> Estimate:
    """Read and tokenize a sample of the corpus, compress it, and extrapolate by the number of characters.

    Raises:
        CorpusError: the sample cannot be read.
    """
    if job.at_question:
        return _estimate_texts(plan, job)
    # The probe runs on this machine, wherever the build will run.
    device = choose_device(job.config.run.device)
    workers = _workers(job.config.run, device)
    sample = _read_sample(plan, job)
    probe = _probe(sample, job, device)
    scale = sample.documents / max(len(sample.tokenized), 1)
    passages = scale * sum(len(document.passages) for document in sample.tokenized)
    vectors = sum(document.n_mem for document in sample.tokenized)
    payload_bytes = vectors * job.dim * probe.codec.bits_per_value / 8
    search_bytes = SEARCH_SHARE * sample.text_bytes if job.is_searchable else 0
    speed = statistics.median(probe.passages_per_s)
    return Estimate(
        records=plan.records,
        shards=len(plan.shards),
        documents=sample.documents,
        passages=round(passages),
        tokens=round(scale * sum(document.tokens_total for document in sample.tokenized)),
        memory_tokens=round(scale * vectors),
        store_bytes=round(scale * (payload_bytes + ROW_BYTES * len(sample.tokenized) + search_bytes))
        + SHARD_BYTES * len(plan.shards),
        device=device,
        workers=workers,
        passages_per_s=speed,
        passages_per_s_range=(min(probe.passages_per_s), max(probe.passages_per_s)),
        seconds=passages / speed / workers,
        codec=probe.codec,
        rejected=plan.rejected,
        changes=plan.changes,
        corpus=tuple(taken_for(plan.sources)),
    )


def _estimate_texts(plan: Plan, job: Job) -> Estimate:
    """Return the estimate of a store of texts. Nothing is computed, so that nothing needs to be timed."""
    return Estimate(
        records=plan.records,
        shards=len(plan.shards),
        documents=plan.records,
        passages=0,
        tokens=0,
        memory_tokens=0,
        store_bytes=round(plan.characters * (1 + SEARCH_SHARE * job.is_searchable))
        + ROW_BYTES * plan.records
        + SHARD_BYTES * len(plan.shards),
        device=job.device,
        workers=job.config.run.workers or 1,
        passages_per_s=0.0,
        passages_per_s_range=(0.0, 0.0),
        seconds=0.0,
        codec=Prediction(job.config.store.codec, 0, 0.0, None, lossy=False, kl=None, fallbacks=0.0),
        rejected=plan.rejected,
        changes=plan.changes,
        corpus=tuple(taken_for(plan.sources)),
    )


@dataclass(frozen=True)
class _Sample:
    """A tokenized sample, the size of its texts in UTF-8, and the estimated number of documents that it stands for."""

    documents: int
    tokenized: Sequence[TokenizedDocument]
    text_bytes: int


@dataclass(frozen=True)
class _Probe:
    """The codec's prediction for a compressed part of the sample, and the speeds of compressing it."""

    codec: Prediction
    passages_per_s: Sequence[float]


def _workers(run: RunConfig, device: str) -> int:
    # "cuda:1" is one GPU, and "cuda" are all of them.
    return run.workers or (max(torch.cuda.device_count(), 1) if device == "cuda" else 1)


def _read_sample(plan: Plan, job: Job) -> _Sample:
    sources = open_sources(plan.sources)
    shards = [shard for shard in plan.shards if shard.records]
    shards = shards[:: max(1, len(shards) // SAMPLE_SHARDS)]
    found = [document for shard in shards for document in read_shard(shard, sources)]
    # One is added for each record, because a corpus may have no characters.
    sampled = sum(shard.characters + shard.records for shard in shards)
    share = sampled / max(plan.characters + plan.records, 1)
    # A record is one document unless its source cuts records into documents.
    cut = any(map(is_cut, plan.sources))
    documents = round(len(found) / max(share, 1e-9)) if cut else plan.records
    picked = found[:: max(1, len(found) // SAMPLE_DOCUMENTS)]
    compression = job.config.compression
    return _Sample(
        documents,
        list(tokenize_documents(job.checkpoint.passage_tokenizer(compression), picked, compression)),
        sum(len(compression.input_text(document.text, document.title).encode()) for document in picked),
    )


def _probe(sample: _Sample, job: Job, device: str) -> _Probe:
    run, codec = job.config.run, codec_by_name(job.config.store.codec)
    compressor = Compressor.load(
        job.checkpoint,
        dtype=getattr(torch, job.config.compression.dtype),
        device=device,
        token_budget=run.token_budget,
        compiled=run.compiled,
    )
    probed = list(_up_to(sample.tokenized, max(PROBE_TOKENS, compressor.token_budget)))
    passages = [passage for document in probed for passage in document.passages]
    values = compressor.compress(passages, stage=job.stage).values.float().numpy()
    # If the sample is the whole corpus, a build would fit the codec to the same vectors.
    is_enough = len(values) >= codec.sample_vectors(job.dim) or len(probed) == sample.documents
    lengths = [document.n_mem for document in probed]
    prediction = predict(codec, values, lengths, codec.calibrate(values), is_enough=is_enough)
    repeats = -(-PROBE_BATCHES * compressor.token_budget // max(sum(map(len, passages)), 1))
    return _Probe(prediction, _passages_per_s(compressor, Passages.of(passages * repeats), job.stage))


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
