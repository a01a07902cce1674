"""Stores of one small corpus, and questions about it."""

import functools
import json

import pytest
import torch

from pisco_index import BuildConfig, build, new_tiny_checkpoint


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A model this small is slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return new_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", rate=8).path


@pytest.fixture(scope="session")
def documents():
    return {f"doc-{n}": f"Document {n} is about " + "the history of the city " * (n % 5) for n in range(20)}


@pytest.fixture(scope="session")
def store_of(tmp_path_factory, checkpoint, documents):
    """Return the store of a codec, stage and kept columns; it is built once."""

    @functools.cache
    def make(codec, stage, keep=()):
        folder = tmp_path_factory.mktemp("made")
        corpus = folder / "corpus.jsonl"
        lines = ({"id": doc_id, "title": f"T {doc_id}", "text": text} for doc_id, text in documents.items())
        corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
        settings = {
            "compression": {"dtype": "float32", "max_length": 32},
            "store": {"codec": codec, "stage": stage, "keep": list(keep)},
        }
        build([corpus], checkpoint, folder / "store", BuildConfig.parse(settings, "test"))
        return folder / "store"

    return make


@pytest.fixture(scope="session")
def kept(store_of):
    """A store in bf16 that keeps titles and texts."""
    return store_of("bf16", "hidden", ("title", "text"))
