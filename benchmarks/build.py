"""A whole build with one worker against the bare compressor on the same passages, in one process.

The build plans, reads, tokenizes, compresses, encodes, writes and commits; the baseline is given the token ids and only
compresses. Qwen3-0.6B's width, random weights.

    python benchmarks/build.py [--layers 4] [--documents 1000] [--json]
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from measure import report
from transformers import Qwen3Config, Qwen3ForCausalLM

from pisco_index import BuildConfig, Checkpoint, Compressor, PassageTokenizer, build, build_status, new_checkpoint
from pisco_index.model.create import new_tiny_checkpoint


def make_checkpoint(folder: Path, layers: int) -> Path:
    """A compressor of Qwen3-0.6B's width, with the tokenizer and decoder of the tiny checkpoint."""
    tiny = new_tiny_checkpoint(folder / "tiny")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tiny.compressor_tokenizer) - 1,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    base = folder / "base"
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(base)
    for file in (tiny.path / "base_compressor").glob("tokenizer*"):
        (base / file.name).write_bytes(file.read_bytes())
    return new_checkpoint(folder / "checkpoint", base, tiny.path / "base_decoder").path


def make_corpus(path: Path, documents: int, seed: int = 0) -> None:
    """Documents of about 125 tokens of words the tokenizer knows."""
    words = ["the", "of", "city", "world", "river", "music", "family", "station", "history", "language", "between"]
    chance = random.Random(seed)
    with path.open("w") as file:
        for number in range(documents):
            text = " ".join(chance.choices(words, k=max(10, round(chance.lognormvariate(4.75, 0.4)))))
            file.write(json.dumps({"id": f"doc-{number}", "text": text}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shard-documents", type=int, default=500)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint = make_checkpoint(folder, args.layers)
        corpus = folder / "corpus.jsonl"
        make_corpus(corpus, args.documents)
        config = BuildConfig.parse({"run": {"shard_documents": args.shard_documents}}, "benchmark")

        opened = Checkpoint(checkpoint)
        tokenizer = PassageTokenizer(opened.compressor_tokenizer, rate=16, max_length=512)
        texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
        passages = [passage for document in tokenizer.tokenize(texts) for passage in document.passages]
        compressor = Compressor.load(opened)
        compressor.compress(passages[:32])
        half = len(passages) // 2
        ratios, compressor_s, build_s = [], [], []
        for round_number in range(args.rounds):
            # Half of the baseline before the build and half after, since these machines slow down and recover.
            began = time.perf_counter()
            compressor.compress(passages[:half])
            built = time.perf_counter()
            build([corpus], checkpoint, folder / f"store-{round_number}", config)
            again = time.perf_counter()
            compressor.compress(passages[half:])
            ended = time.perf_counter()
            build_s.append(again - built)
            compressor_s.append(built - began + ended - again)
            ratios.append(compressor_s[-1] / build_s[-1])
        store = build_status(folder / "store-0").store
        assert store.documents == args.documents
        report(
            {
                "baseline": "the compressor alone, given the token ids",
                "layers": args.layers,
                "documents": store.documents,
                "tokens": store.tokens_fed,
                "compressor_documents_per_s": args.documents / statistics.median(compressor_s),
                "documents_per_s": args.documents / statistics.median(build_s),
                "ratio": statistics.median(ratios),
                "ratios": [round(ratio, 3) for ratio in ratios],
            },
            args.json,
        )


if __name__ == "__main__":
    main()
