import json

import pytest

from pisco_index.store import Failure, Store, commit, describe, write_fragment


@pytest.fixture
def info(store, rows_of, shard_rows, one_reject):
    written = [
        write_fragment(store.uri, 0, rows_of(["a", "b", "c"], failed={"b"}), one_reject),
        write_fragment(store.uri, 1, shard_rows(1)),
        write_fragment(store.uri, 2, shard_rows(2, documents=0)),
    ]
    commit(store, written)
    return describe(store.refresh()), written


def test_it_counts_documents_tokens_and_memory(info):
    found, written = info
    assert (found.documents, found.failed_documents, found.rejected_records) == (8, 1, 1)
    assert (found.shards_done, found.fragments) == (3, 2)
    assert (found.tokens_total, found.tokens_fed) == (320, 240)
    assert found.n_mem == sum(each.n_mem for each in written)
    assert found.compression == 240 / found.n_mem
    assert found.compression_of_text == 320 / found.n_mem


def test_it_lists_failures(info):
    found, _ = info
    assert found.failures == (
        Failure(shard=0, doc_id="b", source=None, error="too strange"),
        Failure(shard=0, doc_id=None, source="corpus.jsonl:7", error="no id"),
    )


def test_payload_bytes_are_those_on_disk(info):
    found, written = info
    payloads = sum(each.payload_bytes for each in written)
    assert payloads < found.payload_bytes < payloads + 100 * found.documents
    assert found.payload_bytes_per_document == found.payload_bytes / 7
    assert found.payload_bytes < found.table_bytes < found.disk_bytes


def test_it_repeats_the_description(info, meta, store):
    found, _ = info
    assert (found.uri, found.format_version) == (store.uri, 1)
    assert (found.fingerprint, found.fingerprint_components) == (
        meta.fingerprint.digest,
        dict(meta.fingerprint.components),
    )
    assert (found.stage, found.dim, found.codec, found.checkpoint) == ("hidden", 8, "bf16", meta.checkpoint)


def test_it_is_json(info):
    found, _ = info
    values = json.loads(json.dumps(found.to_dict()))
    assert values["compression"] == found.compression
    assert values["failures"][0]["doc_id"] == "b"


def test_an_empty_store_has_no_ratios(store: Store):
    found = describe(store)
    assert (found.documents, found.n_mem, found.payload_bytes) == (0, 0, 0)
    assert found.compression is found.compression_of_text is found.payload_bytes_per_document is None


def test_the_list_of_failures_is_bounded(store, rows_of):
    names = [f"doc-{i}" for i in range(30)]
    commit(store, [write_fragment(store.uri, 0, rows_of(names, failed=set(names)))])
    found = describe(store.refresh(), failures=4)
    assert found.failed_documents == 30
    assert [failure.doc_id for failure in found.failures] == names[:4]
