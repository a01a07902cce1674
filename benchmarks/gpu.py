"""How near the compressor comes to what the device can multiply, and our decoding to transformers' own.

Side by side in one process, on random weights: the device's best matrix product; the reference's way (causal LM, all
hidden states, logits and cache, left padding, passages as they come); transformers' base model on sorted, padded
passages; our packed compressor; and the same compiled. Then answers: ``Decoder.generate`` from memory against
transformers' ``generate`` from the same embeddings.

    python benchmarks/gpu.py [--json] [--out FILE]

On a CPU, where it shows no more than that it runs:

    python benchmarks/gpu.py --device cpu --layers 2 --passages 16 --decoder-layers 1 --decoder-width 256 \
        --questions 4 --new-tokens 8 --rounds 2

``fraction_of_peak`` is that of ``peak_tflops``, the best matrix product, and counts for every way what ours computes:
the last layer at memory tokens only, no padding and no logits. ``cost.py --measured FILE`` makes hours of it.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compress import MEMORY, RATE, compress_naively, config, make_passages
from measure import HelpFormatter, machine, positive, report
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForCausalLM, Qwen3Config

from pisco_index.model.compressor import Compressor
from pisco_index.model.connector import Connector
from pisco_index.model.decoder import Decoder
from pisco_index.model.device import arithmetic_for
from pisco_index.model.forward.packing import Passages
from pisco_index.model.memory import Memory

# Wide enough to fill the largest chips; the best of these is taken for the peak.
SIZES = {"cuda": (4096, 8192, 16384), "cpu": (1024, 2048)}


class Clock:
    """Times runs on a device, and their peak memory."""

    def __init__(self, device: torch.device):
        self.device = device
        self.is_cuda = device.type == "cuda"

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object]) -> float:
        self.synchronize()
        began = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - began

    @contextmanager
    def peak_mib(self, into: dict[str, Any], name: str) -> Iterator[None]:
        """Memory of a GPU above what was there before. For a CPU see ``compress.py``."""
        gc.collect()
        if not self.is_cuda:
            yield
            return
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        yield
        into[name] = round((torch.cuda.max_memory_allocated(self.device) - before) / 2**20)


def matmul_peak(clock: Clock, dtype: torch.dtype) -> float:
    """The most FLOP/s that products of square matrices reach here."""
    best = 0.0
    for size in SIZES[clock.device.type]:
        a, b, c = (torch.randn(size, size, device=clock.device, dtype=dtype) for _ in range(3))
        repeats = 20 if clock.is_cuda else 3
        clock.seconds(lambda a=a, b=b, c=c: torch.matmul(a, b, out=c))
        for _ in range(5):
            seconds = clock.seconds(lambda a=a, b=b, c=c, n=repeats: [torch.matmul(a, b, out=c) for _ in range(n)])
            best = max(best, 2 * size**3 * repeats / seconds)
    return best


def tell(what: str) -> None:
    print(f"… {what}", file=sys.stderr, flush=True)


def flop(shape: Qwen3Config, passages: list[list[int]]) -> float:
    """Multiplications and additions that memory of these passages needs: the last layer's at memory tokens only."""
    hidden, heads, width = shape.hidden_size, shape.num_attention_heads, shape.head_dim
    key_value = 2 * hidden * shape.num_key_value_heads * width
    others = 2 * hidden * heads * width + 3 * hidden * shape.intermediate_size
    lengths = np.array(list(map(len, passages)), dtype=np.float64)
    memory = np.array([passage.count(MEMORY) for passage in passages], dtype=np.float64)
    # Scores and weighted sums, of each token with those before it.
    attention = 2 * heads * width * lengths * lengths
    whole = shape.num_hidden_layers - 1
    layers = whole * (2 * (key_value + others) * lengths + attention)
    last = 2 * key_value * lengths + 2 * others * memory + 4 * heads * width * lengths * memory
    return float((layers + last).sum())


