"""Compare a whole build by one worker with the bare compressor, on the same passages in one process.

The build plans, reads, tokenizes, compresses, encodes, writes and commits. The baseline is given the token ids and only
compresses. The compressor has Qwen3-0.6B's width and random weights.

    python benchmarks/build.py --layers 4 --documents 1000
"""

import json
import random
import statistics
import tempfile
from pathlib import Path

import torch
from measure import options, report, seconds
from qwen import qwen_config
from transformers import Qwen3ForCausalLM

from pisco_index import (
    BuildConfig,
    Compressor,
    build,
    build_status,
    new_checkpoint,
    new_tiny_checkpoint,
    open_checkpoint,
)


def make_checkpoint(folder: Path, layers: int) -> Path:
    """Make a checkpoint whose compressor has Qwen3-0.6B's width; all other parts are the tiny checkpoint's."""
    tiny = new_tiny_checkpoint(folder / "tiny")
    torch.manual_seed(0)
    base = folder / "base"
    # new_checkpoint adds the row of the memory token.
    config = qwen_config(layers, len(tiny.compressor_tokenizer) - 1)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(base)
    for file in (tiny.path / "base_compressor").glob("tokenizer*"):
        (base / file.name).write_bytes(file.read_bytes())
    return new_checkpoint(folder / "checkpoint", base, tiny.path / "base_decoder").path


def make_corpus(path: Path, documents: int, seed: int = 0) -> None:
    """Write documents of about 125 tokens, of words that the tokenizer knows."""
    words = ["the", "of", "city", "world", "river", "music", "family", "station", "history", "language", "between"]
    chance = random.Random(seed)
    with path.open("w") as file:
        for number in range(documents):
            text = " ".join(chance.choices(words, k=max(10, round(chance.lognormvariate(4.75, 0.4)))))
            file.write(json.dumps({"id": f"doc-{number}", "text": text}) + "\n")


def measure(folder: Path, layers: int, documents: int, rounds: int, config: BuildConfig) -> dict[str, object]:
    checkpoint, corpus = make_checkpoint(folder, layers), folder / "corpus.jsonl"
    make_corpus(corpus, documents)
    opened = open_checkpoint(checkpoint)
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    tokenized = opened.passage_tokenizer(config.compression).tokenize(texts)
    passages = [passage for document in tokenized for passage in document.passages]
    compressor = Compressor.load(opened)
    # Warm up the kernels.
    compressor.compress(passages[:32])
    half = len(passages) // 2
    ratios, compressor_s, build_s = [], [], []
    for number in range(rounds):
        # Half of the baseline runs before the build and half after it, because a shared machine changes its speed.
        before = seconds(lambda: compressor.compress(passages[:half]))
        build_s.append(seconds(lambda n=number: build([corpus], checkpoint, folder / f"store-{n}", config)))
        after = seconds(lambda: compressor.compress(passages[half:]))
        compressor_s.append(before + after)
        ratios.append(compressor_s[-1] / build_s[-1])
    store = build_status(folder / "store-0").store
    assert store.documents == documents
    return {
        "baseline": "the compressor alone, given the token ids",
        "layers": layers,
        "documents": store.documents,
        "tokens": store.tokens_fed,
        "compressor_documents_per_s": documents / statistics.median(compressor_s),
        "documents_per_s": documents / statistics.median(build_s),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--layers", type=int, default=4, help="number of the compressor's layers")
    parser.add_argument("--documents", type=int, default=1000, help="number of documents in the corpus")
    parser.add_argument("--rounds", type=int, default=3, help="number of builds")
    parser.add_argument("--shard-documents", type=int, default=500, help="number of documents in a shard")
    args = parser.parse_args()

    config = BuildConfig.parse({"run": {"shard_documents": args.shard_documents}}, "benchmark")
    with tempfile.TemporaryDirectory() as scratch:
        report(measure(Path(scratch), args.layers, args.documents, args.rounds, config), args.json)


if __name__ == "__main__":
    main()
