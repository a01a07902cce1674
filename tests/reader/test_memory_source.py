"""A memory source gives the memory of documents for a question, in request order."""

import pytest
import torch

from pisco_index import Reader, open_checkpoint
from pisco_index.errors import MissingDocumentsError, StoreError
from pisco_index.model.compressor import Compressor
from pisco_index.reader.memory_source import FakeMemorySource, FreshMemory, MemorySource, StoredMemory


def memory_of(source, question, ids):
    (memory,) = source.memories([(question, ids)])
    return memory


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
    memory = memory_of(source, "Which city?", ids)
    with Reader(hidden_store) as reader:
        fetched = reader.fetch(ids)
    assert torch.equal(memory.values, fetched.values)
    for name in ("lengths", "stage", "connector", "doc_ids"):
        assert getattr(memory, name) == getattr(fetched, name)


def test_sizes_are_those_of_the_memory(source: MemorySource):
    """A document that is not held has none, and the memory of several questions is that of each."""
    requests = [("Which city?", ["doc-9", "zz", "doc-9"]), ("Which river?", ["doc-4", "doc-2"])]
    first, second = source.sizes(requests)
    assert first[1] is None
    memories = list(source.memories([("Which city?", ["doc-9"]), requests[1]]))
    assert [first[0].memory, first[2].memory] == [*memories[0].lengths] * 2
    assert tuple(size.memory for size in second) == memories[1].lengths
    assert all(size.text > size.memory for size in second)


def test_no_documents_have_no_memory(source: MemorySource):
    memory = memory_of(source, "Which city?", [])
    assert (len(memory), memory.dim) == (0, 64)


def test_missing_documents_are_all_named(source: MemorySource):
    with pytest.raises(MissingDocumentsError, match="'nope', 'neither'") as caught:
        memory_of(source, "Which city?", ["doc-1", "nope", "doc-2", "neither"])
    assert caught.value.doc_ids == ("nope", "neither")


def test_fresh_memory_depends_on_the_question(text_store, checkpoint, documents):
    """It is what the compressor makes of the question with each text, and no document changes another's memory."""
    opened = open_checkpoint(checkpoint)
    compressor = Compressor.load(opened, dtype=torch.float32)
    with Reader(text_store) as reader:
        source: MemorySource = FreshMemory(reader, opened, compressor)
        ids = ["doc-9", "doc-2", "doc-9"]
        memory, other = memory_of(source, "Which city?", ids), memory_of(source, "Which river?", ids)
        assert memory.doc_ids == tuple(ids)
        ((*sizes, absent),) = source.sizes([("Which city?", [*ids, "zz"])])
        assert tuple(size.memory for size in sizes) == memory.lengths
        assert absent is None
        assert not torch.allclose(memory[0], other[0])
        assert torch.allclose(memory[0], memory[2], atol=1e-5)
        assert torch.allclose(memory[1], memory_of(source, "Which city?", ["doc-2"])[0], atol=1e-5)
        text = f"On doc-2\n{documents['doc-2']}"
        assert reader.texts(["doc-2"]) == [text]
        (passages,) = opened.query_passages("Which city?", [text], reader.compression)
        assert torch.allclose(memory[1], compressor.compress(passages.passages).values, atol=1e-5)
        with pytest.raises(MissingDocumentsError, match="'nope'"):
            memory_of(source, "Which city?", ["doc-1", "nope"])


def test_a_store_of_texts_has_no_memory_to_read(text_store):
    with Reader(text_store) as reader:
        for read in (reader.fetch, reader.embeddings, lambda _: reader.read(0, 3), lambda _: reader.connector):
            with pytest.raises(StoreError, match="holds texts and no memory"):
                read(["doc-1"])
