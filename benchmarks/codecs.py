"""Measure what each codec costs and loses: bits, errors with and without outlier channels, and speed in each direction.

Three kinds of memory are measured: that of the shipped checkpoint on held-out Tinypedia (256 wide); that of another
checkpoint and corpus, if they are given; and independent normal numbers (1,024 wide), the worst case, in which a
transform gains nothing over Lloyd-Max quantisation. Codecs are fitted to one half of the documents and measured on the
other. For the error with outliers, six channels are made 10 to 100 times as large.

The fisher codecs are fitted to a sensitivity, which is synthetic here: that of the k-th of some random directions of
normalised memory is 1 / k. The column "metric" has the error of each codec weighted by it, over the variance weighted
by it. For the fisher codecs that error counts; their plain one, in the column "dB", is larger by design.

Times are processor time of one core, the best of several runs, in MB of bfloat16 per second, so that all codecs are
measured on the same values. The baseline is bf16.

    python benchmarks/codecs.py --articles 1500
    python benchmarks/codecs.py --checkpoint FOLDER --corpus DUMP
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import CHECKPOINT, options, print_json

from pisco_index import Compressor, load_config, open_checkpoint
from pisco_index.configs import CompressionConfig, CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.model.connector import Connector
from pisco_index.store import CODECS, Calibration, Codec, decode_batch, encode_batch, is_calibrated, read_header
from pisco_index.store.codecs.payload import latents_of
from pisco_index.store.codecs.prediction import normalised_error_db
from pisco_index.store.codecs.record import Records
from pisco_index.training.tinypedia import write

# The corpus whose size is calculated: a Wikipedia in passages of 100 words, 8 vectors each.
PASSAGES, VECTORS = 24_853_658, 8
# Number of documents that a reader decodes together.
FETCHED = 50
# Number of documents that are encoded together: like a worker's batch, they fit the caches.
ENCODED = 256
BITS = {"fp32": 32, "bf16": 16, "bf16z": 16, "int8": 8, "int4": 4, "klt3": 3, "klt2": 2}
BITS |= {"fisher4": 4, "fisher3": 3, "fisher2": 2}
COLUMNS = "{:12} {:7} {:>6} {:>6} {:>8} {:>9} {:>8} {:>9} {:>9} {:>9} {:>9} {:>10}"
HEADINGS = (
    "memory",
    "codec",
    "bits",
    "ratio",
    "dB",
    "outliers",
    "metric",
    "fallback",
    "encode",
    "decode",
    "latents",
    f"{FETCHED} docs, ms",
)


@dataclass(frozen=True)
class Documents:
    """Memory of some documents, ``(Σ n_mem, dim)`` float32, and the number of vectors of each."""

    values: np.ndarray
    lengths: list[int]

    def split(self) -> tuple["Documents", "Documents"]:
        """Return the half that codecs are fitted to, and the half that they are measured on."""
        half = len(self.lengths) // 2
        vectors = sum(self.lengths[:half])
        return (
            Documents(self.values[:vectors], self.lengths[:half]),
            Documents(self.values[vectors:], self.lengths[half:]),
        )

    def first(self, count: int) -> "Documents":
        return Documents(self.values[: sum(self.lengths[:count])], self.lengths[:count])

    def with_outliers(self) -> "Documents":
        """Return the same memory with six channels that are 10 to 100 times as large."""
        wild = self.values.copy()
        channels = np.random.default_rng(0).choice(wild.shape[1], 6, replace=False)
        wild[:, channels] *= np.linspace(10, 100, 6, dtype=np.float32)
        return Documents(bfloat16(wild), self.lengths)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--articles", type=int, default=1500, help="number of Tinypedia's articles")
    parser.add_argument("--checkpoint", type=Path, help="another checkpoint to measure the memory of")
    parser.add_argument("--corpus", type=Path, help="MediaWiki dump for that checkpoint to compress")
    parser.add_argument("--repeats", type=int, default=7, help="number of runs; the best counts")
    args = parser.parse_args()

    torch.set_num_threads(1)
    memories = {"tinypedia": tinypedia(args.articles)}
    if args.checkpoint:
        memories["further"] = compressed(args.checkpoint, texts_of(args.corpus), CompressionConfig().max_length)
    normal = np.random.default_rng(1).standard_normal((8192, 1024), dtype=np.float32)
    memories["normal-1024"] = Documents(bfloat16(normal), [VECTORS] * (len(normal) // VECTORS))
    rows = []
    print(COLUMNS.format(*HEADINGS))
    for name, documents in memories.items():
        for codec in CODECS:
            row = {"memory": name, "width": documents.values.shape[1], "codec": codec.name}
            row |= measured(codec, documents, args.repeats)
            rows.append(row)
            print(line(row), flush=True)
    print("The error of the fisher codecs that counts is in the column metric; the other two are larger by design.")
    projected = {codec.name: {width: gigabytes(codec, width, rows) for width in (1024, 4096)} for codec in CODECS}
    print(f"\nGB of {PASSAGES:,} passages of {VECTORS} vectors, with headers, without ids and titles:")
    for codec_name, sizes in projected.items():
        print(f"{codec_name:7} width 1024 {sizes[1024]:8,.1f}   width 4096 {sizes[4096]:8,.1f}")
    folding = folded(args.repeats)
    print(f"\nms from {FETCHED} payloads to embeddings, connector 1024 → 4096 → 4096:")
    for codec_name, (apart, together) in folding.items():
        print(f"{codec_name:7} decoded, then connected {apart:6.1f}   folded {together:6.1f}")
    if args.json:
        print_json({"baseline": "bf16", "rows": rows, "gb": projected, "folding_ms": folding})


def tinypedia(articles: int) -> Documents:
    compression = load_config("tinypedia").compression
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch), "held-out", count=articles, seed=3)
        records = [json.loads(each) for each in (Path(scratch) / "corpus.jsonl").read_text("utf-8").splitlines()]
    return compressed(CHECKPOINT, [record["text"] for record in records], compression.max_length)


def texts_of(corpus: Path) -> list[str]:
    (source,) = open_corpus([corpus], CorpusConfig(format="mediawiki")).sources
    return [document.text for document in source.read(0, None)]


def compressed(checkpoint: Path, texts: list[str], max_length: int) -> Documents:
    """Compress texts without titles."""
    opened = open_checkpoint(checkpoint)
    tokenizer = opened.passage_tokenizer(CompressionConfig(max_length=max_length))
    documents = list(tokenizer.tokenize(texts))
    passages = [passage for document in documents for passage in document.passages]
    values = Compressor.load(opened).compress(passages, stage="hidden").values
    return Documents(values.float().numpy(), [document.n_mem for document in documents])


def measured(codec: Codec, documents: Documents, repeats: int) -> dict[str, Any]:
    """Return the figures of one codec for one kind of memory."""
    sample, rest = documents.split()
    error_db, metric_db, _ = losses(codec, documents)
    outliers_db, _, fallbacks = losses(codec, documents.with_outliers())
    some, calibration = rest.first(ENCODED), codec.calibrate(sample.values, sensitivity_of(sample.values))
    payloads = encoded(codec, some, calibration)
    fetched = payloads[:FETCHED]
    megabytes, size = some.values.size * 2 / 1e6, sum(map(len, payloads))

    def known(_: int) -> Calibration | None:
        return calibration

    return {
        "bits": size * 8 / some.values.size,
        "ratio": some.values.size * 2 / size,
        "error_db": error_db,
        "outliers_db": outliers_db,
        "metric_db": metric_db,
        "other_codec": fallbacks,
        "encode_mb_s": megabytes / best(lambda: encoded(codec, some, calibration), repeats),
        "decode_mb_s": megabytes / best(lambda: decode_batch(payloads, None, known), repeats),
        "latents_mb_s": megabytes / best(lambda: latents_of(Records.checked(payloads, None), known), repeats),
        "decode_50_ms": 1e3 * best(lambda: decode_batch(fetched, None, known), repeats),
        "latents_50_ms": 1e3 * best(lambda: latents_of(Records.checked(fetched, None), known), repeats),
    }


def losses(codec: Codec, documents: Documents) -> tuple[float | None, float | None, float]:
    """Return the normalised error of the second half, its error in the metric, and the share of fallbacks in it.

    Errors are in dB, and None if there is no error.
    """
    sample, rest = documents.split()
    sensitivity = sensitivity_of(sample.values)
    calibration = codec.calibrate(sample.values, sensitivity)
    payloads = encoded(codec, rest, calibration)
    decoded, _ = decode_batch(payloads, None, lambda _: calibration)
    fallbacks = sum(read_header(payload).codec_id != codec.codec_id for payload in payloads)
    energy, error = (
        weighted(each, sensitivity) for each in (rest.values - sample.values.mean(0), rest.values - decoded)
    )
    metric = 10 * math.log10(error / energy) if error else None
    return normalised_error_db(rest.values, decoded), metric, fallbacks / len(payloads)


def sensitivity_of(values: np.ndarray) -> np.ndarray:
    """Return a synthetic sensitivity of normalised memory, in units of the memory, ``(dim, dim)``."""
    dim, std = values.shape[1], values.std(axis=0, dtype=np.float64)
    directions, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((dim, dim)))
    return (directions / np.arange(1, dim + 1)) @ directions.T / np.outer(std, std)


def weighted(lost: np.ndarray, sensitivity: np.ndarray) -> float:
    """Return the mean square of vectors, weighted by a sensitivity."""
    return float(np.sum(lost.T.astype(np.float64) @ lost * sensitivity)) / len(lost)


def encoded(codec: Codec, documents: Documents, calibration: Calibration | None) -> Sequence[bytes]:
    return encode_batch([""] * len(documents.lengths), documents.values, documents.lengths, codec, calibration)


def folded(repeats: int) -> dict[str, tuple[float, float]]:
    """Return ms from 50 payloads to embeddings, by codec: decoded and then connected, and folded.

    A folded connector contains the codec's inverse map, and is fed with latents.
    """
    torch.manual_seed(0)
    connector = Connector(1024, 4096, 4096).eval().requires_grad_(False)
    values = np.random.default_rng(0).standard_normal((FETCHED * VECTORS, 1024), dtype=np.float32)
    documents = Documents(values, [VECTORS] * FETCHED)
    found = {}
    for codec in filter(is_calibrated, CODECS):
        calibration = codec.calibrate(values)
        payloads = encoded(codec, documents, calibration)
        inside = connector.fold(*map(torch.from_numpy, codec.inverse(calibration)))

        def known(_: int, each: Calibration | None = calibration) -> Calibration | None:
            return each

        ways = (
            lambda p=payloads, k=known: connector(torch.from_numpy(decode_batch(p, None, k)[0])),
            lambda p=payloads, k=known, c=inside: c(torch.from_numpy(latents_of(Records.checked(p, None), k).values)),
        )
        found[codec.name] = tuple(round(1e3 * best(way, repeats), 1) for way in ways)
    return found


def best(work: Callable[[], object], repeats: int) -> float:
    """Return the processor seconds of the fastest run."""
    seconds = []
    for _ in range(repeats):
        began = time.thread_time()
        work()
        seconds.append(time.thread_time() - began)
    return min(seconds)


def gigabytes(codec: Codec, width: int, rows: list[dict[str, Any]]) -> float:
    """Return the calculated size of all passages; that of bf16z with the ratio that was measured at width 1,024."""
    bits = BITS[codec.name]
    if is_calibrated(codec):
        # A header of 24 bytes, a reference of 4 bytes, and a scale of 2 bytes for each vector.
        return PASSAGES * (28 + VECTORS * (2 + width * bits / 8)) / 1e9
    plain = PASSAGES * (24 + VECTORS * width * bits / 8) / 1e9
    if codec.name != "bf16z":
        return plain
    return plain / next(row["ratio"] for row in rows if row["codec"] == codec.name and row["width"] == 1024)


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Round values to bfloat16."""
    return torch.from_numpy(values).bfloat16().float().numpy()


def line(row: dict[str, Any]) -> str:
    found = row["error_db"], row["outliers_db"], row["metric_db"]
    errors = ("exact" if each is None else f"{each:.2f}" for each in found)
    speeds = (f"{row[name]:.0f}" for name in ("encode_mb_s", "decode_mb_s", "latents_mb_s"))
    bits, ratio, fallbacks = f"{row['bits']:.2f}", f"{row['ratio']:.2f}", f"{row['other_codec']:.1%}"
    return COLUMNS.format(
        row["memory"], row["codec"], bits, ratio, *errors, fallbacks, *speeds, f"{row['decode_50_ms']:.2f}"
    )


if __name__ == "__main__":
    main()
