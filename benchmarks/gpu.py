"""Measure how much of a device's speed the compressor uses, and compare our decoding with that of transformers.

All ways run in turn in one process, on random weights: the device's best matrix product; the reference's way (causal
LM, all hidden states, logits and cache, left padding, passages as they come); transformers' base model on sorted and
padded passages; our packed compressor; and the same with compiled layers. Then questions are answered: by
``Decoder.generate`` from memory, and by transformers' ``generate`` from the same embeddings.

    python benchmarks/gpu.py --out gpu.json

On a CPU these sizes show that the script runs, and no more:

    python benchmarks/gpu.py --device cpu --layers 2 --passages 16 --decoder-layers 1 --decoder-width 256 \\
        --questions 4 --new-tokens 8 --rounds 2

With ``--first-hour`` it runs ``first_hour.py`` instead: whatever only a GPU shows, step by step.

``fraction_of_peak`` is a share of ``peak_tflops``, the best matrix product. It counts the same work for every way: that
of our compressor, with the last layer at memory tokens only, without padding and logits. ``cost.py --measured FILE``
turns it into hours.
"""

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from compress import compress_naively
from measure import machine, options, positive, print_json, report, seconds
from qwen import MEMORY, RATE, flop, make_passages, qwen_config
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForCausalLM

from pisco_index.model.compressor import Compressor
from pisco_index.model.connector import Connector
from pisco_index.model.decoder import Decoder
from pisco_index.model.device import compute_dtype
from pisco_index.model.forward.packing import Passages
from pisco_index.model.generation import GenerationDefaults
from pisco_index.model.memory import Memory

# Widths of the square matrices that are multiplied to find a device's peak. The largest fill the largest GPUs.
SIZES = {"cuda": (4096, 8192, 16384), "cpu": (1024, 2048)}
# Number of passages in a batch of the reference's way.
REFERENCE_BATCH = 32


class Way(NamedTuple):
    """A way to compress.

    Attributes:
        run: function that returns the memory of passages.
        passages: passages to measure it with.
    """

    run: Callable[[list[list[int]]], torch.Tensor]
    passages: list[list[int]]


class Clock:
    """Measures the time and the peak memory of work on a device."""

    def __init__(self, device: torch.device):
        self.device = device
        self.is_cuda = device.type == "cuda"

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object]) -> float:
        def finish() -> None:
            run()
            self.synchronize()

        self.synchronize()
        return seconds(finish)

    @contextmanager
    def peak_mib(self, into: dict[str, Any], name: str) -> Iterator[None]:
        """Write down the peak of a GPU's memory, above what was allocated before. ``compress.py`` does it for a CPU."""
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
    """Return the most FLOP/s that a product of square matrices reaches."""
    best = 0.0
    for size in SIZES[clock.device.type]:
        a, b, c = (torch.randn(size, size, device=clock.device, dtype=dtype) for _ in range(3))
        repeats = 20 if clock.is_cuda else 3
        clock.seconds(lambda a=a, b=b, c=c: torch.matmul(a, b, out=c))
        for _ in range(5):
            took = clock.seconds(lambda a=a, b=b, c=c, n=repeats: [torch.matmul(a, b, out=c) for _ in range(n)])
            best = max(best, 2 * size**3 * repeats / took)
    return best


def say(text: str) -> None:
    """Print what the script does now. Figures go to stdout, and this does not."""
    print(f"… {text}", file=sys.stderr, flush=True)


