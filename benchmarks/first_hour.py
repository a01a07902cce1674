"""Measure on a GPU whatever only a GPU shows, in the order of its value, so that an interrupted hour leaves figures.

Each step is a process with a time limit. Its result is written to the file as soon as it ends, whether it returned
figures, failed or ran out of time. Steps whose result is there are skipped, so the same command continues.

    python benchmarks/gpu.py --first-hour --out first-hour.json

Without a GPU all steps run in a small size, which shows that they work, and no more:

    python benchmarks/gpu.py --first-hour --device cpu --out first-hour.json
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import CHECKPOINT, machine
from qwen import MEMORY, make_passages, qwen_config
from transformers import AutoModel, Qwen3Config

from pisco_index.model.compressor import Compressor
from pisco_index.model.connector import Connector
from pisco_index.model.forward.attention import Spans
from pisco_index.model.forward.kernels import choose_attention
from pisco_index.model.forward.packing import Passages

FOLDER = Path(__file__).parent
# Seconds that all steps together may take, on a GPU that is rented for 45 minutes.
HOUR_S = 45 * 60


class Step(NamedTuple):
    """A step: the arguments of its process, without the interpreter, and the seconds that it may take."""

    arguments: list[str]
    limit_s: float


def steps(device: str) -> dict[str, Step]:
    """Return the steps by name, in order."""
    small = device == "cpu"

    def own(name: str, limit_s: float) -> Step:
        return Step([str(FOLDER / "first_hour.py"), name, "--device", device], limit_s)

    sizes = ["--layers", "2", "--passages", "16", "--rounds", "1"] if small else []
    decoder = ["--decoder-layers", "1", "--decoder-width", "256", "--questions", "2", "--new-tokens", "4"]
    answers = ["--layers", "1", "--articles", "4", "--rounds", "1", "--singles", "2", "--batches", "1"]
    gpu = [str(FOLDER / "gpu.py"), "--json", "--device", device]
    return {
        "peak": own("peak", 60),
        "attention": own("attention", 120),
        "cuda_tests": Step(["-m", "pytest", "-q", str(FOLDER.parent / "tests/model/test_cuda.py")], 420),
        "synchronisation": own("synchronisation", 120),
        "load_cold": own("load", 300),
        "load_warm": own("load", 120),
        "compress": Step([*gpu, *sizes, "--decoder-layers", "0"], 480),
        "profile": own("profile", 120),
        "large_batch": own("large_batch", 120),
        "little_memory": own("little_memory", 120),
        "killed_build": own("killed_build", 300),
        "decode": Step([*gpu, "--layers", "1", "--passages", "16", *(decoder if small else [])], 300),
        "answers": Step([str(FOLDER / "answers.py"), "--json", *(answers if small else [])], 420),
    }


def run(device: str, out: Path) -> dict[str, Any]:
    """Run the steps that have no result yet, and return all results by name."""
    results = json.loads(out.read_text()) if out.exists() else {}
    ends = time.monotonic() + HOUR_S
    # The compiled layers of the cold load are those of the warm one, and of nobody else.
    with tempfile.TemporaryDirectory() as cache:
        for name, step in steps(device).items():
            if results.get(name, {}).get("rc") == 0:
                continue
            if (left := ends - time.monotonic()) <= 0:
                break
            print(f"… {name}", file=sys.stderr, flush=True)
            results[name] = outcome(step, min(step.limit_s, left), {"TORCHINDUCTOR_CACHE_DIR": cache})
            results["machine"] = machine()
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(results, indent=2) + "\n")
    return results


def outcome(step: Step, limit_s: float, variables: dict[str, str]) -> dict[str, Any]:
    """Run a step in a process group of its own, and end all of it at the limit."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *step.arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **variables},
        start_new_session=True,
    )
    try:
        shown, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        shown, _ = process.communicate()
    lines = shown.strip().splitlines()
    result: dict[str, Any] = {"seconds": round(time.perf_counter() - began, 1), "rc": process.returncode}
    try:
        return result | {"figures": json.loads(lines[-1])}
    except (IndexError, json.JSONDecodeError):
        return result | {"shown": lines[-20:]}


def _compressor(device: torch.device, *, compiled: bool = False, shape: Qwen3Config | None = None) -> Compressor:
    torch.manual_seed(0)
    shape = shape or qwen_config(28 if device.type == "cuda" else 2)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = AutoModel.from_config(shape, dtype=dtype, attn_implementation="sdpa").to(device).eval()
    connector = Connector(shape.hidden_size, 8, 8)
    return Compressor(model, connector, memory_token_ids=(MEMORY,), compiled=compiled)


def _passages(device: torch.device) -> Passages:
    return Passages.of(make_passages(4096 if device.type == "cuda" else 16))


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def peak(device: torch.device) -> dict[str, Any]:
    """Return the best speed of a matrix product."""
    from gpu import Clock, matmul_peak

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"peak_tflops": matmul_peak(Clock(device), dtype) / 1e12}


