"""Compare our compressor with the naive way, on the same passages in one process.

The naive way runs ``AutoModelForCausalLM`` with all hidden states, logits and cache, on left-padded passages as they
come. Both have the width and vocabulary of Qwen3-0.6B and random weights. In family cocom a passage is cut at 131
tokens and followed by 8 memory tokens, as in the released models, whose reference pads every passage to that length.

    python benchmarks/compress.py --family pisco --layers 4 --passages 64 --dtype bfloat16
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from measure import PeakMemory, options, positive, report, seconds
from qwen import MEMORY, PAD, VOCABULARY, make_passages, qwen_config
from transformers import AutoModel, AutoModelForCausalLM

from pisco_index.model.compressor import Compressor
from pisco_index.model.connector import Connector

# Tokens of a passage of the released models: its text with the frame, and the memory tokens, each of its own kind.
COCOM_LENGTH = 131
COCOM_MEMORY = tuple(range(VOCABULARY - 8, VOCABULARY))


@torch.no_grad()
def compress_naively(
    model: Any, passages: list[list[int]], batch: int, memory_ids: tuple[int, ...], padded: int = 0
) -> torch.Tensor:
    memory = []
    for start in range(0, len(passages), batch):
        rows = passages[start : start + batch]
        longest = max(padded, *map(len, rows))
        ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), output_hidden_states=True)
        memory.append(output.hidden_states[-1][torch.isin(ids, torch.tensor(memory_ids)).to(model.device)].cpu())
    return torch.cat(memory)


def load(args: argparse.Namespace, connector: Connector | None, memory_ids: tuple[int, ...]) -> tuple[Compressor, Any]:
    """Return our compressor and the naive model, with equal weights."""
    dtype, shape = getattr(torch, args.dtype), qwen_config(args.layers)
    torch.manual_seed(0)
    naive = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation="sdpa").eval()
    base = AutoModel.from_config(shape, dtype=dtype, attn_implementation="sdpa").eval()
    base.load_state_dict(naive.model.state_dict())
    return Compressor(base, connector, memory_token_ids=memory_ids, token_budget=args.token_budget), naive


def make_cocom_passages(count: int) -> list[list[int]]:
    """Return the passages of family cocom: the same text, cut, and 8 memory tokens."""
    texts = [[token for token in passage if token < min(COCOM_MEMORY)] for passage in make_passages(count)]
    return [text[:COCOM_LENGTH] + list(COCOM_MEMORY) for text in texts]


def compare(args: argparse.Namespace) -> dict[str, Any]:
    is_cocom = args.family == "cocom"
    memory_ids = COCOM_MEMORY if is_cocom else (MEMORY,)
    padded = COCOM_LENGTH + len(COCOM_MEMORY) if is_cocom else 0
    compressor, naive = load(args, None if is_cocom else Connector(1024, 8, 8), memory_ids)
    passages = make_cocom_passages(args.passages) if is_cocom else make_passages(args.passages)
    # Warm up the kernels with one passage, which is too little to fill the allocator.
    compressor.compress(passages[:1])
    compress_naively(naive, passages[:1], 1, memory_ids, padded)

    results: dict[str, torch.Tensor] = {}
    # Ours comes first: memory that the naive way leaves with the allocator would hide our peak.
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: results.update(ours=compressor.compress(passages).values),
        "naive": lambda: results.update(naive=compress_naively(naive, passages, args.batch, memory_ids, padded)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, float] = {}
    for _ in range(args.repeats):
        for name, way in ways.items():
            with PeakMemory() as peak:
                times[name].append(seconds(way))
            peaks.setdefault(name, peak.mib)
    middle = {name: statistics.median(each) for name, each in times.items()}
    return {
        "tokens": sum(map(len, passages)),
        "naive_passages_per_s": args.passages / middle["naive"],
        "passages_per_s": args.passages / middle["ours"],
        "ratio": middle["naive"] / middle["ours"],
        "naive_peak_mib": peaks["naive"],
        "peak_mib": peaks["ours"],
        "peak_ratio": peaks["naive"] / max(peaks["ours"], 1e-9),
        "min_cosine": float(torch.cosine_similarity(results["naive"].float(), results["ours"].float()).min()),
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--family", choices=["pisco", "cocom"], default="pisco", help="family of the checkpoint")
    parser.add_argument("--layers", type=positive, default=4, help="number of layers")
    parser.add_argument("--passages", type=positive, default=64, help="number of passages")
    parser.add_argument("--batch", type=positive, default=32, help="number of passages in a naive batch")
    parser.add_argument("--token-budget", type=positive, help="largest number of tokens in a batch of ours")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="dtype of the weights")
    parser.add_argument("--repeats", type=positive, default=3, help="number of runs; the median counts")
    args = parser.parse_args()

    settings = {
        "baseline": "AutoModelForCausalLM, all hidden states, left padding, arrival order",
        "family": args.family,
        "layers": args.layers,
        "dtype": args.dtype,
        "passages": args.passages,
    }
    report(settings | compare(args), args.json)


if __name__ == "__main__":
    main()
