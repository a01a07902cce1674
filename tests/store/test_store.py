import pickle
import shutil
import subprocess
import sys
import threading

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
import xxhash

from pisco_index.errors import CorruptStoreError, MissingDocumentsError, StoreError
from pisco_index.store import FORMAT_VERSION, Fingerprint, Store, StoreMeta, commit, write_fragment
from pisco_index.store import store as store_module
from pisco_index.store.table import datasets as datasets_module


@pytest.fixture
def filled(store, shard_rows) -> Store:
    """Two shards, ten documents."""
    commit(store, [write_fragment(store.uri, shard, shard_rows(shard)) for shard in (0, 1)])
    return store.refresh()


# -- creating and opening


def test_a_new_store_is_empty_and_keeps_its_description(store, meta):
    assert store.count == 0
    assert store.meta == meta
    assert Store.exists(store.uri)
    assert store.asset("connector") == b"weights"
    assert StoreMeta.from_json(meta.to_json(), "here") == meta


def test_opening_nothing_says_so(tmp_path):
    assert not Store.exists(tmp_path / "index")
    with pytest.raises(StoreError, match="there is no store at"):
        Store.open(tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_file_uris_and_relative_paths_are_the_same_store(store, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for address in ("index", f"file://{tmp_path}/index", tmp_path / "index"):
        assert Store.open(address).uri == store.uri


def test_a_store_is_not_created_twice(store, meta):
    with pytest.raises(StoreError, match="already holds a store"):
        Store.create(store.uri, meta=meta, assets={})


def test_a_folder_of_something_else_is_left_alone(tmp_path, meta):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        Store.create(tmp_path, meta=meta, assets={})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StoreError, match="is a file"):
        Store.create(tmp_path / "thesis.tex", meta=meta, assets={})


def test_a_lancedb_of_someone_else_is_left_alone(tmp_path, meta):
    lancedb.connect(tmp_path).create_table("memory", [{"recollection": "of things past"}])
    with pytest.raises(StoreError, match="recollection"):
        Store.create(tmp_path, meta=meta, assets={})


@pytest.mark.parametrize("name", ["meta", "empty-shard/3"])
def test_reserved_asset_names_are_refused(tmp_path, meta, name):
    with pytest.raises(StoreError, match=name):
        Store.create(tmp_path, meta=meta, assets={name: b""})


@pytest.mark.fault(
    "The build crashes while it creates the store.",
    "The next build creates it.",
)
@pytest.mark.parametrize("tables_made", [0, 1, 2])
def test_a_crash_while_creating_is_mended_by_creating_again(tmp_path, meta, monkeypatch, tables_made):
    made = []

    def crash_after(uri, table, rows):
        if len(made) == tables_made:
            raise KeyboardInterrupt
        made.append(table)
        create_table(uri, table, rows)

    create_table = store_module.create_table
    for module in (store_module, datasets_module):
        monkeypatch.setattr(module, "create_table", crash_after)
    with pytest.raises(KeyboardInterrupt):
        Store.create(tmp_path, meta=meta, assets={"plan": b"p"})
    monkeypatch.undo()

    assert not Store.exists(tmp_path)
    with pytest.raises(StoreError, match="never completed" if tables_made else "no store"):
        Store.open(tmp_path)
    assert Store.create(tmp_path, meta=meta, assets={"plan": b"p"}).asset("plan") == b"p"


def test_a_file_left_by_a_crashed_first_write_does_no_harm(tmp_path, meta):
    data = tmp_path / "assets.lance" / "data"
    data.mkdir(parents=True)
    (data / "half.lance").write_bytes(b"half")
    assert Store.create(tmp_path, meta=meta, assets={}).count == 0


def test_a_newer_format_is_refused_before_its_keys_are_read(meta):
    data = b'{"format_version": %d, "colour": "blue"}' % (FORMAT_VERSION + 1)
    with pytest.raises(StoreError, match=f"format version {FORMAT_VERSION + 1}.*newer pisco-index"):
        StoreMeta.from_json(data, "here")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"format_version": 1}'])
def test_a_damaged_description_is_refused(data):
    with pytest.raises(StoreError, match="here: the store's description"):
        StoreMeta.from_json(data, "here")


def test_a_description_names_codecs_and_columns_that_exist(meta):
    values = dict(meta)
    with pytest.raises(StoreError, match="'jpeg'"):
        StoreMeta(**values | {"codec": "jpeg"})
    with pytest.raises(StoreError, match="'colour'"):
        StoreMeta(**values | {"optional_columns": ("colour",)})


def test_a_missing_asset_is_named_with_those_there_are(store):
    with pytest.raises(StoreError, match=r"'plan'; it has connector, meta"):
        store.asset("plan")


