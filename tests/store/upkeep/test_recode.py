"""Recoding writes the same rows in another codec, can be resumed, and leaves the first store untouched."""

import hashlib
import sys
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from pisco_index.errors import StoreError, StoreLockedError
from pisco_index.store import (
    CODECS,
    Store,
    build_lock,
    commit,
    describe,
    done_shards,
    encode_batch,
    memory_rows,
    recode,
    rejected_rows,
    text_hash,
    write_fragment,
)
from pisco_index.store.codecs.prediction import normalised_error_db
from pisco_index.store.ledger import record_fallbacks

DIM = 8
DOCUMENTS = 60
SHARDS = 20


def memory():
    return np.random.default_rng(0).standard_normal((DOCUMENTS * 2, DIM)).astype(np.float32).round(1)


class FakeReader:
    """A decoder that is given, and not asked, since the store keeps no texts."""

    def sensitivity(self, sample):
        raise AssertionError

    def divergence(self, sample, decoded):
        raise AssertionError


@pytest.fixture
def source(tmp_path, meta):
    """A store in fp32 of 20 shards, the last empty, with a failed document, a rejected record and titles."""
    meta = meta.model_copy(update={"codec": "fp32", "optional_columns": ("title",)})
    store = Store.create(tmp_path / "source", meta=meta, assets={"plan.json": b"{}", "connector": b"weights"})
    written, values = [], memory()
    codec = next(codec for codec in CODECS if codec.name == "fp32")
    per = DOCUMENTS // (SHARDS - 1)
    for shard in range(SHARDS):
        first = shard * per
        numbers = [] if shard == SHARDS - 1 else list(range(first, DOCUMENTS if shard == SHARDS - 2 else first + per))
        ids = [f"doc-{n}" for n in numbers]
        payloads = encode_batch(ids, values[2 * first : 2 * (first + len(ids))], [2] * len(ids), codec)
        if shard == 3:
            ids, payloads = [*ids, "failed"], [*payloads, None]
        rows = memory_rows(
            doc_ids=ids,
            tokens_total=[40] * len(ids),
            tokens_fed=[30] * len(ids),
            payloads=payloads,
            text_hashes=[text_hash(i) for i in ids],
            errors=["too strange" if i == "failed" else None for i in ids],
            titles=[i.upper() for i in ids],
        )
        refused = rejected_rows(sources=["corpus:7"], doc_ids=[None], errors=["no id"]) if shard == 3 else None
        written.append(write_fragment(store.uri, shard, rows, refused))
    commit(store, written)
    return store.refresh()


def rows_of(uri):
    table = lance.dataset(f"{uri}/memory.lance").to_table().sort_by([("shard", "ascending"), ("doc_id", "ascending")])
    return table.drop_columns("payload").to_pylist()


