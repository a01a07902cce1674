"""What a corpus of passages costs by GPU type, on paper: from a data sheet's TFLOP/s to hours and dollars.

A passage of 125 tokens and 8 memory tokens, a compressor of Qwen3-0.6B's shape. Prices are assumptions to be replaced:
``--price H200=3.5``. So are the two fractions: which part of the data sheet's figure a matrix product reaches, and
which part of that the compressor (``benchmarks/gpu.py`` measures both).

    python benchmarks/cost.py [--passages 24000000] [--matmul 0.8] [--fraction 0.6] [--price NAME=DOLLARS]
"""

import argparse

from compress import MEMORY, config
from gpu import flop

# Dense bfloat16 TFLOP/s of the data sheets, and dollars an hour that are assumed.
GPUS = {
    "B200": (2250, 5.0),
    "H200": (989, 3.5),
    "H100 SXM": (989, 2.5),
    "A100": (312, 1.5),
    "L40S": (362, 1.0),
    "RTX 4090": (165, 0.4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=24_000_000)
    parser.add_argument("--matmul", type=float, default=0.8, help="of the data sheet, that matrix products reach")
    parser.add_argument("--fraction", type=float, default=0.6, help="of matrix products, that the compressor reaches")
    parser.add_argument("--price", action="append", default=[], metavar="NAME=DOLLARS", help="an hour")
    args = parser.parse_args()

    prices = {name: float(dollars) for name, _, dollars in (each.partition("=") for each in args.price)}
    each = flop(config(28), [[1] * 125 + [MEMORY] * 8])
    print(f"{each / 1e9:.1f} GFLOP a passage\n")
    print("| GPU | TFLOP/s | passages/s | hours | dollars an hour | dollars |\n|---|---|---|---|---|---|")
    for name, (tflops, assumed) in GPUS.items():
        per_second = tflops * 1e12 * args.matmul * args.fraction / each
        hours = args.passages / per_second / 3600
        price = prices.get(name, assumed)
        print(f"| {name} | {tflops:,} | {per_second:,.0f} | {hours:.1f} | {price:.2f} | {hours * price:,.0f} |")


if __name__ == "__main__":
    main()
