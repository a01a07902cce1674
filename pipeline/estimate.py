"""Estimate the size and duration of a build, from its plan and a compressed sample of the corpus."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..configs import BuildConfig, RunConfig
from ..corpus import Document, is_cut, taken_for
from ..model.compressor import Compressor
from ..model.device import choose_device
from ..model.forward.packing import Passages
from ..model.memory import Stage
from ..model.passages import TokenizedDocument, tokenize_documents
from ..store import MemorySample, Prediction, Store, codec_by_name, encode_batch, fit, ids_at, predict
from .decoder_reader import DecoderReader, why_unread
from .job import Job, prepare
from .planning.plan import Changes, Plan
from .planning.reading import Shared, open_sources, read_shard
from .turns import Create, Update, next_turn
from .watch.progress import BuildProgress

# Shards that the sample is read from, and largest number of documents of them that are tokenized, and of characters.
SAMPLE_SHARDS = 8
SAMPLE_DOCUMENTS = 256
SAMPLE_CHARACTERS = 1 << 21
# Seconds and least number of trials that the probe is timed for, since the machine may be busy at any one moment.
PROBE_SECONDS = 2.0
PROBE_TRIALS = 3
# Smallest number of tokens compressed for the codec's prediction.
PROBE_TOKENS = 16_384
# Batches in a timed probe; fewer do not fill a GPU.
PROBE_BATCHES = 4

# Bytes of a row apart from its payload (id, counts, hash, a short title) and of a shard's file apart from its rows.
ROW_BYTES = 56
SHARD_BYTES = 5_500
# Size of the column that is searched, which Lance compresses, and of its index, per byte of the text.
SEARCH_SHARE = 0.9

# Bytes of text that are indexed in a second, and seconds for the files and commits of a build and of each shard.
INDEX_RATE = 4e6
BUILD_SECONDS = 1.0
SHARD_SECONDS = 0.1
# The range of a build's duration: factors for what a busy machine, the sample and overlapping work leave unknown.
RANGE = 0.6, 1.7


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
        passages_per_s: passages per second of one worker on the device; the median of several timings, 0 if there is
            nothing to compress.
        passages_per_s_range: slowest and fastest of these timings.
        seconds: expected seconds of the whole build, from planning to the search index.
        seconds_range: least and largest number of seconds that the build should take, if the machine does nothing else
            that it did not do during the dry run.
        codec: size and loss of the codec on the sample. The loss is None if the sample is too small to fit the codec.
        rejected: number of records that cannot be used, by reason.
        changes: changes of an update; None for a new store or a resumed build.
        corpus: line for each file of the corpus, or several alike, that says what it was taken for.
        needs_recompress: True if the build is refused without ``recompress``, because it replaces most of the store.
        pruned: ids of the documents that the update deletes.
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
    seconds_range: tuple[float, float]
    codec: Prediction
    rejected: Mapping[str, int]
    changes: Changes | None = None
    corpus: tuple[str, ...] = ()
    needs_recompress: bool = False
    pruned: tuple[str, ...] = ()


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
    recompress: bool = False,
    progress: BuildProgress | None = None,
) -> Estimate:
    """Plan a build and estimate its size and time without writing anything. The arguments are those of ``build``.

    Raises:
        InputError: an input cannot be used, as in ``build``.
    """
    progress = progress or BuildProgress()
    try:
        options = {"decoder_base": decoder_base, "compressor_base": compressor_base, "prune": prune, "replan": replan}
        job = prepare(corpus, checkpoint, out, config or BuildConfig(), **options, recompress=recompress)
        job.notify(progress)
        began = time.perf_counter()
        turn = next_turn(job, job.open_corpus(progress), progress)
        planned_s = time.perf_counter() - began
    finally:
        progress.ended()
    # A resumed build has some of its shards to do.
    store = None if isinstance(turn, Create) else turn.store
    found = _estimate(replace(turn.plan, shards=turn.todo), job, store, planned_s)
    if isinstance(turn, Update):
        needs_recompress = turn.needs_confirmation and not job.recompress
        found = replace(found, needs_recompress=needs_recompress, pruned=ids_at(turn.store, turn.gone))
    return found


def _estimate(plan: Plan, job: Job, store: Store | None, planned_s: float) -> Estimate:
    """Read and tokenize a sample of the corpus, compress it, and extrapolate by the number of characters.

    Raises:
        CorpusError: the sample cannot be read.
    """
    sample = None if job.at_question else _read_sample(plan, job)
    if sample is None or not sample.tokenized:
        return _estimate_texts(plan, job)
    # The probe runs on this machine, wherever the build will run.
    device = choose_device(job.config.run.device)
    workers = _workers(job.config.run, device)
    probe = _probe(sample, job, store, device)
    scale = sample.scale
    passages = scale * sum(len(document.passages) for document in sample.tokenized)
    tokens = scale * sum(len(passage) for document in sample.tokenized for passage in document.passages)
    vectors = sum(document.n_mem for document in sample.tokenized)
    payload_bytes = vectors * job.dim * probe.codec.bits_per_value / 8
    text_bytes = sample.text_bytes if job.is_searchable else 0
    # A new store's codec is fitted to a sample, which is compressed for that.
    codec = codec_by_name(job.config.store.codec)
    fitted = min(codec.sample_vectors(job.dim) / max(scale * vectors, 1), 1) if plan.changes is None else 0
    prepared_s = scale * (sample.seconds + probe.encoded_s * vectors) / workers
    fixed_s = planned_s + probe.loaded_s + probe.fitted_s + scale * text_bytes / INDEX_RATE + BUILD_SECONDS
    fixed_s += SHARD_SECONDS * len(plan.shards) / workers
    slowest, speed, fastest = min(probe.tokens_per_s), statistics.median(probe.tokens_per_s), max(probe.tokens_per_s)

    def seconds(tokens_per_s: float) -> float:
        return (1 / workers + fitted) * tokens / tokens_per_s + prepared_s + fixed_s

    per_token = passages / max(tokens, 1)
    return Estimate(
        records=plan.records,
        shards=len(plan.shards),
        documents=sample.documents,
        passages=round(passages),
        tokens=round(scale * sum(document.tokens_total for document in sample.tokenized)),
        memory_tokens=round(scale * vectors),
        store_bytes=round(scale * (payload_bytes + SEARCH_SHARE * text_bytes) + ROW_BYTES * sample.documents)
        + SHARD_BYTES * len(plan.shards)
        + probe.asset_bytes,
        device=device,
        workers=workers,
        passages_per_s=per_token * speed,
        passages_per_s_range=(per_token * slowest, per_token * fastest),
        seconds=seconds(speed),
        seconds_range=(RANGE[0] * seconds(fastest), RANGE[1] * seconds(slowest)),
        codec=probe.codec,
        rejected=plan.rejected,
        changes=plan.changes,
        corpus=tuple(taken_for(plan.sources)),
    )


def _estimate_texts(plan: Plan, job: Job) -> Estimate:
    """Return the estimate of a build that compresses nothing, so that nothing needs to be timed."""
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
        seconds_range=(0.0, 0.0),
        codec=Prediction(job.config.store.codec, 0, 0.0, None, lossy=False, kl=None, fallbacks=0.0),
        rejected=plan.rejected,
        changes=plan.changes,
        corpus=tuple(taken_for(plan.sources)),
    )


@dataclass(frozen=True)
class _Sample:
    """A tokenized sample of the plan's documents.

    Attributes:
        documents: estimated number of documents of the plan.
        scale: the plan's size over that of the sample.
        tokenized: tokenized documents.
        texts: their texts, as far as they are compressed.
        text_bytes: size of their whole texts in UTF-8.
        seconds: time that reading and tokenizing them took.
    """

    documents: int
    scale: float
    tokenized: Sequence[TokenizedDocument]
    texts: Sequence[str]
    text_bytes: int
    seconds: float


@dataclass(frozen=True)
class _Probe:
    """A compressed part of the sample.

    Attributes:
        codec: the codec's prediction for it.
        tokens_per_s: speeds of compressing it, memory tokens included.
        encoded_s: seconds of encoding a vector.
        loaded_s: seconds of loading the compressor.
        fitted_s: seconds of fitting the codec, without compressing the sample.
        asset_bytes: size of what a new store keeps once: its calibration and its connector.
    """

    codec: Prediction
    tokens_per_s: Sequence[float]
    encoded_s: float
    loaded_s: float
    fitted_s: float
    asset_bytes: int


def _workers(run: RunConfig, device: str) -> int:
    # "cuda:1" is one GPU, and "cuda" are all of them.
    return run.workers or (max(torch.cuda.device_count(), 1) if device == "cuda" else 1)


def _read_sample(plan: Plan, job: Job) -> _Sample:
    sources = open_sources(plan.sources)
    shards = [shard for shard in plan.shards if shard.records]
    step = max(1, len(shards) // SAMPLE_SHARDS)
    found, sampled, shared = list[Document](), 0, Shared()
    began = time.perf_counter()
    for number, shard in enumerate((*shards[::step], *(each for i, each in enumerate(shards) if i % step))):
        # Pages without prose give no document. Further shards are read until one does.
        if found and number * step >= len(shards):
            break
        found += read_shard(shard, sources, shared=shared)
        # One is added for each record, because a corpus may have no characters.
        sampled += shard.characters + shard.records
    read_s = time.perf_counter() - began
    share = sampled / max(sum(shard.characters + shard.records for shard in shards), 1)
    # A record is one document unless its source cuts records into documents.
    cut = any(map(is_cut, plan.sources))
    documents = round(len(found) / max(share, 1e-9)) if cut else plan.records
    size = sum(len(document.text) + 1 for document in found)
    picked = found[:: max(1, len(found) // SAMPLE_DOCUMENTS, size // SAMPLE_CHARACTERS)]
    part = sum(len(document.text) + 1 for document in picked) / max(size, 1)
    compression = job.config.compression
    began = time.perf_counter()
    tokenized = list(tokenize_documents(job.checkpoint.passage_tokenizer(compression), picked, compression))
    texts = [compression.input_text(document.text, document.title) for document in picked]
    return _Sample(
        documents=documents,
        scale=1 / max(share * part, 1e-9),
        tokenized=tokenized,
        texts=[each.fed_text(text) for each, text in zip(tokenized, texts, strict=True)],
        text_bytes=sum(len(text.encode()) for text in texts),
        seconds=time.perf_counter() - began + read_s * part,
    )


def _probe(sample: _Sample, job: Job, store: Store | None, device: str) -> _Probe:
    run, codec = job.config.run, codec_by_name(job.config.store.codec)
    began = time.perf_counter()
    compressor = Compressor.load(
        job.checkpoint,
        dtype=getattr(torch, job.config.compression.dtype),
        device=device,
        token_budget=run.token_budget,
        compiled=run.compiled,
        attention=run.attention,
    )
    loaded_s = time.perf_counter() - began
    probed, texts = _spread(sample, max(PROBE_TOKENS, compressor.token_budget))
    passages = [passage for document in probed for passage in document]
    memory = compressor.compress(passages, stage=job.stage)
    values, lengths = memory.values.float().numpy(), [sum(each.lengths) for each in memory.split([*map(len, probed)])]
    fitted_s, asset_bytes = 0.0, 0
    if store is not None:
        # The codec was fitted when the store was created.
        calibration = store.own_calibration()
        prediction = predict(codec, values, lengths, calibration)
    else:
        # If the sample is the whole corpus, a build would fit the codec to the same vectors.
        is_whole = sum(map(len, probed)) == sum(len(document.passages) for document in sample.tokenized) / sample.scale
        is_enough = len(values) >= codec.sample_vectors(job.dim) or is_whole
        unread = why_unread(job.checkpoint, job.config.store)
        bases = {"decoder_base": job.decoder_base, "compressor_base": job.compressor_base}
        reader = None if unread else DecoderReader(str(job.checkpoint.path), job.stage, device, **bases)
        documents = MemorySample(values, lengths, texts)
        began = time.perf_counter()
        calibration, prediction = fit(codec, documents, reader, missing=unread, is_enough=is_enough)
        fitted_s = time.perf_counter() - began
        connector = job.checkpoint.connector if job.meta.has_connector else None
        asset_bytes = 0 if calibration is None else len(calibration.to_bytes())
        asset_bytes += sum(each.nbytes for each in connector.state().values()) if connector else 0
    began = time.perf_counter()
    encode_batch([""] * len(lengths), memory.numbers, lengths, codec, calibration)
    encoded_s = (time.perf_counter() - began) / max(len(values), 1)
    repeats = -(-PROBE_BATCHES * compressor.token_budget // max(sum(map(len, passages)), 1))
    speeds = _tokens_per_s(compressor, Passages.of(passages * repeats), job.stage)
    return _Probe(prediction, speeds, encoded_s, loaded_s, fitted_s, asset_bytes)


def _spread(sample: _Sample, tokens: int) -> tuple[list[Sequence[Sequence[int]]], list[str]]:
    """Return passages of about this many tokens, by document, and the texts of these documents.

    They are spread over the documents of a sample, or over the passages if there are few documents.
    """
    documents, texts = sample.tokenized, list(sample.texts)
    total = sum(len(passage) for document in documents for passage in document.passages)
    every = max(1, total // tokens)
    if len(documents) >= every:
        return [document.passages for document in documents[::every]], texts[::every]
    pairs = [(each.passages[::every], text) for each, text in zip(documents, texts, strict=True) if each.passages]
    return [passages for passages, _ in pairs], [text for _, text in pairs]


def _tokens_per_s(compressor: Compressor, passages: Passages, stage: Stage) -> list[float]:
    speeds, began = [], time.perf_counter()
    while len(speeds) < PROBE_TRIALS or time.perf_counter() - began < PROBE_SECONDS:
        start = time.perf_counter()
        compressor.compress(passages, stage=stage)
        speeds.append(len(passages.ids) / max(time.perf_counter() - start, 1e-9))
    return speeds
