"""A reader gives memory by id, in request order, at one version of the store."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pisco_index import MissingDocumentsError, Reader, StoreError


def test_memory_comes_in_request_order(store):
    with Reader(store) as reader:
        memory = reader.fetch(["doc-9", "doc-2", "doc-9", "doc-15"])
        single = [reader.fetch([doc_id])[0] for doc_id in memory.doc_ids]
    assert memory.doc_ids == ("doc-9", "doc-2", "doc-9", "doc-15")
    assert len(memory) == len(list(memory)) == 4
    for values, alone in zip(memory, single, strict=True):
        assert values.shape == (alone.shape[0], memory.dim)
        assert torch.equal(values, alone)
    assert len({len(values) for values in memory}) > 1


def test_nothing_asked_for_is_nothing(store):
    with Reader(store) as reader:
        memory = reader.fetch([])
    assert len(memory) == 0
    assert memory.values.shape == (0, reader_dim(store))


def reader_dim(store):
    with Reader(store) as reader:
        return reader.meta.dim


def test_missing_ids_are_all_named(store):
    with Reader(store) as reader:
        with pytest.raises(MissingDocumentsError, match="'nope', 'neither'") as caught:
            reader.fetch(["doc-1", "nope", "doc-2", "neither"])
        assert caught.value.doc_ids == ("nope", "neither")
        assert reader.fetch(["doc-1", "nope", "doc-2"], missing="skip").doc_ids == ("doc-1", "doc-2")


def test_one_string_is_no_list_of_ids(store):
    with Reader(store) as reader, pytest.raises(TypeError, match="list of ids"):
        reader.fetch("doc-1")


def test_ids_and_length(store, documents):
    with Reader(store) as reader:
        assert len(reader) == len(documents)
        assert sorted(reader.ids()) == sorted(documents)


def test_threads_share_a_reader(store):
    ids = [f"doc-{n}" for n in range(20)]
    with Reader(store) as reader, ThreadPoolExecutor(8) as threads:
        expected = reader.fetch(ids).values
        for memory in threads.map(lambda _: reader.fetch(ids), range(64)):
            assert torch.equal(memory.values, expected)


def test_a_reader_is_pickled_to_the_same_version(store):
    with Reader(store) as reader:
        again = pickle.loads(pickle.dumps(reader))
        assert again.version == reader.version
        assert torch.equal(again.fetch(["doc-3"]).values, reader.fetch(["doc-3"]).values)


def test_a_store_that_is_not_there(tmp_path):
    with pytest.raises(StoreError, match="no store at"):
        Reader(tmp_path / "nothing")


def test_a_closed_reader_says_so(store):
    with Reader(store) as reader:
        pass
    with pytest.raises(StoreError, match="closed"):
        reader.fetch(["doc-1"])


def test_the_connector_is_in_the_store(store, checkpoint):
    from pisco_index import Checkpoint

    with Reader(store) as reader:
        memory = reader.fetch(["doc-1"])
        assert reader.connector.digest == memory.connector == Checkpoint(checkpoint).connector.digest
        assert reader.connector.connect(memory).dim == reader.connector.out_dim
