"""Compare our compressor with the naive way, on the same passages in one process.

The naive way runs ``AutoModelForCausalLM`` with all hidden states, logits and cache, on left-padded passages as they
come. Both have the width and vocabulary of Qwen3-0.6B and random weights.

    python benchmarks/compress.py --layers 4 --passages 64 --dtype bfloat16
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from measure import PeakMemory, options, positive, report, seconds
from qwen import MEMORY, PAD, make_passages, qwen_config
from transformers import AutoModel, AutoModelForCausalLM

from pisco_index.model.compressor import Compressor
from pisco_index.model.connector import Connector


@torch.no_grad()
def compress_naively(model: Any, passages: list[list[int]], batch: int) -> torch.Tensor:
    memory = []
    for start in range(0, len(passages), batch):
        rows = passages[start : start + batch]
        longest = max(map(len, rows))
        ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), output_hidden_states=True)
        memory.append(output.hidden_states[-1][(ids == MEMORY).to(model.device)].cpu())
    return torch.cat(memory)


def load(args: argparse.Namespace) -> tuple[Compressor, Any]:
    """Return our compressor and the naive model, with equal weights."""
    dtype, shape = getattr(torch, args.dtype), qwen_config(args.layers)
    torch.manual_seed(0)
    naive = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation="sdpa").eval()
    base = AutoModel.from_config(shape, dtype=dtype, attn_implementation="sdpa").eval()
    base.load_state_dict(naive.model.state_dict())
    return Compressor(base, Connector(1024, 8, 8), memory_token_id=MEMORY, token_budget=args.token_budget), naive


def compare(args: argparse.Namespace) -> dict[str, Any]:
    compressor, naive = load(args)
    passages = make_passages(args.passages)
    # Warm up the kernels with one passage, which is too little to fill the allocator.
    compressor.compress(passages[:1])
    compress_naively(naive, passages[:1], 1)

    results: dict[str, torch.Tensor] = {}
    # Ours comes first: memory that the naive way leaves with the allocator would hide our peak.
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: results.update(ours=compressor.compress(passages).values),
        "naive": lambda: results.update(naive=compress_naively(naive, passages, args.batch)),
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
    parser.add_argument("--layers", type=positive, default=4, help="number of layers")
    parser.add_argument("--passages", type=positive, default=64, help="number of passages")
    parser.add_argument("--batch", type=positive, default=32, help="number of passages in a naive batch")
    parser.add_argument("--token-budget", type=positive, help="largest number of tokens in a batch of ours")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="dtype of the weights")
    parser.add_argument("--repeats", type=positive, default=3, help="number of runs; the median counts")
    args = parser.parse_args()

    settings = {
        "baseline": "AutoModelForCausalLM, all hidden states, left padding, arrival order",
        "layers": args.layers,
        "dtype": args.dtype,
        "passages": args.passages,
    }
    report(settings | compare(args), args.json)


if __name__ == "__main__":
    main()
