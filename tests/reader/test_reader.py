"""A reader gives memory by id, in request order, at one version of the store."""

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import lance
import pytest
import torch

from pisco_index import Reader, open_checkpoint
from pisco_index.errors import CorruptStoreError, FailedDocumentsError, MissingDocumentsError, StoreError
from pisco_index.store import Store


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


def test_no_ids_give_no_memory(store):
    with Reader(store) as reader:
        memory = reader.fetch([])
        assert len(memory) == 0
        assert memory.values.shape == (0, reader.meta.dim)


def test_missing_ids_are_all_named(hidden_store):
    with Reader(hidden_store) as reader:
        with pytest.raises(MissingDocumentsError, match="'nope', 'neither'") as caught:
            reader.fetch(["doc-1", "nope", "doc-2", "neither"])
        assert caught.value.doc_ids == ("nope", "neither")
        assert reader.fetch(["doc-1", "nope", "doc-2"], missing="skip").doc_ids == ("doc-1", "doc-2")
        assert reader.missing(["doc-1", "nope", "doc-2"]) == ["nope"]


def test_an_error_about_damage_names_the_document_the_store_and_a_remedy(hidden_store, monkeypatch):
    fetch = Store.fetch

    def damaged(*args, **kwargs):
        rows = fetch(*args, **kwargs)
        return replace(rows, stored=(rows.payloads[0][:-1],))

    monkeypatch.setattr(Store, "fetch", damaged)
    with Reader(hidden_store) as reader:
        for read in (reader.fetch, reader.embeddings):
            expected = r"the store at .* is damaged: document 'doc-1': .* See: pisco-index verify "
            with pytest.raises(CorruptStoreError, match=expected):
                read(["doc-1"])


def test_ids_must_be_a_list_of_strings(hidden_store):
    with Reader(hidden_store) as reader:
        with pytest.raises(TypeError, match="must be a list of ids, not the string 'doc-1'"):
            reader.fetch("doc-1")
        with pytest.raises(TypeError, match="must be strings, not 7"):
            reader.fetch(["doc-1", 7])


def test_ids_and_length(hidden_store, documents):
    with Reader(hidden_store) as reader:
        assert len(reader) == len(documents)
        assert sorted(reader.ids()) == sorted(documents)


def reader_version(uri):
    return Store.open(uri).version


def test_membership_is_asked_by_id(hidden_store):
    with Reader(hidden_store) as reader:
        assert "doc-1" in reader
        assert "nope" not in reader
        assert 7 not in reader


def test_titles_come_in_request_order(hidden_store, titled_store):
    with Reader(titled_store) as reader:
        assert reader.titles(["b", "a", "b"]) == ["Second", "First", "Second"]
        assert reader.titles(["c", "nope"], missing="skip") == [None]
        with pytest.raises(MissingDocumentsError, match="'nope'"):
            reader.titles(["a", "nope"])
        with pytest.raises(TypeError, match="not the string 'a'"):
            reader.titles("a")
    with Reader(hidden_store) as reader:
        assert reader.titles(["doc-1", "doc-2"]) == [None, None]


def test_texts_come_in_request_order_and_without_memory(text_store, documents, tmp_path, monkeypatch):
    table = lance.dataset(f"{shutil.copytree(text_store, tmp_path / 'store')}/memory.lance")
    table.update({"contents": "NULL"}, where="doc_id = 'doc-2'")
    table.update({"payload": "NULL", "error": "'no luck'"}, where="doc_id = 'doc-3'")
    with Reader(tmp_path / "store") as reader:
        with pytest.raises(FailedDocumentsError, match="'doc-3': no luck"):
            reader.texts(["doc-1", "doc-3"])
        with pytest.raises(MissingDocumentsError, match="'nope'"):
            reader.texts(["doc-1", "nope"])
        monkeypatch.setattr(Store, "fetch", None)
        asked = ["doc-2", "doc-1", "doc-2"]
        expected = [f"On {doc_id}\n{documents[doc_id]}" for doc_id in asked]
        assert reader.texts(["nope", *asked], missing="skip") == expected


def test_a_reader_shows_what_it_reads(hidden_store):
    with Reader(hidden_store) as reader:
        shown = repr(reader)
    assert f"Reader({str(hidden_store)!r}, version={reader_version(hidden_store)}, documents=20" in shown
    assert "stage='hidden'" in shown
    assert repr(reader) == "Reader(closed)"


def test_rows_are_read_in_their_order(hidden_store):
    with Reader(hidden_store) as reader:
        ids = list(reader.ids())[3:9]
        memory = reader.read(3, 9)
        assert memory.doc_ids == tuple(ids)
        assert torch.equal(memory.values, reader.fetch(ids).values)


def test_threads_share_a_reader(hidden_store):
    ids = [f"doc-{n}" for n in range(20)]
    with Reader(hidden_store) as reader, ThreadPoolExecutor(8) as threads:
        expected = reader.fetch(ids).values
        for memory in threads.map(lambda _: reader.fetch(ids), range(64)):
            assert torch.equal(memory.values, expected)


def test_a_reader_is_pickled_to_the_same_version(hidden_store):
    with Reader(hidden_store) as reader:
        again = pickle.loads(pickle.dumps(reader))
        assert again.version == reader.version
        assert torch.equal(again.fetch(["doc-3"]).values, reader.fetch(["doc-3"]).values)


def test_a_store_that_does_not_exist(tmp_path):
    with pytest.raises(StoreError, match="no store at"):
        Reader(tmp_path / "nothing")


def test_a_closed_reader_cannot_be_read(hidden_store):
    with Reader(hidden_store) as reader:
        pass
    with pytest.raises(StoreError, match="closed"):
        reader.fetch(["doc-1"])


def test_the_connector_is_in_the_store(store, checkpoint):
    with Reader(store) as reader:
        memory = reader.fetch(["doc-1"])
        assert reader.connector.digest == memory.connector == open_checkpoint(checkpoint).connector.digest
        assert reader.connector.connect(memory).dim == reader.connector.out_dim