# -- what plain lancedb sees


def test_plain_lancedb_reads_the_tables(filled):
    database = lancedb.connect(filled.uri)
    table = database.open_table("memory")
    assert table.count_rows() == 10
    assert [row["doc_id"] for row in table.search().where("doc_id = '1-3'").to_list()] == ["1-3"]
    assert set(database.list_tables().tables) == {"memory", "rejected", "assets"}


def test_the_columns_of_memory(filled):
    schema = lancedb.connect(filled.uri).open_table("memory").schema
    assert {field.name: (str(field.type), field.nullable) for field in schema} == {
        "doc_id": ("string", False),
        "shard": ("uint32", False),
        "tokens_total": ("int32", False),
        "tokens_fed": ("int32", False),
        "n_mem": ("int32", False),
        "text_hash": ("fixed_size_binary[16]", False),
        "error": ("string", True),
        "payload": ("large_binary", True),
    }
    assert schema.field("payload").metadata == {b"lance-encoding:compression": b"none"}


def test_the_file_format_is_pinned(filled):
    for table in ("memory", "rejected", "assets"):
        dataset = lance.dataset(f"{filled.uri}/{table}.lance")
        assert dataset.data_storage_version == "2.2"
        assert not dataset.has_stable_row_ids
        files = [file for fragment in dataset.get_fragments() for file in fragment.metadata.files]
        assert {(file.file_major_version, file.file_minor_version) for file in files} <= {(2, 2)}


def test_payloads_are_stored_as_they_are(filled):
    """Lance adds the length of each and little else, however large they are."""
    folder = filled.uri + "/big.lance"
    payloads = pa.array([bytes(100_000)] + [bytes([i]) * 50_000 for i in range(9)], pa.large_binary())
    field = filled.table.schema.field("payload")
    dataset = lance.write_dataset(pa.table([payloads], schema=pa.schema([field])), folder, data_storage_version="2.2")
    (statistics,) = dataset.stats.data_stats().fields
    assert 550_000 <= statistics.bytes_on_disk < 551_000


def test_optional_columns_are_there_when_asked_for(tmp_path, meta, rows_of):
    store = Store.create(tmp_path, meta=meta.model_copy(update={"optional_columns": ("text",)}), assets={})
    with_text = rows_of(["a", "b"], texts=["Alpha.", None])
    commit(store, [write_fragment(tmp_path, 0, with_text), write_fragment(tmp_path, 1, rows_of(["c"]))])
    rows = store.refresh().fetch(["c", "b", "a"], columns=["text", "tokens_fed"])
    assert rows.columns == {"text": [None, None, "Alpha."], "tokens_fed": [30, 30, 30]}
    with pytest.raises(StoreError, match="without the column 'title'"):
        write_fragment(tmp_path, 2, rows_of(["d"], titles=["D"]))


# -- fetching


def test_fetch_returns_memory_in_request_order_with_repeats(filled, memory_of):
    asked = ["1-4", "0-0", "1-4", "0-3"]
    rows = filled.fetch(asked, columns=["shard"])
    assert len(rows) == 4
    assert rows.doc_ids == tuple(asked)
    assert rows.columns == {"shard": [1, 0, 1, 0]}
    values, lengths = rows.memory()
    assert lengths.tolist() == rows.n_mem.tolist() == [len(memory_of(doc_id)) for doc_id in asked]
    np.testing.assert_array_equal(values, np.concatenate([memory_of(doc_id) for doc_id in asked]))


def test_fetching_nothing_gives_nothing(filled, store):
    assert len(filled.fetch([])) == 0
    assert len(store.fetch(["0-0"], missing="skip")) == 0


def test_missing_ids_are_all_named(filled):
    absent = [f"no-{i}" for i in range(12)]
    with pytest.raises(MissingDocumentsError, match=r"12 of the requested .*'no-0'.*'no-9' and 2 more") as caught:
        filled.fetch([*absent[:6], "0-1", *absent])
    assert caught.value.doc_ids == tuple(absent)


def test_missing_ids_can_be_skipped(filled):
    assert filled.fetch(["no", "0-1", "\ud800", "0-2"], missing="skip").doc_ids == ("0-1", "0-2")


def test_ids_with_equal_hashes_are_told_apart(filled, monkeypatch):
    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", lambda data, seed=0: len(data) % 2)
    assert filled.fetch(["1-1", "0-4", "absent"], missing="skip").doc_ids == ("1-1", "0-4")


def test_a_document_that_failed_is_named_with_its_error(store, rows_of):
    commit(store, [write_fragment(store.uri, 0, rows_of(["good", "bad"], failed={"bad"}))])
    store = store.refresh()
    with pytest.raises(StoreError, match=r"1 of the requested documents.*'bad': too strange"):
        store.fetch(["good", "bad"])
    assert store.fetch(["good"]).doc_ids == ("good",)


