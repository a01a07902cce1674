"""What each codec costs and loses: bits, error with and without outlier channels, and speed each way.

Memory is that of the shipped checkpoint on held-out Tinypedia (256 wide), of another checkpoint and corpus if given,
and normal numbers of width 1024, which no codec can tell more of than Lloyd-Max. Codecs are fitted to one half of the
documents and measured on the other. Outliers are six channels made 10 to 100 times as large. Times are those
of one core alone, the best of several runs, in MB of bfloat16 per second, so that all codecs count the same values; the
baseline is bf16.

    python benchmarks/codecs.py [--articles 1500] [--checkpoint DIR --corpus FILE] [--json]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine

from pisco_index import Checkpoint, Compressor, Connector, CorpusConfig, PassageTokenizer, load_config
from pisco_index.corpus import open_corpus
from pisco_index.store import CODECS, decode_batch, encode_batch
from pisco_index.store.codecs import codec_by_name, is_calibrated
from pisco_index.store.codecs.payload import decode_latents
from pisco_index.store.codecs.prediction import normalised_error_db
from pisco_index.training.tinypedia import write

CHECKPOINT = Path(__file__).parents[1] / "examples" / "tinypedia-checkpoint"
PASSAGES, VECTORS = 24_853_658, 8
# Documents that a reader decodes together.
BATCH = 50
COLUMNS = "{:12} {:6} {:>6} {:>6} {:>8} {:>9} {:>6} {:>9} {:>9} {:>9} {:>10}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--articles", type=int, default=1500)
    parser.add_argument("--checkpoint", type=Path, help="a further checkpoint")
    parser.add_argument("--corpus", type=Path, help="and what it compresses: a MediaWiki dump")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()

    torch.set_num_threads(1)
    generator = np.random.default_rng(1)
    memories = {"tinypedia": tinypedia(args.articles)}
    if args.checkpoint:
        memories["further"] = compressed(args.checkpoint, texts_of(args.corpus), 512)
    normal = generator.standard_normal((8192, 1024), dtype=np.float32)
    memories["normal-1024"] = bfloat16(normal), [8] * (len(normal) // 8)
    rows = []
    print(
        COLUMNS.format(
            "memory", "codec", "bits", "ratio", "dB", "outliers", "other", "encode", "decode", "latents", "50 in ms"
        )
    )
    for name, (values, lengths) in memories.items():
        for codec in CODECS:
            row = {"memory": name, "width": values.shape[1], "codec": codec.name}
            row |= measured(codec, values, lengths, args.repeats)
            rows.append(row)
            print(line(row), flush=True)
    print(
        "\nGB of 24,853,658 passages × 8 vectors, all headers included: passages × (28 + 8 × (2 + width × bits / 8)),"
    )
    print("of bf16 passages × (24 + 8 × width × 2), of bf16z that and its measured ratio")
    projected = {codec.name: {width: gigabytes(codec.name, width, rows) for width in (1024, 4096)} for codec in CODECS}
    for codec, sizes in projected.items():
        print(f"{codec:6} width 1024 {sizes[1024]:8,.1f}   width 4096 {sizes[4096]:8,.1f}")
    folding = folded(args.repeats)
    print(f"\nembeddings of 50 documents at 1024, connector 1024 → 4096 → 4096, ms with inverse, folded: {folding}")
    result = {"baseline": "bf16", "rows": rows, "gb": projected, "folding_ms": folding}
    if args.json:
        print(json.dumps({**result, **machine()}))


def tinypedia(articles: int) -> tuple[np.ndarray, list[int]]:
    compression = load_config("tinypedia").compression
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch), "held-out", count=articles, seed=3)
        records = [json.loads(each) for each in (Path(scratch) / "corpus.jsonl").read_text("utf-8").splitlines()]
    return compressed(CHECKPOINT, [record["text"] for record in records], compression.max_length)


def texts_of(corpus: Path) -> list[str]:
    (source,) = open_corpus([corpus], CorpusConfig(format="mediawiki")).sources
    return [document.text for document in source.read(0, None)]


def compressed(checkpoint: Path, texts: list[str], max_length: int) -> tuple[np.ndarray, list[int]]:
    opened = Checkpoint(checkpoint)
    tokenizer = PassageTokenizer(opened.compressor_tokenizer, rate=opened.rate, max_length=max_length)
    documents = list(tokenizer.tokenize(texts))
    passages = [passage for document in documents for passage in document.passages]
    values = Compressor.load(opened).compress(passages, stage="hidden").values
    return values.float().numpy(), [document.n_mem for document in documents]


def measured(codec: Any, values: np.ndarray, lengths: list[int], repeats: int) -> dict[str, Any]:
    half = len(lengths) // 2
    seen = sum(lengths[:half])
    rest, counts = values[seen:], lengths[half:]
    wild = values.copy()
    channels = np.random.default_rng(0).choice(values.shape[1], 6, replace=False)
    wild[:, channels] *= np.linspace(10, 100, 6, dtype=np.float32)
    errors = []
    for each in (values, bfloat16(wild)):
        calibration = codec.calibrate(each[:seen])
        ids = [""] * len(counts)
        payloads = encode_batch(ids, each[seen:], counts, codec, calibration)
        decoded, _ = decode_batch(payloads, None, lambda _, known=calibration: known)
        errors.append(normalised_error_db(each[seen:], decoded))
        others = sum(payload[3] != codec.codec_id for payload in payloads) / len(payloads)
    # A part that fits the caches as a worker's batches do.
    part = slice(0, 256)
    rows, some = rest[: sum(counts[part])], counts[part]
    calibration = codec.calibrate(values[:seen])
    known = lambda _: calibration  # noqa: E731
    payloads = encode_batch([""] * len(some), rows, some, codec, calibration)
    fetched = payloads[:BATCH]
    megabytes = rows.size * 2 / 1e6
    return {
        "bits": sum(map(len, payloads)) * 8 / rows.size,
        "ratio": rows.size * 2 / sum(map(len, payloads)),
        "error_db": errors[0],
        "outliers_db": errors[1],
        "other_codec": others,
        "encode_mb_s": megabytes
        / best(lambda: encode_batch([""] * len(some), rows, some, codec, calibration), repeats),
        "decode_mb_s": megabytes / best(lambda: decode_batch(payloads, None, known), repeats),
        "latents_mb_s": megabytes / best(lambda: decode_latents(payloads, None, known), repeats),
        "decode_50_ms": 1e3 * best(lambda: decode_batch(fetched, None, known), repeats),
        "latents_50_ms": 1e3 * best(lambda: decode_latents(fetched, None, known), repeats),
    }


def folded(repeats: int) -> dict[str, tuple[float, float]]:
    """Milliseconds from 50 payloads to embeddings: decoded and connected, and by a connector that has the inverse."""
    torch.manual_seed(0)
    connector = Connector(1024, 4096, 4096).eval().requires_grad_(False)
    values = np.random.default_rng(0).standard_normal((BATCH * VECTORS, 1024), dtype=np.float32)
    found = {}
    for codec in filter(is_calibrated, CODECS):
        calibration = codec.calibrate(values)
        payloads = encode_batch([""] * BATCH, values, [VECTORS] * BATCH, codec, calibration)
        known = lambda _, each=calibration: each  # noqa: E731
        inside = connector.fold(*map(torch.from_numpy, codec.inverse(calibration)))
        ways = (
            lambda p=payloads, k=known: connector(torch.from_numpy(decode_batch(p, None, k)[0])),
            lambda p=payloads, k=known, c=inside: c(torch.from_numpy(decode_latents(p, None, k).values)),
        )
        found[codec.name] = tuple(round(1e3 * best(way, repeats), 1) for way in ways)
    return found


def best(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.thread_time()
        work()
        seconds.append(time.thread_time() - began)
    return min(seconds)


def gigabytes(codec: str, width: int, rows: list[dict[str, Any]]) -> float:
    bits = {"fp32": 32, "bf16": 16, "bf16z": 16, "int8": 8, "int4": 4, "klt3": 3, "klt2": 2}[codec]
    if is_calibrated(codec_by_name(codec)):
        return PASSAGES * (28 + VECTORS * (2 + width * bits / 8)) / 1e9
    plain = PASSAGES * (24 + VECTORS * width * bits / 8) / 1e9
    if codec != "bf16z":
        return plain
    return plain / next(row["ratio"] for row in rows if row["codec"] == codec and row["width"] == 1024)


def bfloat16(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).bfloat16().float().numpy()


def line(row: dict[str, Any]) -> str:
    errors = ("exact" if each is None else f"{each:.2f}" for each in (row["error_db"], row["outliers_db"]))
    speeds = (f"{row[name]:.0f}" for name in ("encode_mb_s", "decode_mb_s", "latents_mb_s"))
    bits, ratio, other = f"{row['bits']:.2f}", f"{row['ratio']:.2f}", f"{row['other_codec']:.1%}"
    return COLUMNS.format(
        row["memory"], row["codec"], bits, ratio, *errors, other, *speeds, f"{row['decode_50_ms']:.2f}"
    )


if __name__ == "__main__":
    main()
