import json

import pytest

from pisco_index import BuildConfig, build, new_tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return new_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", rate=8).path


@pytest.fixture(scope="session")
def documents():
    return {f"doc-{n}": f"Document {n} is about " + "the history of the city " * (n % 5) for n in range(20)}


@pytest.fixture(scope="session", params=["hidden", "embedding"])
def store(request, tmp_path_factory, checkpoint, documents):
    """A store in fp32 of each stage."""
    folder = tmp_path_factory.mktemp("store")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": doc_id, "text": text}) + "\n" for doc_id, text in documents.items()))
    config = BuildConfig.parse(
        {
            "compression": {"dtype": "float32", "max_length": 32},
            "store": {"codec": "fp32", "stage": request.param},
            "run": {"shard_documents": 6},
        },
        "test",
    )
    build([corpus], checkpoint, folder / "store", config)
    return folder / "store"
