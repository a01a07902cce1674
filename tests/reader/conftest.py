import functools
import json

import pytest

from pisco_index import BuildConfig, build, new_tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return new_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", rate=8).path


@pytest.fixture(scope="session")
def documents():
    return {f"doc-{n}": f"Document {n} is about " + "the history of the city " * (n % 5) for n in range(20)}


@pytest.fixture(scope="session")
def store_of(tmp_path_factory, checkpoint, documents):
    """Return the store in fp32 of a stage; it is built once."""

    @functools.cache
    def make(stage):
        folder = tmp_path_factory.mktemp(stage)
        corpus = folder / "corpus.jsonl"
        lines = (json.dumps({"id": doc_id, "text": text}) + "\n" for doc_id, text in documents.items())
        corpus.write_text("".join(lines))
        settings = {
            "compression": {"dtype": "float32", "max_length": 32},
            "store": {"codec": "fp32", "stage": stage},
            "run": {"shard_documents": 6},
        }
        build([corpus], checkpoint, folder / "store", BuildConfig.parse(settings, "test"))
        return folder / "store"

    return make


@pytest.fixture(params=["hidden", "embedding"])
def store(request, store_of):
    """A store of each stage."""
    return store_of(request.param)


@pytest.fixture
def hidden_store(store_of):
    """A store of stage hidden, for tests to which the stage does not matter."""
    return store_of("hidden")


@pytest.fixture(scope="session")
def titled_store(tmp_path_factory, checkpoint):
    """A store that keeps titles; document c has none."""
    folder = tmp_path_factory.mktemp("titled")
    corpus = folder / "corpus.jsonl"
    documents = [{"id": "a", "title": "First", "text": "A."}, {"id": "b", "title": "Second", "text": "B."}]
    corpus.write_text("".join(json.dumps(each) + "\n" for each in [*documents, {"id": "c", "text": "C."}]))
    build([corpus], checkpoint, folder / "store", BuildConfig.parse({"store": {"keep": ["title"]}}, "test"))
    return folder / "store"


@pytest.fixture(scope="session")
def text_store(checkpoint, documents, tmp_path_factory):
    """A store of texts, whose memory is made with each question."""
    folder = tmp_path_factory.mktemp("texts")
    lines = (json.dumps({"id": name, "title": f"On {name}", "text": text}) + "\n" for name, text in documents.items())
    (folder / "corpus.jsonl").write_text("".join(lines))
    settings = {"compression": {"dtype": "float32", "max_length": 48}, "store": {"stage": "question"}}
    build([folder / "corpus.jsonl"], checkpoint, folder / "store", BuildConfig.parse(settings, "test"))
    return folder / "store"
