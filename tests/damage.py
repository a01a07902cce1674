"""Damage a copy of a store in random ways, one at a time, and see what reads it: run by test_damage.py in a process of
its own, because what is tested includes that no damage ends the process.

    python tests/damage.py STORE SCRATCH FIRST COUNT

prints one JSON object a trial, from number FIRST; a trial's damage depends on its number alone.
"""

import json
import random
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import torch

from pisco_index import PiscoIndexError, Reader, verify


def damage(path: Path, chance: random.Random) -> str:
    """Damage a file and say how."""
    content = bytearray(path.read_bytes())
    at = chance.randrange(len(content))
    kind = chance.choice(["flip", "flip", "flip", "flip", "truncate", "zero", "swap", "delete"])
    if kind == "flip":
        content[at] ^= 1 << chance.randrange(8)
    elif kind == "truncate":
        del content[at:]
    elif kind == "zero":
        length = len(content[at : at + chance.choice([1, 8, 64, 512])])
        content[at : at + length] = bytes(length)
    elif kind == "swap":
        other = chance.randrange(len(content))
        content[at], content[other] = content[other], content[at]
    if kind == "delete":
        path.unlink()
    else:
        path.write_bytes(content)
    return f"{kind} at {at}"


def say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def outcome(look: Callable[[], Any]) -> tuple[str, Any]:
    """What looking gave: its result, an error of this package's, or anything else, panics included."""
    try:
        return "result", look()
    except PiscoIndexError as error:
        return "refused", str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 a panic is no Exception
        return "foreign", f"{type(error).__module__}.{type(error).__name__}: {error}"


def read_all(store: Path, ids: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The memory of documents as it is stored, and at stage "embedding"."""
    reader = Reader(store)
    memory = reader.fetch(ids)
    return memory.values, reader.connector.connect(memory).values


def columns(store: Path) -> list[dict[str, Any]]:
    """All that the rows hold but memory."""
    names = ["doc_id", "shard", "tokens_total", "tokens_fed", "n_mem", "text_hash", "error", "title", "text"]
    return sorted(
        lance.dataset(store / "memory.lance").to_table(columns=names).to_pylist(), key=lambda row: row["doc_id"]
    )


def trials(source: Path, scratch: Path, first: int, count: int) -> Iterator[dict[str, Any]]:
    """Damage, look, mend; ``count`` times."""
    files = sorted(path.relative_to(source) for path in source.rglob("*.*") if path.is_file() and path.name[0] != ".")
    ids = sorted(Reader(source).ids())
    true_values, true_embeddings = read_all(source, ids)
    true_columns = columns(source)
    shutil.copytree(source, scratch)
    for number in range(first, first + count):
        chance = random.Random(number)
        file = chance.choice(files)
        whole = (source / file).read_bytes()
        what = damage(scratch / file, chance)
        say({"begin": number, "file": str(file), "damage": what})
        kind, read = outcome(lambda: read_all(scratch, ids))
        if kind == "result":
            correct = torch.equal(read[0], true_values) and torch.equal(read[1], true_embeddings)
            kind, read = ("correct" if correct else "wrong"), None
        verified, report = outcome(lambda: verify(scratch))
        problems = None
        if verified == "result":
            verified, problems = (
                ("sound" if report.is_sound else "problems"),
                [str(each) for each in report.problems[:3]],
            )
        silent = []
        if kind == "correct" and verified == "sound":
            rows = zip(columns(scratch), true_columns, strict=True)
            silent = sorted({name for found, true in rows for name in true if found[name] != true[name]})
        yield {
            "trial": number,
            "file": str(file),
            "damage": what,
            "read": kind,
            "error": read,
            "verify": verified,
            "problems": problems if verified != "foreign" else report,
            "silent": silent,
        }
        (scratch / file).write_bytes(whole)


if __name__ == "__main__":
    # Memory without end is a failed trial, and no trouble for the machine.
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    torch.set_num_threads(1)
    for trial in trials(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])):
        say(trial)
