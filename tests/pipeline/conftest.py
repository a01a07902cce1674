import json

import pytest
import torch
import xxhash

from pisco_index import BuildConfig, Compressor, new_tiny_checkpoint
from pisco_index.pipeline.pools.in_process import InProcessPool
from pisco_index.pipeline.worker import ShardWorker


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny random checkpoint's folder."""
    return new_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", rate=8).path


@pytest.fixture(autouse=True)
def _short_probe(monkeypatch):
    """Dry runs that time a moment, for what they time does not matter here."""
    monkeypatch.setattr("pisco_index.pipeline.estimate.PROBE_SECONDS", 0.1)


@pytest.fixture
def make_corpus(tmp_path):
    """Write a JSONL corpus of so many documents of different lengths."""

    def make(documents=40, name="corpus.jsonl"):
        path = tmp_path / name
        write_corpus(path, documents)
        return path

    return make


def write_corpus(path, documents):
    with path.open("w") as file:
        for n in range(documents):
            text = f"Document {n} is about " + "the history of the city and its river " * (n % 7)
            file.write(json.dumps({"id": f"doc-{n}", "title": f"Title {n}", "text": text}) + "\n")


@pytest.fixture
def small():
    """A configuration of small shards and quick commits, in fp32."""

    def config(**sections):
        values = {
            "run": {"shard_documents": 8, "commit_shards": 2},
            "compression": {"dtype": "float32", "max_length": 64},
            "store": {"codec": "fp32"},
        }
        for section, entries in sections.items():
            values[section] = {**values.get(section, {}), **entries}
        return BuildConfig.parse(values, "test")

    return config


def plain_run(self, packed, _stage):
    """In place of ``Compressor._run``: quick, and a function of each passage alone, whatever it is batched with."""
    states = []
    for passage in packed.ids[: packed.starts[-1]].split(packed.starts.diff().tolist()):
        seed = xxhash.xxh3_64_intdigest(repr(passage.tolist()).encode()) % 1009
        n_mem = int(torch.isin(passage, torch.tensor(self._memory_token_ids)).sum())
        states.append(torch.arange(n_mem * self.hidden_dim).reshape(n_mem, -1) % 31 + seed)
    return torch.cat(states).to(self.dtype)


@pytest.fixture
def plain_compressor(monkeypatch):
    """Make memory a plain function of a passage, so that stores built in any order can be compared byte by byte."""
    monkeypatch.setattr(Compressor, "_run", plain_run)


def fail_on(monkeypatch, numbers):
    """Make workers fail at the shards with these numbers, also when they are isolated."""
    run = ShardWorker.run

    def fail(self, shard):
        if shard.number in numbers:
            raise RuntimeError("no luck")
        return run(self, shard)

    def fail_isolated(self, shard, *arguments):
        assert shard.number in numbers
        raise RuntimeError("no luck")

    monkeypatch.setattr(ShardWorker, "run", fail)
    for method in ("count", "attempt", "run"):
        monkeypatch.setattr(InProcessPool, method, fail_isolated)