def digest(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("codec", ["bf16", "bf16z", "int8", "int4", "klt3", "klt2", "fisher2"])
def test_all_rows_are_there_in_the_new_codec(source, tmp_path, codec):
    before = digest(source.uri)
    report = recode(source.uri, codec, tmp_path / "out")
    assert digest(source.uri) == before
    assert (report.shards, report.done_before, report.documents) == (SHARDS, 0, DOCUMENTS + 1)
    out = Store.open(tmp_path / "out")
    assert (out.meta.codec, out.meta.fingerprint) == (codec, source.meta.fingerprint)
    assert rows_of(out.uri) == rows_of(source.uri)
    assert done_shards(out) == done_shards(source) == set(range(SHARDS))
    assert out.asset("plan.json") == b"{}"
    assert lance.dataset(f"{out.uri}/rejected.lance").to_table().to_pylist() == [
        {"shard": 3, "source": "corpus:7", "doc_id": None, "error": "no id"}
    ]
    ids = [f"doc-{n}" for n in range(DOCUMENTS)]
    error = normalised_error_db(memory(), out.fetch(ids).memory()[0])
    greatest = {"bf16": -45, "bf16z": -45, "int8": -40, "int4": -15, "klt3": -9, "klt2": -5, "fisher2": -5}
    assert error < greatest[codec]
    assert describe(out).fallbacks == report.fallbacks
    assert report.prediction.codec == codec


def test_the_new_store_lies_beside_the_first_by_default(source):
    assert recode(source.uri, "int8").uri == f"{source.uri}-int8"


@pytest.mark.fault(
    "Recoding or an export is stopped.",
    "The same command resumes it.",
)
def test_a_recoding_that_was_stopped_goes_on(source, tmp_path):
    told = []

    def stop(done, total):
        told.append((done, total))
        if done == 18:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recode(source.uri, "int4", tmp_path / "out", progress=stop)
    assert told[0] == (1, SHARDS)
    out = Store.open(tmp_path / "out")
    assert len(done_shards(out)) == 16
    report = recode(source.uri, "int4", tmp_path / "out")
    assert (report.done_before, report.shards) == (16, SHARDS)
    recode(source.uri, "int4", tmp_path / "whole")
    stopped, whole = (lance.dataset(f"{tmp_path / name}/memory.lance").to_table() for name in ("out", "whole"))
    assert stopped.sort_by("doc_id").to_pylist() == whole.sort_by("doc_id").to_pylist()
    again = recode(source.uri, "int4", tmp_path / "out")
    assert (again.done_before, again.documents, again.prediction) == (SHARDS, DOCUMENTS + 1, None)


def test_a_decoder_that_comes_too_late_is_refused(source, tmp_path):
    recode(source.uri, "fisher2", tmp_path / "without")
    with pytest.raises(StoreError, match=r"begun without a decoder, to which fisher2 .* Leave out --checkpoint"):
        recode(source.uri, "fisher2", tmp_path / "without", reader=FakeReader())
    # The codec is fitted already, and the decoder only measures other codecs.
    recode(source.uri, "fisher2", tmp_path / "with", reader=FakeReader())
    recode(source.uri, "int4", tmp_path / "int4")
    for out, codec, reader in (("without", "fisher2", None), ("with", "fisher2", None), ("int4", "int4", FakeReader())):
        assert recode(source.uri, codec, tmp_path / out, reader=reader).done_before == SHARDS


def test_a_recoding_that_recorded_no_decoder_goes_on(source, tmp_path, monkeypatch):
    module = sys.modules["pisco_index.store.upkeep.recode"]
    with monkeypatch.context() as earlier:
        earlier.setattr(module, "uses_sensitivity", lambda _: False)
        recode(source.uri, "fisher2", tmp_path / "out")
    assert recode(source.uri, "fisher2", tmp_path / "out", reader=FakeReader()).done_before == SHARDS


def test_documents_that_lose_too_much_are_counted(source, tmp_path):
    values = memory()[:2].copy()
    values[0, 0] = np.inf
    fp32 = next(codec for codec in CODECS if codec.name == "fp32")
    rows = memory_rows(
        doc_ids=["wild"],
        tokens_total=[1],
        tokens_fed=[1],
        payloads=encode_batch(["wild"], values, [2], fp32),
        text_hashes=[bytes(16)],
        errors=[None],
    )
    commit(source, [write_fragment(source.uri, 77, rows)])
    report = recode(source.uri, "int8", tmp_path / "out")
    assert report.fallbacks == {"bf16": 1}
    found, _ = Store.open(tmp_path / "out").fetch(["wild"]).memory()
    assert found[0, 0] == np.inf


def test_a_recoded_store_can_be_recoded_further_down(source, tmp_path):
    recode(source.uri, "int8", tmp_path / "int8")
    report = recode(tmp_path / "int8", "klt3", tmp_path / "klt3")
    assert report.documents == DOCUMENTS + 1
    assert rows_of(tmp_path / "klt3") == rows_of(source.uri)
    recode(source.uri, "bf16z", tmp_path / "z")
    assert recode(tmp_path / "z", "bf16", tmp_path / "b").documents == DOCUMENTS + 1


def test_what_makes_no_sense_is_refused(source, tmp_path):
    with pytest.raises(StoreError, match="has codec fp32 already"):
        recode(source.uri, "fp32", tmp_path / "x")
    with pytest.raises(StoreError, match="cannot be recoded into itself"):
        recode(source.uri, "int8", source.uri)
    with pytest.raises(StoreError, match="no codec is called 'zip'"):
        recode(source.uri, "zip", tmp_path / "x")
    recode(source.uri, "int4", tmp_path / "int4")
    for better in ("int8", "bf16", "fp32"):
        with pytest.raises(StoreError, match=f"has codec int4, which keeps less than {better}: .*bring nothing back"):
            recode(tmp_path / "int4", better, tmp_path / "x")
    with pytest.raises(StoreError, match="not this one recoded to klt2"):
        recode(source.uri, "klt2", tmp_path / "int4")
    with pytest.raises(StoreError, match="no store at"):
        recode(tmp_path / "nothing", "int8")
    assert not (tmp_path / "x").exists()


def test_a_source_that_changed_is_noticed(source, tmp_path):
    recode(source.uri, "int8", tmp_path / "out")
    lance.dataset(f"{source.uri}/memory.lance").delete("doc_id = 'doc-5'")
    with pytest.raises(StoreError, match="recoded from another version"):
        recode(source.uri, "int8", tmp_path / "out")


def test_a_store_without_memory_is_refused(store, tmp_path):
    with pytest.raises(StoreError, match="holds no memory yet"):
        recode(store.uri, "int8", tmp_path / "out")


@pytest.mark.parametrize("existed", [False, True])
def test_a_stop_before_the_first_commit_leaves_no_new_folder(source, tmp_path, monkeypatch, existed):
    def stop(*_, **__):
        (tmp_path / "out" / "memory.lance" / "data").mkdir(parents=True)
        raise KeyboardInterrupt

    if existed:
        (tmp_path / "out").mkdir()
    module = sys.modules["pisco_index.store.upkeep.recode"]
    with monkeypatch.context() as patched:
        patched.setattr(module, "sample_memory", stop)
        with pytest.raises(KeyboardInterrupt):
            recode(source.uri, "int8", tmp_path / "out")
    assert (tmp_path / "out").exists() == existed
    assert recode(source.uri, "int8", tmp_path / "out").documents == DOCUMENTS + 1


def test_a_target_that_is_being_written_is_locked(source, tmp_path):
    with build_lock(tmp_path / "out"), pytest.raises(StoreLockedError):
        recode(source.uri, "int8", tmp_path / "out")


def test_rows_in_any_order_keep_their_shards(source, tmp_path):
    """Rows of a shard are scattered after a compaction or an update."""
    dataset = lance.dataset(f"{source.uri}/memory.lance")
    dataset.optimize.compact_files()
    shuffled = dataset.to_table().take(pa.array(np.random.default_rng(0).permutation(DOCUMENTS + 1)))
    expected = rows_of(source.uri)
    lance.write_dataset(shuffled, dataset.uri, mode="overwrite", data_storage_version="2.2")
    recode(source.uri, "int8", tmp_path / "out")
    assert rows_of(tmp_path / "out") == expected


def test_a_shard_that_a_build_commits_meanwhile_is_left_for_later(source, tmp_path, monkeypatch, rows_of_new_shard):
    def commit_and_fit(*arguments, **options):
        commit(source, [write_fragment(source.uri, SHARDS, rows_of_new_shard)])
        return fit(*arguments, **options)

    module = sys.modules["pisco_index.store.upkeep.recode"]
    fit = module.fit
    monkeypatch.setattr(module, "fit", commit_and_fit)
    recoded = Store.open(recode(source.uri, "int8", tmp_path / "out").uri)
    assert done_shards(recoded) == set(range(SHARDS))
    assert done_shards(source) == set(range(SHARDS + 1))
    assert recoded.count == source.count


@pytest.fixture
def rows_of_new_shard():
    (payload,) = encode_batch(["new"], memory()[:2], [2], next(codec for codec in CODECS if codec.name == "fp32"))
    return memory_rows(
        doc_ids=["new"],
        tokens_total=[40],
        tokens_fed=[30],
        payloads=[payload],
        text_hashes=[text_hash("new")],
        errors=[None],
        titles=["NEW"],
    )


def test_a_folder_with_the_beginnings_of_another_recoding_is_no_free_place(source, tmp_path, meta):
    table = source.table.schema.with_metadata({"pisco-index:plan": "plan/gone"}).empty_table()
    lance.write_dataset(table, tmp_path / "out" / "memory.lance", data_storage_version="2.2")
    with pytest.raises(StoreError, match="is no store, but holds a table 'memory'"):
        recode(source.uri, "int8", tmp_path / "out")


def test_fallbacks_of_the_source_are_not_those_of_the_new_store(source, tmp_path):
    record_fallbacks(source.uri, {3: {"bf16": 7}})
    assert recode(source.uri, "int8", tmp_path / "out").fallbacks == {}
