"""A memory source gives the memory of documents for a question, in request order."""

import pytest
import torch

from pisco_index import Reader
from pisco_index.errors import MissingDocumentsError
from pisco_index.reader.memory_source import FakeMemorySource, MemorySource, StoredMemory


@pytest.fixture(params=["stored", "fake"])
def source(request, hidden_store, documents):
    """Each memory source, with the same documents."""
    with Reader(hidden_store) as reader:
        if request.param == "stored":
            yield StoredMemory(reader)
        else:
            vectors = {doc_id: reader.fetch([doc_id])[0] for doc_id in documents}
            yield FakeMemorySource(vectors, stage="hidden", connector=reader.connector.digest)


def test_memory_is_what_a_reader_fetches(source: MemorySource, hidden_store):
    ids = ["doc-9", "doc-2", "doc-9"]
    memory = source.memory("Which city?", ids)
    with Reader(hidden_store) as reader:
        fetched = reader.fetch(ids)
    assert torch.equal(memory.values, fetched.values)
    for name in ("lengths", "stage", "connector", "doc_ids"):
        assert getattr(memory, name) == getattr(fetched, name)


def test_no_documents_have_no_memory(source: MemorySource):
    memory = source.memory("Which city?", [])
    assert (len(memory), memory.dim) == (0, 64)


def test_missing_documents_are_all_named(source: MemorySource):
    with pytest.raises(MissingDocumentsError, match="'nope', 'neither'") as caught:
        source.memory("Which city?", ["doc-1", "nope", "doc-2", "neither"])
    assert caught.value.doc_ids == ("nope", "neither")
