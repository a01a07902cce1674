"""Documents that a worker fails of, for every Python process that has this folder on its path.

A document whose text holds ``POISON-`` and one of the names below does that when it is tokenized, or with
``-LATE`` behind it when it is compressed.
"""

import importlib.abc
import importlib.util
import os
import re
import signal
import sys
import time

WORKER = "pisco_index.pipeline.worker"


def fail():
    raise ValueError("this document cannot be compressed")


def hang():
    while True:
        time.sleep(60)


FAULTS = {
    "RAISE": fail,
    "SEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "KILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "EXIT": lambda: os._exit(7),
    "HANG": hang,
    "SLOW": lambda: time.sleep(0.5),
    "STOP": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}
MARK = re.compile(f"POISON-({'|'.join(FAULTS)})(-LATE)?")


class Late(list):
    """Tokenized documents of which one is poison to compress."""

    fault = None


def spoil(worker):
    """Make the workers of a module fail of poison."""
    kind = worker.ShardWorker
    tokenize, compress = kind._tokenize, kind._compress

    def tokenize_or_fail(self, documents):
        found = [match for document in documents for match in MARK.finditer(document.text)]
        for match in found:
            if not match[2]:
                FAULTS[match[1]]()
        tokenized = Late(tokenize(self, documents))
        tokenized.fault = next((match[1] for match in found), None)
        return tokenized

    def compress_or_fail(self, shard, tokenized):
        if getattr(tokenized, "fault", None):
            FAULTS[tokenized.fault]()
        return compress(self, shard, tokenized)

    kind._tokenize, kind._compress = tokenize_or_fail, compress_or_fail


class Spoiler(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Spoils the module when it is imported, whenever that is: most processes never do."""

    def find_spec(self, name, path=None, target=None):
        """Take the module over."""
        if name != WORKER:
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
        spoil(module)


sys.meta_path.insert(0, Spoiler())
