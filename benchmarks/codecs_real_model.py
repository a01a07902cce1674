"""Measure codecs through a decoder of examples/real_model.py, and memory beside a cache of keys and values.

The memory is that of texts of one window each. Codecs are fitted to texts that the model was trained on, the fisher
codecs also to the decoder's Fisher matrix on some of them, and measured on held-out texts: the decoder restores a text
from its decoded memory, the task that it was trained on, and its predictions are compared with those from exact memory.

    python benchmarks/codecs_real_model.py FOLDER/rate-4/checkpoint-200 --window 16 --json

The cache is what the decoder itself would keep of a text to skip reading it: keys and values of every layer.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine, options, seconds
from transformers import DynamicCache

from pisco_index import Compressor, Decoder, open_checkpoint
from pisco_index.configs import CompressionConfig
from pisco_index.model.decoding.sensitivity import (
    Divergence,
    SampledDocument,
    divergence,
    fisher_matrix,
    sampled_documents,
)
from pisco_index.model.passages import AUTOENCODING_TOKEN, MEMORY_TOKEN
from pisco_index.store import CODECS, Calibration, decode_batch, encode_batch, is_calibrated
from pisco_index.store.codecs.registry import uses_sensitivity

SEED = 3
# Documents of a question whose first token is timed, and tokens of each.
ASKED, DOCUMENT_TOKENS = 5, 128
QUESTION = "What is the capital of the country that the river flows through?"


class Restoring(Decoder):
    """A decoder that restores a text from its memory, instead of answering a question about it."""

    def answered_ids(self, question: str, documents: Sequence[int | str], answer: str) -> tuple[list[int], int]:  # noqa: ARG002
        tokenizer = self.tokenizer
        target = tokenizer(answer, add_special_tokens=False)["input_ids"]
        slots = [tokenizer.convert_tokens_to_ids(MEMORY_TOKEN)] * sum(map(int, documents))
        opening = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return [*opening, *slots, tokenizer.convert_tokens_to_ids(AUTOENCODING_TOKEN), *target], len(target)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--window", type=int, default=16, help="tokens of a text")
    parser.add_argument("--sample", type=int, default=900, help="texts that codecs are fitted to")
    parser.add_argument("--read", type=int, default=96, help="texts of them that the Fisher matrix is made of")
    parser.add_argument("--measured", type=int, default=48, help="held-out texts")
    args = parser.parse_args()

    checkpoint = open_checkpoint(args.checkpoint)
    compressor = Compressor.load(checkpoint)
    sample, rest = (
        compressed(
            compressor, checkpoint, pieces(checkpoint, args.checkpoint.parent / name, args.window, count), args.window
        )
        for name, count in (("train.jsonl", args.sample), ("held-out.jsonl", args.measured))
    )
    decoder = Restoring.load(checkpoint, dtype=torch.float32)
    began = time.monotonic()
    fisher = fisher_matrix(decoder, sample[: args.read])
    took = time.monotonic() - began
    result = {
        "benchmark": "codecs_real_model",
        "checkpoint": args.checkpoint.name,
        "rate": checkpoint.config.compr_rate,
        "window": args.window,
        "fitted_to": {"documents": len(sample), "vectors": int(sum(len(d.memory.values) for d in sample))},
        "fisher": {"documents": min(args.read, len(sample)), "seconds": round(took, 1)},
        "measured": {"documents": len(rest), "vectors": int(sum(len(d.memory.values) for d in rest))},
        "codecs": codecs(decoder, sample, rest, fisher),
        "cache": cached(decoder, checkpoint.config.compr_rate),
        **machine(),
    }
    for row in result["codecs"]:
        print(
            "{codec:8} {bytes_per_vector:8.1f} {kl:10.3g} {kl_worst:10.3g} {top1_kept:7.1%} {delta_nll:+.5f}".format(
                **row
            )
        )
    print(result["cache"])
    if args.json:
        print(json.dumps(result))


def pieces(checkpoint: Any, file: Path, window: int, count: int) -> list[str]:
    """Return texts of about one window each, from random places of a file's texts."""
    texts = [json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()]
    tokenizer, rng, found = checkpoint.compressor_tokenizer, np.random.default_rng(SEED), []
    for number in range(count):
        text = texts[number % len(texts)]
        start = int(rng.integers(max(len(text) - 12 * window, 1)))
        start = text.find(" ", start, start + 32) + 1 or start
        encoded = tokenizer(text[start : start + 12 * window], return_offsets_mapping=True)["offset_mapping"]
        found.append(text[start : start + encoded[:window][-1][1]].strip())
    return [text for text in found if text]


