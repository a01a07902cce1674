"""Faults of a build, for every Python process that has this folder on its path.

A document whose text holds ``POISON-`` and one of the names below does that when it is tokenized, or with
``-LATE`` behind it when it is compressed.

Where ``PISCO_FAULTS`` names a folder, moments of a build (a shard was written, a commit is made) are struck by what
``settings.json`` in it says: a seed, and for each kind of moment the rates of the faults. Each moment leaves a file
there, named by its kind, its number and how often it has come; the file holds the time and the fault, if there is one.
"""

import ctypes
import importlib.abc
import importlib.util
import itertools
import json
import os
import random
import re
import signal
import sys
import time
from functools import cache
from pathlib import Path

FOLDER = os.environ.get("PISCO_FAULTS")
# A shard whose every file is torn would never be done.
MOST = 3


def fail():
    raise ValueError("this document cannot be compressed")


def hang():
    while True:
        time.sleep(60)


def stop():
    # Who is continued from outside stops again.
    while True:
        os.kill(os.getpid(), signal.SIGSTOP)


FAULTS = {
    "RAISE": fail,
    # In the very thread: of a signal to the process, another thread dies while this one goes on.
    "SEGV": lambda: ctypes.string_at(0),
    "KILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "EXIT": lambda: os._exit(7),
    "HANG": hang,
    "SLOW": lambda: time.sleep(0.5),
    "STOP": stop,
}
MARK = re.compile(f"POISON-({'|'.join(FAULTS)})(-LATE)?")


@cache
def settings():
    return json.loads((Path(FOLDER) / "settings.json").read_text())


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def befalls(kind, name=""):
    """What befalls a moment by the seed, drawn anew each time that it comes; None mostly."""
    if FOLDER is None:
        return None
    rates = settings()["rates"][kind]
    times = itertools.count()
    while True:
        path = Path(FOLDER) / f"{kind}{name}.{(number := next(times))}"
        draw = random.Random(f"{settings()['seed']} {path.name}")
        fault = next(iter(draw.choices([*rates, None], [*rates.values(), 1 - sum(rates.values())])))
        if name and number >= MOST:
            fault = None
        try:
            with path.open("x") as file:
                file.write(json.dumps([time.time(), fault]))
        except FileExistsError:
            continue
        return fault


def tear(path, fault):
    if fault == "gone":
        path.unlink()
    elif fault == "short":
        os.truncate(path, path.stat().st_size // 2)
    elif fault == "garbled":
        with path.open("r+b") as file:
            file.seek(-40, os.SEEK_END)
            file.write(bytes(40))


class Late(list):
    """Tokenized documents of which one is poison to compress."""

    fault = None


def spoil_reading(reading):
    """Make the readers of a module fail of poison, and mark the tokens of what is poison later."""
    kind, tokens = reading.ShardReader, reading.Tokens
    tokenize, make = kind.tokenize, tokens.of

    def tokenize_or_fail(self, documents):
        found = [match for document in documents for match in MARK.finditer(document.text)]
        for match in found:
            if not match[2]:
                FAULTS[match[1]]()
        tokenized = Late(tokenize(self, documents))
        tokenized.fault = next((match[1] for match in found), None)
        return tokenized

    def make_and_mark(tokenized):
        made = make(tokenized)
        vars(made)["fault"] = getattr(tokenized, "fault", None)
        return made

    kind.tokenize, tokens.of = tokenize_or_fail, make_and_mark


def spoil_worker(worker):
    """Make the workers of a module fail of poison, and what they have written be torn."""
    kind = worker.ShardWorker
    compress = kind._compress

    def compress_or_fail(self, shard, tokens, *passages):
        if getattr(tokens, "fault", None):
            FAULTS[tokens.fault]()
        if FOLDER is not None:
            time.sleep(settings()["pace_s"])
        return compress(self, shard, tokens, *passages)

    kind._compress = compress_or_fail
    write = worker.write_fragment

    def write_and_tear(uri, shard, *tables):
        written = write(uri, shard, *tables)
        fault = befalls("write", f"-{shard}")
        if fault == "dies":
            die()
        for fragment in written.memory_fragments:
            for file in json.loads(fragment)["files"]:
                tear(Path(uri) / "memory.lance" / "data" / file["path"], fault)
        return written

    worker.write_fragment = write_and_tear


def spoil_commits(swap):
    """Make commits fail, before or after they land."""
    lance = swap.lance.LanceDataset
    commit = lance.commit

    def commit_or_fail(*arguments, **options):
        fault = befalls("commit")
        if fault == "refused":
            raise OSError("this commit was not made")
        if fault == "full":
            raise OSError("No space left on device (os error 28)")
        if fault == "dies before":
            die()
        committed = commit(*arguments, **options)
        if fault == "dies after":
            die()
        if fault == "landed":
            raise OSError("the answer to this commit got lost")
        return committed

    lance.commit = staticmethod(commit_or_fail)


class Spoiler(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Spoils a module when it is imported, whenever that is: most processes never do."""

    def __init__(self, name, spoil):
        self.name, self.spoil = name, spoil

    def find_spec(self, name, path=None, target=None):
        """Take the module over."""
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        self.loader = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec):
        """Make it as usual."""
        return self.loader.create_module(spec)

    def exec_module(self, module):
        """Load it, and spoil it."""
        self.loader.exec_module(module)
        self.spoil(module)


sys.meta_path.insert(0, Spoiler("pisco_index.pipeline.reading.shard", spoil_reading))
sys.meta_path.insert(0, Spoiler("pisco_index.pipeline.worker", spoil_worker))
sys.meta_path.insert(0, Spoiler("pisco_index.store.table.swap", spoil_commits))
