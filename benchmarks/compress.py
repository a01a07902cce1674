"""Our compressor against the naive way, on the same passages, in one process.

Naive: ``AutoModelForCausalLM`` with all hidden states, logits and cache, left padding, passages in arrival order.
Qwen3-0.6B's width and vocabulary, random weights.

    python benchmarks/compress.py [--layers 4] [--passages 64] [--dtype bfloat16] [--json]
"""

import argparse
import statistics
import time
from typing import Any

import torch
from measure import HelpFormatter, PeakMemory, positive, report
from transformers import AutoModel, AutoModelForCausalLM, Qwen3Config

from pisco_index.model.compressor import Compressor
from pisco_index.model.connector import Connector

RATE, VOCABULARY = 16, 151_670
MEMORY, PAD = VOCABULARY - 1, 0


def config(layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )


def make_passages(count: int, seed: int = 0) -> list[list[int]]:
    """Passages of about 125 tokens, spread as paragraphs of prose are, memory tokens behind them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.empty(count).log_normal_(4.75, 0.4, generator=generator).clamp(16, 512).int().tolist()
    return [torch.randint(1, MEMORY, (n,), generator=generator).tolist() + [MEMORY] * (n // RATE + 1) for n in lengths]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--layers", type=positive, default=4)
    parser.add_argument("--passages", type=positive, default=64)
    parser.add_argument("--batch", type=positive, default=32, help="passages in a batch of the naive way")
    parser.add_argument("--token-budget", type=positive, help="tokens in a batch of ours")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()

    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    naive = AutoModelForCausalLM.from_config(config(args.layers), dtype=dtype, attn_implementation="sdpa").eval()
    ours = AutoModel.from_config(config(args.layers), dtype=dtype, attn_implementation="sdpa").eval()
    ours.load_state_dict(naive.model.state_dict())
    compressor = Compressor(ours, Connector(1024, 8, 8), memory_token_id=MEMORY, token_budget=args.token_budget)
    passages = make_passages(args.passages)
    # Warms up the kernels, with too little to fill the allocator.
    compressor.compress(passages[:1])
    compress_naively(naive, passages[:1], 1)

    seconds: dict[str, list[float]] = {"naive": [], "ours": []}
    peaks: dict[str, float] = {}
    results: dict[str, torch.Tensor] = {}
    for _ in range(args.repeats):
        # Ours first: memory that the other way leaves with the allocator would hide our peak.
        for name, run in (
            ("ours", lambda: compressor.compress(passages).values),
            ("naive", lambda: compress_naively(naive, passages, args.batch)),
        ):
            with PeakMemory() as peak:
                began = time.perf_counter()
                results[name] = run()
                seconds[name].append(time.perf_counter() - began)
            peaks.setdefault(name, peak.mib)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    cosine = torch.cosine_similarity(results["naive"].float(), results["ours"].float()).min()
    report(
        {
            "baseline": "AutoModelForCausalLM, all hidden states, left padding, arrival order",
            "layers": args.layers,
            "dtype": args.dtype,
            "passages": args.passages,
            "tokens": sum(map(len, passages)),
            "naive_passages_per_s": args.passages / middle["naive"],
            "passages_per_s": args.passages / middle["ours"],
            "ratio": middle["naive"] / middle["ours"],
            "naive_peak_mib": peaks["naive"],
            "peak_mib": peaks["ours"],
            "peak_ratio": peaks["naive"] / max(peaks["ours"], 1e-9),
            "min_cosine": float(cosine),
        },
        args.json,
    )


if __name__ == "__main__":
    main()