def test_a_document_that_is_there_twice_is_noticed(store, rows_of):
    commit(store, [write_fragment(store.uri, shard, rows_of(["same"])) for shard in (0, 1)])
    with pytest.raises(CorruptStoreError, match="'same' twice"):
        store.refresh().fetch(["same"])


def test_unknown_columns_are_named(filled):
    with pytest.raises(StoreError, match="'colour'"):
        filled.fetch(["0-0"], columns=["colour"])


def test_a_store_that_lost_a_column_is_refused(store):
    store.table.drop_columns(["payload"])
    with pytest.raises(CorruptStoreError, match="lacks the column 'payload'"):
        Store.open(store.uri)


@pytest.mark.fault(
    "Other tools delete rows or compact the table.",
    "Ids still find their rows.",
)
def test_rows_deleted_by_hand_shift_nothing(filled):
    lance.dataset(f"{filled.uri}/memory.lance").delete("doc_id = '0-1'")
    store = filled.refresh()
    assert store.fetch(["1-4", "0-2"]).doc_ids == ("1-4", "0-2")
    with pytest.raises(MissingDocumentsError):
        store.fetch(["0-1"])


@pytest.mark.fault(
    "Other tools delete rows or compact the table.",
    "Ids still find their rows.",
)
def test_compaction_by_hand_changes_nothing(filled, memory_of):
    lance.dataset(f"{filled.uri}/memory.lance").optimize.compact_files()
    store = filled.refresh()
    assert len(store.table.get_fragments()) == 1
    np.testing.assert_array_equal(store.fetch(["1-2"]).memory()[0], memory_of("1-2"))
    assert commit(store, []).new == frozenset()


# -- versions, threads, processes, places


def test_an_opened_store_stays_on_its_version(filled, shard_rows):
    commit(filled, [write_fragment(filled.uri, 2, shard_rows(2))])
    assert filled.count == 10
    assert "2-0" not in set(filled.ids())
    assert filled.refresh().count == Store.open(filled.uri).count == 15
    assert Store.open(filled.uri, version=filled.version).count == 10
    with pytest.raises(StoreError, match="cannot open table 'memory'"):
        Store.open(filled.uri, version=99)


def test_ids_come_in_row_order(filled):
    assert list(filled.ids()) == [f"{shard}-{i}" for shard in (0, 1) for i in range(5)]


def test_a_pickled_store_opens_at_the_same_version(filled, shard_rows):
    pickled = pickle.dumps(filled)
    commit(filled, [write_fragment(filled.uri, 2, shard_rows(2))])
    copy = pickle.loads(pickled)
    assert (copy.version, copy.count) == (filled.version, 10)
    assert copy.fetch(["0-0"]).doc_ids == ("0-0",)


def test_threads_share_a_store(filled, memory_of):
    wrong = []

    def fetch(start: int) -> None:
        for i in range(20):
            doc_id = f"{i % 2}-{(start + i) % 5}"
            if not np.array_equal(filled.fetch([doc_id]).memory()[0], memory_of(doc_id)):
                wrong.append(doc_id)

    threads = [threading.Thread(target=fetch, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORK = """
import os, sys, warnings
from pisco_index.errors import StoreError
from pisco_index.store import Store
warnings.simplefilter("ignore")
store = Store.open(sys.argv[1])
child = os.fork()
if not child:
    refused = 0
    for use in (lambda: store.fetch(["0-0"]), lambda: store.count, lambda: next(store.ids()), store.refresh):
        try:
            use()
        except StoreError as error:
            refused += "forked" in str(error)
    os._exit(refused)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.fault(
    "A process that has used a store forks.",
    "The child gets an error instead of a crash.",
)
def test_a_forked_child_is_refused_instead_of_crashing(filled):
    assert subprocess.run([sys.executable, "-c", FORK, filled.uri], check=False).returncode == 4


def test_a_moved_store_is_the_same_store(filled, tmp_path, memory_of, shard_rows):
    shutil.move(filled.uri, tmp_path / "elsewhere")
    store = Store.open(tmp_path / "elsewhere")
    np.testing.assert_array_equal(store.fetch(["1-2"]).memory()[0], memory_of("1-2"))
    commit(store, [write_fragment(store.uri, 2, shard_rows(2))])
    assert store.refresh().count == 15
    assert not (tmp_path / "index").exists()


def test_the_fingerprint_is_kept(filled):
    filled.meta.fingerprint.require_equal(Fingerprint({"rate": "16", "weights": "aa11"}), "the checkpoint")