@torch.inference_mode()
def compress_padded(model: Any, passages: list[list[int]], budget: int) -> torch.Tensor:
    """Return the memory that transformers' base model computes, in the order of the passages.

    A batch holds right-padded passages of similar length.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(passages)), key=lambda i: -len(passages[i]))
    parts, start = [], 0
    while start < len(order):
        rows = order[start : start + max(1, budget // len(passages[order[start]]))]
        start += len(rows)
        ids = pad_sequence([torch.tensor(passages[i]) for i in rows], batch_first=True)
        # The places are found on the CPU, because finding them on the device would wait for it.
        places = (ids == MEMORY).flatten().nonzero()[:, 0].to(device)
        states = model(input_ids=ids.to(device), use_cache=False).last_hidden_state
        parts.append(states.flatten(0, 1)[places])
    counts = [passages[i].count(MEMORY) for i in order]
    memory = dict(zip(order, torch.cat(parts).cpu().split(counts), strict=True))
    return torch.cat([memory[i] for i in range(len(passages))])


def ways_to_compress(
    device: torch.device, args: argparse.Namespace, passages: list[list[int]], few: list[list[int]]
) -> tuple[dict[str, Way], int]:
    """Return all ways by name, with equal weights, and the token budget of ours."""
    dtype, shape = getattr(torch, args.dtype), qwen_config(args.layers)
    torch.manual_seed(0)
    naive = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation="sdpa").to(device).eval()
    weights = naive.model.state_dict()

    def base() -> Any:
        model = AutoModel.from_config(shape, dtype=dtype, attn_implementation="sdpa").to(device).eval()
        model.load_state_dict(weights)
        return model

    def compressor(compiled: bool) -> Compressor:
        options = {"memory_token_ids": (MEMORY,), "token_budget": args.token_budget}
        return Compressor(base(), Connector(shape.hidden_size, 8, 8), compiled=compiled, **options)

    # Ours gets arrays, as in a build.
    arrays = {len(each): Passages.of(each) for each in (few, passages)}
    packed, plain = compressor(compiled=False), base()
    budget = packed.token_budget
    ways = {
        "reference": Way(lambda given: compress_naively(naive, given, REFERENCE_BATCH, (MEMORY,)), few),
        "padded": Way(lambda given: compress_padded(plain, given, budget), passages),
        "packed": Way(lambda given: packed.compress(arrays[len(given)]).values, passages),
    }
    if args.compiled:
        compiled = compressor(compiled=True)
        ways["compiled"] = Way(lambda given: compiled.compress(arrays[len(given)]).values, passages)
    return ways, budget


def first_runs(clock: Clock, ways: Mapping[str, Way], few: list[list[int]]) -> tuple[dict[str, Way], dict[str, Any]]:
    """Run each way once, and compare the memory of a few passages with the reference's.

    Returns:
        The ways that fit the device, and the figures.
    """
    fitting, result, expected = dict[str, Way](), dict[str, Any](), None
    for name, way in ways.items():
        say(f"{name}: first run")
        try:
            result[f"{name}_first_s"] = clock.seconds(lambda way=way: way.run(way.passages))
        except torch.OutOfMemoryError:
            # The figures of the ways that fit must not be lost.
            result[f"{name}_first_s"] = None
            continue
        fitting[name] = way
        with clock.peak_mib(result, f"{name}_peak_mib"):
            memory = way.run(few)
        expected = memory.float().cpu() if expected is None else expected
        result[f"{name}_min_cosine"] = float(torch.cosine_similarity(memory.float().cpu(), expected).min())
    return fitting, result


def compare_compressors(clock: Clock, args: argparse.Namespace) -> dict[str, Any]:
    passages = make_passages(args.passages)
    few = passages[: max(32, args.passages // 16)]
    ways, budget = ways_to_compress(clock.device, args, passages, few)
    needed = flop(qwen_config(args.layers), passages) / len(passages)
    ways, first = first_runs(clock, ways, few)
    result = {"token_budget": budget, "gflop_per_passage": needed / 1e9, **first}
    # A CPU computes in another dtype than the weights' if that is faster.
    dtype = compute_dtype(clock.device, getattr(torch, args.dtype))
    peak, times = 0.0, dict[str, list[float]]()
    for number in range(args.rounds):
        # The ways take turns, so that a busy moment of the machine or a hot chip falls on all of them.
        say(f"round {number + 1} of {args.rounds}")
        peak = max(peak, matmul_peak(clock, dtype))
        for name, way in ways.items():
            per_passage = clock.seconds(lambda way=way: way.run(way.passages)) / len(way.passages)
            times.setdefault(name, []).append(per_passage)
    result["peak_tflops"] = peak / 1e12
    tokens = sum(map(len, passages)) / len(passages)
    middle = {name: statistics.median(each) for name, each in times.items()}
    for name, each in middle.items():
        result[f"{name}_passages_per_s"] = 1 / each
        result[f"{name}_tokens_per_s"] = tokens / each
        result[f"{name}_fraction_of_peak"] = needed / each / peak
    best = min(("packed", "compiled"), key=lambda name: middle.get(name, float("inf")))
    for name in ("reference", "padded"):
        result[f"ratio_to_{name}"] = middle[name] / middle[best] if name in middle else None
    result["fraction_of_peak"] = result[f"{best}_fraction_of_peak"]
    return result


class TokenizerStub:
    """The part of a tokenizer that a decoder uses if its prompts are token ids."""

    pad_token_id = eos_token_id = 0

    def convert_tokens_to_ids(self, _: str) -> int:
        return MEMORY


def make_decoder(device: torch.device, args: argparse.Namespace) -> tuple[Any, Decoder]:
    """Return a model of transformers and our decoder around it. No answer ends before its last token."""
    dtype, shape = getattr(torch, args.dtype), qwen_config(args.decoder_layers)
    shape.hidden_size, shape.intermediate_size = args.decoder_width, 3 * args.decoder_width
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation="sdpa").to(device).eval()
    decoder = Decoder(model, TokenizerStub(), Connector(1024, 1024, args.decoder_width).to(device, dtype))
    decoder.generation = GenerationDefaults(stop_token_ids=())
    return model, decoder


def make_prompts(decoder: Decoder, questions: int, dtype: torch.dtype) -> tuple[list[list[int]], list[Memory]]:
    """Return prompts of 60 tokens and the memory of five documents, and that memory."""
    generator = torch.Generator().manual_seed(0)
    prompts, memories = [], []
    for _ in range(questions):
        lengths = tuple(torch.randint(5, 12, (5,), generator=generator).tolist())
        text = torch.randint(1, MEMORY, (60,), generator=generator).tolist()
        prompts.append(text[:30] + [MEMORY] * sum(lengths) + text[30:])
        values = torch.randn(sum(lengths), 1024, generator=generator).to(dtype)
        memories.append(Memory(values, lengths, "hidden", decoder.connector.digest))
    return prompts, memories


def compare_decoders(clock: Clock, args: argparse.Namespace) -> dict[str, Any]:
    """Answer a batch of questions both ways, with as many tokens as asked for."""
    model, decoder = make_decoder(clock.device, args)
    prompts, memories = make_prompts(decoder, args.questions, getattr(torch, args.dtype))
    with torch.inference_mode():
        embeddings = [decoder.embed(ids, memory) for ids, memory in zip(prompts, memories, strict=True)]
        inputs = pad_sequence(embeddings, batch_first=True, padding_side="left")
        attended = [torch.ones(len(each), dtype=torch.int64, device=clock.device) for each in embeddings]
        mask = pad_sequence(attended, batch_first=True, padding_side="left")

    def theirs() -> list[list[int]]:
        with torch.inference_mode():
            settings = {"max_new_tokens": args.new_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            return model.generate(inputs_embeds=inputs, attention_mask=mask, **settings).tolist()

    def ours() -> list[list[int]]:
        return decoder.generate(prompts, memories, max_new_tokens=args.new_tokens)

    same = sum(ours()[i] == ids for i, ids in enumerate(theirs())) / args.questions
    say("decoding")
    times: dict[str, list[float]] = {"theirs": [], "ours": []}
    for _ in range(args.rounds):
        times["theirs"].append(clock.seconds(theirs))
        times["ours"].append(clock.seconds(ours))
    middle = {name: statistics.median(each) for name, each in times.items()}
    return {
        "decoding_answers_per_s": args.questions / middle["ours"],
        "decoding_tokens_per_s": args.questions * args.new_tokens / middle["ours"],
        "decoding_ratio_to_generate": middle["theirs"] / middle["ours"],
        "decoding_same_answers": same,
    }


def parse_args() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--device", default="cuda", help="device to measure: cuda, cuda:1, or cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="dtype of the weights")
    parser.add_argument("--layers", type=positive, default=28, help="layers of the compressor, of Qwen3-0.6B's width")
    parser.add_argument("--passages", type=positive, default=16_384, help="passages; the reference gets 1 of 16")
    parser.add_argument("--token-budget", type=positive, help="largest number of tokens in a batch; default: what fits")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, help="compile layers; default: on a GPU")
    parser.add_argument("--decoder-layers", type=int, default=28, help="layers of the decoder; 0 skips decoding")
    parser.add_argument("--decoder-width", type=positive, default=2048, help="width of the decoder")
    parser.add_argument("--questions", type=positive, default=32, help="questions, answered in one batch")
    parser.add_argument("--new-tokens", type=positive, default=32, help="tokens of each answer")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds, in which all ways take turns")
    parser.add_argument("--out", type=Path, help="file to write the result to")
    parser.add_argument("--first-hour", action="store_true", help="run all steps of first_hour.py; needs --out")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no GPU. To try the script on a CPU, take the sizes in --help.")
    if args.first_hour and not args.out:
        parser.error("--first-hour writes its results as it goes: name a file with --out.")
    args.compiled = device.type == "cuda" if args.compiled is None else args.compiled
    return args


def main() -> None:
    args = parse_args()
    if args.first_hour:
        import first_hour

        first_hour.run(args.device, args.out)
        return
    clock = Clock(torch.device(args.device))
    result: dict[str, Any] = {
        "baseline": "AutoModelForCausalLM, all hidden states, left padding, arrival order",
        "device": torch.cuda.get_device_name(clock.device) if clock.is_cuda else "cpu",
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
        # Written after each comparison, because a rented machine may be gone before the last one.
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result | machine(), indent=2) + "\n")
    if args.json:
        print_json(result)


if __name__ == "__main__":
    main()
