"""Calculate what it costs to compress a corpus on each type of GPU, from the data sheet's TFLOP/s to hours and dollars.

The compressor has Qwen3-0.6B's shape. Everything that cannot be calculated is an option: the prices; the share of the
data sheet's figure that a matrix product reaches (``--matmul``); the share of a matrix product's speed that the
compressor reaches (``--fraction``); and GPUs that are not listed (``--gpu NAME=TFLOPS``). The hours and dollars are
those of computing. They do not include planning and loading.

    python benchmarks/cost.py --passages 24000000 --price H200=3.5 --gpu L4=121 --price L4=0.7

``--measured FILE`` adds a row for the GPU that ``gpu.py --out FILE`` measured. If a build or a dry run has shown its
speed, divide the number of passages by it instead.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

from measure import HelpFormatter, positive
from qwen import MEMORY, RATE, flop, qwen_config


class Gpu(NamedTuple):
    """A type of GPU.

    Attributes:
        tflops: dense bfloat16 TFLOP/s of the data sheet.
        dollars: assumed price of an hour; None if it is unknown.
    """

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
    """Return the name and the number of an option ``NAME=NUMBER``."""
    name, separator, number = text.partition("=")
    if not separator or not name or float(number) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER with a number above 0")
    return name, float(number)


def share(text: str) -> float:
    """Return the value of an option that must be above 0 and at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share: give a number above 0 and up to 1")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--passages", type=positive, default=24_000_000, help="number of passages in the corpus")
    parser.add_argument("--tokens", type=positive, default=125, help="tokens in a passage, without memory tokens")
    parser.add_argument(
        "--matmul", type=share, default=0.8, help="share of the data sheet's figure that matrix products reach"
    )
    parser.add_argument(
        "--fraction", type=share, default=0.6, help="share of matrix products' speed that the compressor reaches"
    )
    parser.add_argument(
        "--gpu", type=named, action="append", default=[], metavar="NAME=TFLOPS", help="add a GPU to the table"
    )
    parser.add_argument(
        "--price", type=named, action="append", default=[], metavar="NAME=DOLLARS", help="set a GPU's price for an hour"
    )
    parser.add_argument("--measured", type=Path, metavar="FILE", help="add the GPU that gpu.py measured")
    args = parser.parse_args()

    gpus = GPUS | {name: Gpu(tflops, None) for name, tflops in args.gpu}
    reached = {name: gpu.tflops * args.matmul * args.fraction for name, gpu in gpus.items()}
    if args.measured:
        found = json.loads(args.measured.read_text())
        gpus[found["device"]] = Gpu(found["peak_tflops"], None)
        reached[found["device"]] = found["peak_tflops"] * found["fraction_of_peak"]
    for name, dollars in args.price:
        if name not in gpus:
            parser.error(f"--price {name}: the table has no GPU of that name, only {', '.join(gpus)}. Add it by --gpu.")
        gpus[name] = gpus[name]._replace(dollars=dollars)

    memory_tokens = args.tokens // RATE + 1
    each = flop(qwen_config(28), [[1] * args.tokens + [MEMORY] * memory_tokens])
    print(f"{args.passages:,} passages of {args.tokens} + {memory_tokens} tokens, {each / 1e9:.1f} GFLOP each")
    print("\n| GPU | TFLOP/s | passages/s | hours | dollars an hour | dollars |\n|---|---|---|---|---|---|")
    for name, gpu in gpus.items():
        per_second = reached[name] * 1e12 / each
        hours = args.passages / per_second / 3600
        money = "| |" if gpu.dollars is None else f"| {gpu.dollars:.2f} | {hours * gpu.dollars:,.0f} |"
        print(f"| {name} | {gpu.tflops:,.0f} | {per_second:,.0f} | {hours:.1f} {money}")


if __name__ == "__main__":
    main()
