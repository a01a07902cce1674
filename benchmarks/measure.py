"""Tools that the benchmarks share: options, times, peaks of memory, and the report."""

import argparse
import json
import platform
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

# The checkpoint that comes with the repository.
CHECKPOINT = Path(__file__).parents[1] / "examples" / "tinypedia-checkpoint"
# Bytes of a page in /proc/self/statm.
PAGE = 4096


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Prints the description as it is written, and the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


def options(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that has the option ``--json``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, in the last line")
    return parser


def positive(text: str) -> int:
    """Return the value of an option that must be a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small: give a number of at least 1")
    return value


def seconds(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class PeakMemory:
    """Measures the highest resident memory inside the context, above the memory that was resident before it."""

    def __enter__(self) -> "PeakMemory":
        self._base = self._peak = resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self._peak = max(self._peak, resident_bytes())

    @property
    def mib(self) -> float:
        return (self._peak - self._base) / 2**20


def machine() -> dict[str, Any]:
    """Return the processor, the number of torch's threads, and the versions of the libraries."""
    import torch

    return {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers", "ray", "pylance", "lancedb")},
    }


def report(result: Mapping[str, Any], as_json: bool) -> None:
    """Print each figure in a line, and after them all figures and the machine as JSON, if that is asked for."""
    for key, value in result.items():
        print(f"{key:24} {value:.3f}" if isinstance(value, float) else f"{key:24} {value}")
    if as_json:
        print_json(result)


def print_json(result: Mapping[str, Any]) -> None:
    print(json.dumps({**result, **machine()}))