@torch.inference_mode()
def padded(model: Any, passages: list[list[int]], budget: int) -> torch.Tensor:
    """transformers' base model on right-padded passages of like length; the memory in the order of the passages."""
    device = next(model.parameters()).device
    order = sorted(range(len(passages)), key=lambda i: -len(passages[i]))
    parts, start = [], 0
    while start < len(order):
        rows = order[start : start + max(1, budget // len(passages[order[start]]))]
        start += len(rows)
        ids = pad_sequence([torch.tensor(passages[i]) for i in rows], batch_first=True)
        # Places that are found on the CPU, so that the device is not waited for.
        places = (ids == MEMORY).flatten().nonzero()[:, 0].to(device)
        states = model(input_ids=ids.to(device), use_cache=False).last_hidden_state
        parts.append(states.flatten(0, 1)[places])
    counts = [passages[i].count(MEMORY) for i in order]
    memory = dict(zip(order, torch.cat(parts).cpu().split(counts), strict=True))
    return torch.cat([memory[i] for i in range(len(passages))])


def compare_compressors(clock: Clock, args: argparse.Namespace) -> dict[str, Any]:
    device, dtype, result = clock.device, getattr(torch, args.dtype), dict[str, Any]()
    shape = config(args.layers)
    torch.manual_seed(0)
    naive = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation="sdpa").to(device).eval()
    weights = naive.model.state_dict()

    def base() -> Any:
        model = AutoModel.from_config(shape, dtype=dtype, attn_implementation="sdpa").to(device).eval()
        model.load_state_dict(weights)
        return model

    def compressor(compiled: bool) -> Compressor:
        options = {"memory_token_id": MEMORY, "token_budget": args.token_budget}
        return Compressor(base(), Connector(shape.hidden_size, 8, 8), compiled=compiled, **options)

    passages = make_passages(args.passages)
    few = passages[: max(32, args.passages // 16)]
    # As a build gives them.
    arrays = {len(each): Passages.of(each) for each in (few, passages)}
    packed = compressor(compiled=False)
    plain = base()
    result["token_budget"] = packed.token_budget
    ways: dict[str, tuple[Callable[[list[list[int]]], torch.Tensor], list[list[int]]]] = {
        "reference": (lambda given: compress_naively(naive, given, 32), few),
        "padded": (lambda given: padded(plain, given, packed.token_budget), passages),
        "packed": (lambda given: packed.compress(arrays[len(given)]).values, passages),
    }
    if args.compiled:
        compiled = compressor(compiled=True)
        ways["compiled"] = (lambda given: compiled.compress(arrays[len(given)]).values, passages)
    needed = flop(shape, passages)
    result["gflop_per_passage"] = needed / len(passages) / 1e9
    expected, seconds = None, dict[str, list[float]]()
    for name, (run, given) in list(ways.items()):
        tell(f"{name}, for the first time")
        try:
            result[f"{name}_first_s"] = clock.seconds(lambda run=run, given=given: run(given))
        except torch.OutOfMemoryError:
            # Others that were measured are not to be lost for it.
            result[f"{name}_first_s"] = None
            del ways[name]
            continue
        with clock.peak_mib(result, f"{name}_peak_mib"):
            memory = run(few)
        expected = memory.float().cpu() if expected is None else expected
        result[f"{name}_min_cosine"] = float(torch.cosine_similarity(memory.float().cpu(), expected).min())
    # In turns, so that a busy moment of the machine or a chip that is warm is nobody's own.
    peak = 0.0
    for turn in range(args.rounds):
        tell(f"round {turn + 1} of {args.rounds}")
        # Of a CPU in what it computes in.
        peak = max(peak, matmul_peak(clock, arithmetic_for(device, dtype)))
        for name, (run, given) in ways.items():
            per_passage = clock.seconds(lambda run=run, given=given: run(given)) / len(given)
            seconds.setdefault(name, []).append(per_passage)
    result["peak_tflops"] = peak / 1e12
    tokens = sum(map(len, passages)) / len(passages)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    for name, each in middle.items():
        result[f"{name}_passages_per_s"] = 1 / each
        result[f"{name}_tokens_per_s"] = tokens / each
        result[f"{name}_fraction_of_peak"] = needed / len(passages) / each / peak
    best = min(("packed", "compiled"), key=lambda name: middle.get(name, float("inf")))
    for name in ("reference", "padded"):
        result[f"ratio_to_{name}"] = middle[name] / middle[best] if name in middle else None
    result["fraction_of_peak"] = result[f"{best}_fraction_of_peak"]
    return result


class Words:
    """As much of a tokenizer as a decoder that is given token ids needs."""

    pad_token_id = eos_token_id = 0

    def convert_tokens_to_ids(self, _: str) -> int:
        return MEMORY


def compare_decoders(clock: Clock, args: argparse.Namespace) -> dict[str, Any]:
    """Answers to a batch of questions, five documents of memory each, as many tokens as asked for."""
    dtype = getattr(torch, args.dtype)
    shape = config(args.decoder_layers)
    shape.hidden_size, shape.intermediate_size = args.decoder_width, 3 * args.decoder_width
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation="sdpa").to(clock.device).eval()
    decoder = Decoder(model, Words(), Connector(1024, 1024, args.decoder_width).to(clock.device, dtype))
    # None ends early.
    decoder._end_token_ids = []
    generator = torch.Generator().manual_seed(0)
    prompts, memories = [], []
    for _ in range(args.questions):
        lengths = tuple(torch.randint(5, 12, (5,), generator=generator).tolist())
        text = torch.randint(1, MEMORY, (60,), generator=generator).tolist()
        prompts.append(text[:30] + [MEMORY] * sum(lengths) + text[30:])
        values = torch.randn(sum(lengths), 1024, generator=generator).to(dtype)
        memories.append(Memory(values, lengths, "hidden", decoder.connector.digest))
    with torch.inference_mode():
        embeddings = [decoder.embed(ids, memory) for ids, memory in zip(prompts, memories, strict=True)]
        inputs = pad_sequence(embeddings, batch_first=True, padding_side="left")
        attended = [torch.ones(len(each), dtype=torch.int64, device=clock.device) for each in embeddings]
        mask = pad_sequence(attended, batch_first=True, padding_side="left")

    def plainly() -> list[list[int]]:
        with torch.inference_mode():
            options = {"max_new_tokens": args.new_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            return model.generate(inputs_embeds=inputs, attention_mask=mask, **options).tolist()

    def ours() -> list[list[int]]:
        return decoder.generate(prompts, memories, max_new_tokens=args.new_tokens)

    same = sum(ours()[i] == ids for i, ids in enumerate(plainly())) / args.questions
    tell("decoding")
    times: dict[str, list[float]] = {"generate": [], "ours": []}
    for _ in range(args.rounds):
        times["generate"].append(clock.seconds(plainly))
        times["ours"].append(clock.seconds(ours))
    middle = {name: statistics.median(each) for name, each in times.items()}
    return {
        "decoding_answers_per_s": args.questions / middle["ours"],
        "decoding_tokens_per_s": args.questions * args.new_tokens / middle["ours"],
        "decoding_ratio_to_generate": middle["generate"] / middle["ours"],
        "decoding_same_answers": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--layers", type=positive, default=28, help="of the compressor, as wide as Qwen3-0.6B")
    parser.add_argument("--passages", type=positive, default=16_384, help="that all but the reference compress")
    parser.add_argument("--token-budget", type=positive, help="default: what fits")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--decoder-layers", type=int, default=28, help="0 leaves decoding out")
    parser.add_argument("--decoder-width", type=positive, default=2048, help="of the decoder")
    parser.add_argument("--questions", type=positive, default=32, help="answered in one batch")
    parser.add_argument("--new-tokens", type=positive, default=32, help="of each answer")
    parser.add_argument("--rounds", type=positive, default=5, help="of measuring all ways in turn")
    parser.add_argument("--out", type=Path, help="write the result to this file, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()

    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --help has sizes for --device cpu")
    clock = Clock(device)
    if args.compiled is None:
        args.compiled = clock.is_cuda
    result: dict[str, Any] = {
        "baseline": "AutoModelForCausalLM, all hidden states, left padding, arrival order",
        "device": torch.cuda.get_device_name(device) if clock.is_cuda else "cpu",
        "layers": args.layers,
        "dtype": args.dtype,
        "passages": args.passages,
        "rate": RATE,
    }
    report(result, False)
    for compare in (compare_compressors, compare_decoders)[: 2 if args.decoder_layers else 1]:
        found = compare(clock, args)
        report(found, False)
        result |= found
        # After each, since what was measured on a rented machine is not to be lost.
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result | machine(), indent=2) + "\n")
    if args.json:
        print(json.dumps(result | machine()))


if __name__ == "__main__":
    main()