def attention(device: torch.device) -> dict[str, Any]:
    """Return the attention that is chosen, and its time for batches of several sizes."""
    is_cuda = device.type == "cuda"
    dtype = torch.bfloat16 if is_cuda else torch.float32
    chosen = choose_attention(device, dtype, heads=16, key_heads=8, head_dim=128)
    result: dict[str, Any] = {"chosen": getattr(chosen, "__name__", str(chosen))}
    for tokens in (8_000, 100_000, 400_000) if is_cuda else (800,):
        lengths = torch.full((tokens // 125,), 125)
        starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
        spans = Spans.of(starts, 125)
        query, key, value = (
            torch.randn(int(starts[-1]), heads, 128, device=device, dtype=dtype) for heads in (16, 8, 8)
        )

        def call(query: Any = query, key: Any = key, value: Any = value, spans: Spans = spans) -> None:
            chosen(query, key, value, spans, spans, scale=128**-0.5, causal=True, window=None)

        _seconds(device, call)
        result[f"ms_at_{tokens}"] = 1000 * _seconds(device, lambda call=call: [call() for _ in range(10)]) / 10
    return result


def synchronisation(device: torch.device) -> dict[str, Any]:
    """Return the places where compressing waits for the device: none but at the end."""
    compressor, passages = _compressor(device), _passages(device)
    compressor.compress(passages)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        launched = compressor.launch(passages)
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        launched.finish()
    places = sorted(
        {f"{Path(each.filename).name}:{each.lineno}" for each in caught if "called a sync" in str(each.message)}
    )
    return {"synchronisations_while_launching": places}


def load(device: torch.device) -> dict[str, Any]:
    """Return the time of a compiled compressor's start, and of its first shard."""
    began = time.perf_counter()
    compressor = _compressor(device, compiled=True)
    ready_s = time.perf_counter() - began
    passages = _passages(device)
    first_s = _seconds(device, lambda: compressor.compress(passages))
    return {"ready_s": ready_s, "first_shard_s": first_s, "token_budget": compressor.token_budget}


def profile(device: torch.device) -> dict[str, Any]:
    """Return the kernels that take most of the time of a shard."""
    compressor, passages = _compressor(device), _passages(device)
    compressor.compress(passages)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiled:
        compressor.compress(passages)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    table = profiled.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60)
    return {"table": table.splitlines()}


def large_batch(device: torch.device) -> dict[str, Any]:
    """Return how a batch with more than 2**31 elements agrees with small ones, at the width of Mistral 7B."""
    wide = {"hidden_size": 4096, "intermediate_size": 14_336, "num_attention_heads": 32, "num_key_value_heads": 8}
    narrow = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    is_cuda = device.type == "cuda"
    sizes = {**(wide if is_cuda else narrow), "num_hidden_layers": 1, "head_dim": 128 if is_cuda else 16}
    compressor = _compressor(device, shape=Qwen3Config(vocab_size=MEMORY + 1, **sizes))
    tokens = 160_000 if is_cuda else 2_000
    passages = Passages.of(make_passages(tokens // 125))
    compressor.token_budget = 2 * tokens
    whole = compressor.compress(passages).values.float()
    compressor.token_budget = tokens // 20
    parts = compressor.compress(passages).values.float()
    cosine = torch.cosine_similarity(whole, parts)
    return {"elements": tokens * sizes["intermediate_size"], "min_cosine": float(cosine.min())}


def little_memory(device: torch.device) -> dict[str, Any]:
    """Return how the compressor does with too large a budget on a device with too little memory."""
    compressor, passages = _compressor(device), _passages(device)
    expected = compressor.compress(passages).values.float()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated(device) + 2**30) / total, device)
    compressor.token_budget = 2**20
    values = compressor.compress(passages).values.float()
    cosine = torch.cosine_similarity(values, expected)
    return {"budget_after": compressor.token_budget, "min_cosine": float(cosine.min())}


def killed_build(device: torch.device) -> dict[str, Any]:
    """Kill a build while it computes, resume it, and return what verify says."""
    command = [sys.executable, "-m", "pisco_index.cli"]
    with tempfile.TemporaryDirectory() as folder:
        documents = 100_000 if device.type == "cuda" else 600
        corpus, store = Path(folder, "corpus.jsonl"), Path(folder, "store")
        text = "The ferry crosses the lake twice a day, and in winter once. " * 8
        with corpus.open("w") as file:
            for number in range(documents):
                file.write(json.dumps({"id": str(number), "text": f"{number} {text}"}) + "\n")
        build = [*command, "build", str(corpus), "-k", str(CHECKPOINT), "-o", str(store), "--device", str(device)]
        build += ["--shard-documents", "200", "--no-index"]
        with subprocess.Popen(build, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "compressing" in line:
                    break
            time.sleep(2)
            process.kill()
        killed = process.wait() != 0
        again = subprocess.run(build, capture_output=True, text=True, check=False)
        verified = subprocess.run([*command, "verify", str(store)], capture_output=True, text=True, check=False)
    return {"killed": killed, "resumed_rc": again.returncode, "verify": verified.stdout.strip().splitlines()[:2]}


def main() -> None:
    """Run one step in this process, and print its figures as one JSON object."""
    own: tuple[Callable[[torch.device], dict[str, Any]], ...] = (
        *(peak, attention, synchronisation, load, profile, large_batch, little_memory, killed_build),
    )
    named = {each.__name__: each for each in own}
    parser = argparse.ArgumentParser(description="Run one step of gpu.py --first-hour.")
    parser.add_argument("step", choices=named)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    print(json.dumps(named[args.step](torch.device(args.device))))


if __name__ == "__main__":
    main()
