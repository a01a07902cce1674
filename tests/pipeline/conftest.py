import json

import pytest

from pisco_index import BuildConfig, new_tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny random checkpoint's folder."""
    return new_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", rate=8).path


@pytest.fixture
def make_corpus(tmp_path):
    """Write a JSONL corpus of so many documents of different lengths."""

    def make(documents=40, name="corpus.jsonl"):
        path = tmp_path / name
        with path.open("w") as file:
            for n in range(documents):
                text = f"Document {n} is about " + "the history of the city and its river " * (n % 7)
                file.write(json.dumps({"id": f"doc-{n}", "title": f"Title {n}", "text": text}) + "\n")
        return path

    return make


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
