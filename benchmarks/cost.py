"""What a corpus of passages costs by GPU type, on paper: from a data sheet's TFLOP/s to hours and dollars.

A compressor of Qwen3-0.6B's shape. All that is not calculated is an option: prices, which part of the data sheet's
figure a matrix product reaches (``--matmul``), which part of that the compressor does (``--fraction``), and GPUs that
are not listed (``--gpu NAME=TFLOPS``). Dollars are those of computing, with no time for planning and loading.

    python benchmarks/cost.py --passages 24000000 --price H200=3.5 --gpu L4=121 --price L4=0.7

With ``--measured``, the result of ``gpu.py --out FILE``, there is a row for the GPU that was measured as well; for a
speed that a build or its dry run told, divide the passages by it.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

from compress import MEMORY, RATE, config
from gpu import flop
from measure import HelpFormatter, positive


class Gpu(NamedTuple):
    """Dense bfloat16 TFLOP/s of the data sheet, and dollars an hour that are assumed."""

    tflops: float
    dollars: float | None


GPUS = {
    "B200": Gpu(2250, 5.0),
    "H200": Gpu(989, 3.5),
    "H100 SXM": Gpu(989, 2.5),
    "A100": Gpu(312, 1.5),
    "L40S": Gpu(362, 1.0),
    "RTX 4090": Gpu(165, 0.4),
}


def named(text: str) -> tuple[str, float]:
    name, separator, number = text.partition("=")
    if not separator or not name or float(number) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=NUMBER")
    return name, float(number)


def part(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no part of 1")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--passages", type=positive, default=24_000_000, help="of the corpus")
    parser.add_argument("--tokens", type=positive, default=125, help="of a passage, memory tokens not counted")
    parser.add_argument("--matmul", type=part, default=0.8, help="of the data sheet, that matrix products reach")
    parser.add_argument("--fraction", type=part, default=0.6, help="of matrix products, that the compressor reaches")
    parser.add_argument("--gpu", type=named, action="append", default=[], metavar="NAME=TFLOPS", help="one more")
    parser.add_argument("--price", type=named, action="append", default=[], metavar="NAME=DOLLARS", help="an hour")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="what gpu.py wrote")
    args = parser.parse_args()

    gpus = GPUS | {name: Gpu(tflops, None) for name, tflops in args.gpu}
    reached = {name: gpu.tflops * args.matmul * args.fraction for name, gpu in gpus.items()}
    if args.measured:
        found = json.loads(args.measured.read_text())
        gpus[found["device"]] = Gpu(found["peak_tflops"], None)
        reached[found["device"]] = found["peak_tflops"] * found["fraction_of_peak"]
    for name, dollars in args.price:
        if name not in gpus:
            parser.error(f"--price {name}: there is no such GPU; there are {', '.join(gpus)}. --gpu adds one.")
        gpus[name] = gpus[name]._replace(dollars=dollars)

    memory_tokens = args.tokens // RATE + 1
    each = flop(config(28), [[1] * args.tokens + [MEMORY] * memory_tokens])
    print(f"{args.passages:,} passages of {args.tokens} + {memory_tokens} tokens, {each / 1e9:.1f} GFLOP each")
    print("\n| GPU | TFLOP/s | passages/s | hours | dollars an hour | dollars |\n|---|---|---|---|---|---|")
    for name, gpu in gpus.items():
        per_second = reached[name] * 1e12 / each
        hours = args.passages / per_second / 3600
        money = "| |" if gpu.dollars is None else f"| {gpu.dollars:.2f} | {hours * gpu.dollars:,.0f} |"
        print(f"| {name} | {gpu.tflops:,.0f} | {per_second:,.0f} | {hours:.1f} {money}")


if __name__ == "__main__":
    main()