def compressed(compressor: Compressor, checkpoint: Any, texts: Sequence[str], window: int) -> list[SampledDocument]:
    tokenized = list(checkpoint.passage_tokenizer(CompressionConfig(max_length=window)).tokenize(texts))
    memory = compressor.compress([p for each in tokenized for p in each.passages], stage="hidden")
    lengths = [each.n_mem for each in tokenized]
    return sampled_documents(memory.values.float().numpy(), lengths, texts, "hidden", checkpoint.memory_digest)


def codecs(
    decoder: Decoder, sample: Sequence[SampledDocument], rest: Sequence[SampledDocument], fisher: np.ndarray
) -> list[dict[str, Any]]:
    """Return the figures of each codec, measured on ``rest``."""
    fitted, values = (np.concatenate([d.memory.values.numpy() for d in each]) for each in (sample, rest))
    lengths, rows = [len(document.memory.values) for document in rest], []
    for codec in CODECS:
        given = fisher if uses_sensitivity(codec) else None
        calibration = codec.calibrate(fitted, given) if is_calibrated(codec) else None

        def known(_: int, each: Calibration | None = calibration) -> Calibration | None:
            return each

        payloads = encode_batch([""] * len(lengths), values, lengths, codec, calibration)
        decoded, _ = decode_batch(payloads, None, known)
        is_exact = np.array_equal(decoded, values)
        found = Divergence(0.0, 0.0, 1.0, 0.0, len(rest)) if is_exact else divergence(decoder, rest, decoded)
        # A document's header is not a vector's: memory of one window has few vectors.
        size = sum(map(len, payloads)) - 24 * len(payloads)
        rows.append({"codec": codec.name, "bytes_per_vector": round(size / len(values), 2), **asdict(found)})
        print(rows[-1], flush=True)
    return rows


@torch.inference_mode()
def cached(decoder: Decoder, rate: int) -> dict[str, Any]:
    """Return bytes, load time and time to first token of text, of cached keys and values, and of memory.

    The weights do not matter to these figures, so the texts are random tokens.
    """
    model, dtype = decoder.model.bfloat16(), torch.bfloat16
    tokens, vectors = ASKED * DOCUMENT_TOKENS, ASKED * (DOCUMENT_TOKENS // rate + 1)
    ids = torch.randint(decoder.model.config.vocab_size // 2, (1, tokens), generator=torch.Generator().manual_seed(0))
    asked = torch.tensor([decoder.tokenizer(QUESTION, add_special_tokens=False)["input_ids"]])
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    layers = [(layer.keys.contiguous(), layer.values.contiguous()) for layer in cache.layers]
    dim = decoder.connector.in_dim
    kept = torch.randn(vectors, dim).to(dtype)
    connector = decoder.connector.bfloat16()
    files = {"cache": torch.cat([t.flatten() for pair in layers for t in pair]), "memory": kept.flatten()}
    shape, folder = layers[0][0].shape, Path("/tmp")
    paths = {name: folder / f"real-model-{name}.bin" for name in files}
    for name, values in files.items():
        paths[name].write_bytes(values.view(torch.int16).numpy().tobytes())

    def load(name: str) -> torch.Tensor:
        return torch.from_numpy(np.fromfile(paths[name], np.int16)).view(dtype)

    def text() -> None:
        model(input_ids=torch.cat([ids, asked], 1), use_cache=True, logits_to_keep=1)

    def keys_and_values() -> None:
        parts = load("cache").view(len(layers), 2, *shape)
        past = DynamicCache()
        for i, (keys, values) in enumerate(parts):
            past.update(keys, values, i)
        model(input_ids=asked, past_key_values=past, use_cache=True, logits_to_keep=1)

    def memory() -> None:
        states = connector(load("memory").view(vectors, dim))[None]
        embedded = torch.cat([states, model.get_input_embeddings()(asked)], 1)
        model(inputs_embeds=embedded, use_cache=True, logits_to_keep=1)

    found = {
        "documents": ASKED,
        "tokens_per_document": DOCUMENT_TOKENS,
        "vectors_per_document": vectors // ASKED,
        "bytes_per_document": {name: paths[name].stat().st_size // ASKED for name in files},
        "load_ms": {name: fastest(lambda n=name: load(n)) for name in files},
        "first_token_ms": {
            name: fastest(run) for name, run in (("text", text), ("cache", keys_and_values), ("memory", memory))
        },
    }
    for path in paths.values():
        path.unlink()
    return found


def fastest(run: Callable[[], object], repeats: int = 5) -> float:
    """Return the milliseconds of the fastest run."""
    return round(1e3 * min(seconds(run) for _ in range(repeats)), 3)


if __name__ == "__main__":
    main()
