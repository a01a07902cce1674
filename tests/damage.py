"""Damage a copy of a store at random, and see whether reading and verifying it notice.

    python tests/damage.py STORE SCRATCH FIRST COUNT

Each trial damages one file, reads and verifies the store, and repairs the file. The trials FIRST to FIRST + COUNT - 1
print one JSON object each. A trial's number alone determines its damage. ``test_damage.py`` runs this script in a
process of its own, because no damage may end the process.
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
    """Damage a file, and return a description of the damage."""
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


def is_stored(path: Path) -> bool:
    """Return True if a file belongs to a store, and is no lock and no cache."""
    return path.name == ".checksums" or (path.name[0] != "." and path.parent.name != ".pisco-index")


def print_line(record: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    """Return the outcome of a call: "result", "refused" by an error of this package, or "foreign" for any other error.

    A panic of Lance is a foreign error.
    """
    try:
        return "result", call()
    except PiscoIndexError as error:
        return "refused", str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  a panic is not an Exception
        return "foreign", f"{type(error).__module__}.{type(error).__name__}: {error}"


def read_all(store: Path, ids: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the memory of documents as it is stored, and at stage "embedding"."""
    reader = Reader(store)
    memory = reader.fetch(ids)
    return memory.values, reader.connector.connect(memory).values


def columns(store: Path) -> list[dict[str, Any]]:
    """Return the columns of all rows, without memory, in the order of the ids."""
    names = ["doc_id", "shard", "tokens_total", "tokens_fed", "n_mem", "text_hash", "error", "title", "text"]
    return sorted(
        lance.dataset(store / "memory.lance").to_table(columns=names).to_pylist(), key=lambda row: row["doc_id"]
    )


def trials(source: Path, scratch: Path, first: int, count: int) -> Iterator[dict[str, Any]]:
    """Damage a file, read and verify the store, and repair the file, ``count`` times."""
    files = sorted(path.relative_to(source) for path in source.rglob("*.*") if path.is_file() and is_stored(path))
    ids = sorted(Reader(source).ids())
    true_values, true_embeddings = read_all(source, ids)
    true_columns = columns(source)
    shutil.copytree(source, scratch)
    for number in range(first, first + count):
        chance = random.Random(number)
        file = chance.choice(files)
        whole = (source / file).read_bytes()
        damaged = damage(scratch / file, chance)
        print_line({"begin": number, "file": str(file), "damage": damaged})
        is_changed = not (scratch / file).exists() or (scratch / file).read_bytes() != whole
        kind, read = outcome(lambda: read_all(scratch, ids))
        if kind == "result":
            correct = torch.equal(read[0], true_values) and torch.equal(read[1], true_embeddings)
            kind, read = ("correct" if correct else "wrong"), None
        verified, report = outcome(lambda: verify(scratch))
        problems = None
        if verified == "result":
            verified = "problems" if report.problems else "unchecked" if report.unchecked else "sound"
            problems = [str(each) for each in report.problems[:3]]
        silent = []
        if kind == "correct" and verified == "sound":
            rows = zip(columns(scratch), true_columns, strict=True)
            silent = sorted({name for found, true in rows for name in true if found[name] != true[name]})
        yield {
            "trial": number,
            "file": str(file),
            "damage": damaged,
            "is_changed": is_changed,
            "read": kind,
            "error": read,
            "verify": verified,
            "problems": problems if verified != "foreign" else report,
            "silent": silent,
        }
        (scratch / file).write_bytes(whole)


if __name__ == "__main__":
    # A damaged length may ask for any amount of memory. That must fail the trial, not the machine.
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    torch.set_num_threads(1)
    for trial in trials(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])):
        print_line(trial)
