"""Payloads that are read directly equal those that Lance reads, and Lance reads everything unusual."""

import gc
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pisco_index.errors import CorruptStoreError, MissingDocumentsError, PiscoIndexError, StoreError
from pisco_index.store import Rows, Store, codec_by_name, commit, decode, encode, memory_rows, write_fragment
from pisco_index.store.lookup import idcache, row_reader
from pisco_index.store.table import direct, pages

from ..conftest import DIM


@pytest.fixture
def memory_of() -> Callable[[str], np.ndarray]:
    """Memory of at least 320 bytes a document, which Lance stores one after the other."""

    def memory_of(doc_id: str) -> np.ndarray:
        seed = sum(doc_id.encode())
        return (np.arange((20 + seed % 30) * DIM, dtype=np.float32).reshape(-1, DIM) % 64 + seed % 5) / 4

    return memory_of


@pytest.fixture
def filled(store, shard_rows) -> Store:
    """Three shards of 40 documents."""
    return append(store, *(shard_rows(shard, 40) for shard in range(3)))


@pytest.fixture
def check(memory_of) -> Callable[..., Rows]:
    """Fetch documents, see that their memory is what was stored, and by which way it came."""

    def check(store: Store, doc_ids: list[str], *, by_lance: int = 0) -> Rows:
        before = counts(store)
        rows = store.fetch(doc_ids)
        assert rows.doc_ids == tuple(doc_ids)
        np.testing.assert_array_equal(rows.memory()[0], np.concatenate([memory_of(doc_id) for doc_id in doc_ids]))
        after = counts(store)
        assert (after[0] - before[0], after[1] - before[1]) == (len(doc_ids) - by_lance, by_lance)
        return rows

    return check


@pytest.fixture
def table_of() -> Callable[[dict[str, np.ndarray]], pa.Table]:
    """Rows of documents with any memory."""

    def table_of(memory: dict[str, np.ndarray]) -> pa.Table:
        return memory_rows(
            doc_ids=list(memory),
            tokens_total=[1] * len(memory),
            tokens_fed=[1] * len(memory),
            payloads=[encode(doc_id, values, codec_by_name("bf16")) for doc_id, values in memory.items()],
            text_hashes=[bytes(16)] * len(memory),
            errors=[None] * len(memory),
        )

    return table_of


def append(store: Store, *tables) -> Store:
    first = max((int(shard) for shard in store.table.to_table(columns=["shard"]).column(0).to_pylist()), default=-1) + 1
    commit(store, [write_fragment(store.uri, first + number, rows) for number, rows in enumerate(tables)])
    return store.refresh()


def counts(store: Store) -> tuple[int, int]:
    reader = store._rows()
    return reader.direct, reader.by_lance


def memory_table(store: Store) -> lance.LanceDataset:
    return lance.dataset(f"{store.uri}/memory.lance")


def data_files(store: Store) -> list[Path]:
    return sorted(Path(store.uri, "memory.lance", "data").iterdir())


ASKED = ["2-39", "0-0", "1-7", "0-1", "2-0"]


# -- what is read directly


def test_ordinary_payloads_are_read_directly(filled, check):
    check(filled, ASKED)
    check(filled, list(filled.ids()))
    check(filled, ["1-3", "0-2", "1-3"])


def test_the_bytes_are_those_that_lance_reads(filled):
    rows = filled.table.to_table(columns=["doc_id", "payload"]).to_pylist()
    assert filled.fetch([row["doc_id"] for row in rows]).payloads == tuple(row["payload"] for row in rows)


def test_rows_are_pickled(filled):
    rows = filled.fetch(ASKED)
    again = pickle.loads(pickle.dumps(rows))
    assert (again.doc_ids, again.payloads) == (rows.doc_ids, rows.payloads)
    np.testing.assert_array_equal(again.memory()[0], rows.memory()[0])


def test_pages_with_nulls(store, rows_of, check):
    ids = [f"doc-{i}" for i in range(50)]
    store = append(store, rows_of(ids, failed=ids[::7]))
    check(store, [doc_id for doc_id in ids if doc_id not in ids[::7]])
    with pytest.raises(StoreError, match=r"1 of the requested documents.*'doc-7': too strange"):
        store.fetch(["doc-8", "doc-7"])


@pytest.mark.parametrize("documents", [1, 2, 3, 150, 700])
def test_pages_of_all_sizes(store, shard_rows, memory_of, documents):
    """The repetition index has integers of one to eight bytes, and a page of one value is no such page."""
    store = append(store, shard_rows(0, documents))
    ids = list(store.ids())
    for doc_id, payload in zip(ids, store.fetch(ids).payloads, strict=True):
        np.testing.assert_array_equal(decode(payload, doc_id), memory_of(doc_id))
    assert counts(store) == ((0, 1) if documents == 1 else (documents, 0))


def test_files_with_several_pages(store, table_of):
    """Compaction begins a page every 8 MiB, and a page of one document is one that only Lance reads."""
    memory = {f"{shard}-{i}": np.full((1000, 128), 40 * shard + i) for shard in (0, 1) for i in range(35)}
    memory |= {"last": np.full((3, 128), 99)}
    for prefix in ("0", "1", "l"):
        store = append(store, table_of({doc_id: each for doc_id, each in memory.items() if doc_id[0] == prefix}))
    memory_table(store).optimize.compact_files()
    store = store.refresh()
    (fragment,) = store.table.get_fragments()
    found = pages.payload_pages(store.uri, "memory", fragment.metadata, field_id=payload_field(store))
    assert [(bool(page.file), page.rows) for page in found] == [(True, 35), (True, 35), (False, 1)]
    asked = ["1-34", "0-34", "last", "1-0", "0-0"]
    np.testing.assert_array_equal(store.fetch(asked).memory()[0], np.concatenate([memory[i] for i in asked]))
    assert counts(store) == (4, 1)


def payload_field(store: Store) -> int:
    return next(field.id() for field in store.table.lance_schema.fields() if field.name() == "payload")


def test_small_payloads_are_left_to_lance(store, table_of):
    memory = {str(i): np.full((1, DIM), i) for i in range(30)}
    store = append(store, table_of(memory))
    np.testing.assert_array_equal(store.fetch(list(memory)).memory()[0], np.concatenate(list(memory.values())))
    assert counts(store) == (0, 30)


def test_further_columns_are_read_by_lance(filled, memory_of):
    rows = filled.fetch(ASKED, columns=["shard", "n_mem"])
    assert rows.columns == {"shard": [2, 0, 1, 0, 2], "n_mem": [len(memory_of(doc_id)) for doc_id in ASKED]}
    np.testing.assert_array_equal(rows.memory()[0], filled.fetch(ASKED).memory()[0])
    assert counts(filled) == (5, 5)


@pytest.mark.fault(
    "Lance stores payloads in another layout.",
    "Lance reads them.",
)
def test_an_encoding_that_is_not_known_is_left_to_lance(filled, check, monkeypatch):
    monkeypatch.setattr(pages, "_UNCOMPRESSED", ((b"something", b"newer"),) * 2)
    check(filled, ASKED, by_lance=5)


def test_a_file_version_that_is_not_known_is_left_to_lance(filled, check, monkeypatch):
    monkeypatch.setattr(pages, "FILE_VERSION", (2, 3))
    check(filled, ASKED, by_lance=5)


def test_a_machine_that_cannot_read_directly(filled, check, monkeypatch):
    monkeypatch.setattr(pages, "CAN_READ_DIRECTLY", False)
    check(filled, ASKED, by_lance=5)


@pytest.mark.fault(
    "Lance stores payloads in another layout.",
    "Lance reads them.",
)
def test_a_layout_that_turned_out_otherwise_is_left_to_lance(filled, check, monkeypatch):
    """Should the bytes not lie as they did, the payloads' headers tell."""
    monkeypatch.setattr(pages, "_LENGTH_BYTES", 4)
    check(filled, ASKED, by_lance=5)


def test_a_damaged_repetition_index_is_left_to_lance(filled, check, monkeypatch):
    real = idcache.payload_pages

    def elsewhere(*args):
        return tuple(page._replace(index=page.index - 64) for page in real(*args))

    monkeypatch.setattr(idcache, "payload_pages", elsewhere)
    check(filled, ASKED, by_lance=5)


def test_a_column_added_by_hand_changes_nothing(filled, check):
    memory_table(filled).add_columns({"length": "n_mem * 2"})
    store = filled.refresh()
    assert {len(fragment.metadata.files) for fragment in store.table.get_fragments()} == {2}
    check(store, ASKED)


# -- rows that changed


def test_deleted_rows_never_come_back(filled, check):
    memory_table(filled).delete("doc_id in ('0-0', '2-0') or shard = 1")
    store = filled.refresh()
    with pytest.raises(MissingDocumentsError) as caught:
        store.fetch(ASKED)
    assert caught.value.doc_ids == ("0-0", "1-7", "2-0")
    kept = [doc_id for doc_id in ASKED if doc_id not in caught.value.doc_ids]
    check(store, [*kept, "0-39", "2-1"])
    assert store.fetch([*kept, "0-39"], columns=["shard"]).columns["shard"] == [2, 0, 0]
    check(filled, ASKED)


def test_a_document_that_was_written_anew_is_read_directly(filled, rows_of, check):
    memory_table(filled).delete("doc_id = '0-1'")
    store = append(filled.refresh(), rows_of(["0-1", "new"]))
    check(store, [*ASKED, "new"])
    check(filled, ASKED)


def test_a_document_that_is_there_twice_is_noticed(filled, rows_of, check):
    store = append(filled, rows_of(["0-1", "new"]))
    with pytest.raises(CorruptStoreError, match="'0-1' twice"):
        store.fetch(["0-1"])
    check(store, ["new", "0-0"])


# -- ids that share a hash


@pytest.fixture
def few_hashes(monkeypatch) -> None:
    """Let the map's hash have three values, and the payload's stay what it is."""
    real = xxhash.xxh3_64_intdigest
    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", lambda data, seed=0: real(data, seed) % 3 if seed else real(data))


def test_ids_that_share_a_hash_are_told_apart(few_hashes, filled, memory_of):
    rows = filled.fetch(["0-3", "2-2"])
    np.testing.assert_array_equal(rows.memory()[0], np.concatenate([memory_of("0-3"), memory_of("2-2")]))
    assert counts(filled)[0] == 0
    assert counts(filled)[1] > 20
    with pytest.raises(MissingDocumentsError, match="'absent', 'absent too'"):
        filled.fetch(["absent", "0-3", "absent too"])


def test_an_absent_id_that_shares_its_hash_with_one_document(few_hashes, store, rows_of, check):
    store = append(store, rows_of(["a", "deleted"]))
    memory_table(store).delete("doc_id = 'deleted'")
    store = store.refresh()
    absent = [f"absent-{i}" for i in range(10)]
    assert store.fetch(["a", *absent], missing="skip").doc_ids == ("a",)
    with pytest.raises(MissingDocumentsError) as caught:
        store.fetch([*absent, "a"])
    assert caught.value.doc_ids == tuple(absent)


# -- files and threads


def test_few_files_are_kept_open_and_all_are_closed_in_the_end(filled, memory_of, monkeypatch):
    monkeypatch.setattr(direct, "_open_files_limit", lambda count: 2)

    def fetch(store: Store, start: int) -> bool:
        right = True
        for i in range(60):
            ids = [f"{(start + i + step) % 3}-{(start * i + step) % 40}" for step in range(3)]
            for doc_id, payload in zip(ids, store.fetch(ids).payloads, strict=True):
                right &= np.array_equal(decode(payload, doc_id), memory_of(doc_id))
        return right

    def fetch_all(store: Store) -> None:
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(fetch, [store] * 8, range(8)))
        assert counts(store)[1] == 0
        assert len(open_data_files(store)) == 2

    fetch_all(Store.open(filled.uri))
    gc.collect()
    assert open_data_files(filled) == []


def test_a_file_that_is_used_stays_open(tmp_path, monkeypatch):
    monkeypatch.setattr(direct, "_open_files_limit", lambda count: 3)
    for name in "abcde":
        (tmp_path / name).touch()
    files = direct.DataFiles(str(tmp_path), 5)
    for name in "abcd":
        files.get(name)
    assert list(files.opened) == ["b", "c", "d"]
    files.opened["b"].is_used = True
    files.get("e")
    assert sorted(files.opened) == ["b", "d", "e"]


@pytest.mark.parametrize(
    ("soft", "hard", "files", "kept", "after"),
    [
        (64, 1000, 100, 100, 200),  # raised as far as the files need it
        (64, 100, 400, 50, 100),  # raised to the hard limit
        (400, 1000, 100, 200, 400),  # enough
    ],
)
def test_the_limit_of_open_files_is_raised_as_far_as_files_need_it(soft, hard, files, kept, after):
    code = f"""
import resource
from pisco_index.store.table import direct
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
assert direct._open_files_limit({files}) == {kept}
assert resource.getrlimit(resource.RLIMIT_NOFILE) == ({after}, {hard})
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def open_data_files(store: Store) -> list[str]:
    folder = f"{store.uri}/memory.lance/data/"
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return [link for link in links if link.startswith(folder)]


def test_threads_that_fetch_first_make_one_map(filled, memory_of, monkeypatch):
    from pisco_index.store.lookup import row_reader as module

    made = []
    real = module.open_map
    monkeypatch.setattr(module, "open_map", lambda *args: made.append(1) or real(*args))
    barrier = threading.Barrier(8)

    def fetch(number: int) -> bool:
        barrier.wait()
        return np.array_equal(filled.fetch([f"1-{number}"]).memory()[0], memory_of(f"1-{number}"))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(fetch, range(8)))
    assert len(made) == 1


@pytest.mark.fault(
    "A store is updated or compacted under a reader.",
    "The reader keeps its version; if that was dropped, an error asks to open the store again.",
)
def test_a_store_that_is_compacted_under_a_reader(filled, check):
    check(filled, ["0-0", "0-1"])
    memory_table(filled).optimize.compact_files()
    memory_table(filled).cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    check(filled, ["0-2", "0-0"])  # of a file that is open
    with pytest.raises(StoreError, match=r"data file .*\.lance is gone.*Open it again"):
        filled.fetch(["1-0"])
    check(filled.refresh(), ASKED)


@pytest.mark.fault(
    "A store is updated or compacted under a reader.",
    "The reader keeps its version; if that was dropped, an error asks to open the store again.",
)
def test_a_store_that_is_deleted_under_a_reader(filled, check):
    check(filled, ["0-0"])
    shutil.rmtree(filled.uri)
    check(filled, ["0-5"])
    with pytest.raises(StoreError, match="is gone"):
        filled.fetch(["2-0"])
    with pytest.raises(StoreError, match="is gone"):
        filled.fetch(["0-0"], columns=["shard"])


@pytest.mark.fault(
    "Lance panics.",
    "It is an error.",
)
def test_a_panic_in_lance_is_an_error_of_ours(filled, monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(*_, **__):
        raise PanicException("index out of bounds")

    monkeypatch.setattr(lance.LanceDataset, "_take_rows", panic)
    with pytest.raises(StoreError, match=r"cannot read 1 rows.*Lance panicked.*index out of bounds"):
        filled.fetch(["0-0"], columns=["shard"])


def test_a_disk_that_fails_is_named(filled, monkeypatch):
    def fail(fd, buffers, position, flags=0):
        raise OSError(5, "Input/output error")

    filled.fetch(ASKED)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(StoreError, match=r"cannot read documents of the store.*Input/output error"):
        filled.fetch(ASKED)


@pytest.mark.parametrize("answer", ["blocks", "short", "unknown"])
def test_payloads_that_are_not_in_the_cache_are_waited_for(filled, check, monkeypatch, answer):
    """Without waiting, a read may fail, give a part, or not exist in this file system."""
    real, waited = os.preadv, []

    def preadv(fd, buffers, position, flags=0):
        if not flags:
            waited.append(position)
        elif answer == "short":
            return real(fd, [memoryview(buffers[0])[:10]], position)
        else:
            raise OSError(95, "Operation not supported") if answer == "unknown" else BlockingIOError
        return real(fd, buffers, position)

    monkeypatch.setattr(os, "preadv", preadv)
    check(filled, ASKED)
    assert len(waited) == len(ASKED)


@pytest.mark.parametrize("place", ["disk", "Lance"])
def test_a_thread_that_waits_lets_others_read(filled, check, monkeypatch, place):
    waits, may_go_on = threading.Event(), threading.Event()
    owner, name = (row_reader, "read_late") if place == "disk" else (row_reader.RowReader, "_take")
    real = getattr(owner, name)

    def wait(*args):
        if not waits.is_set():
            waits.set()
            assert may_go_on.wait(5), "the other thread has not read"
        return real(*args)

    def fetch() -> int:
        with filled.turn():
            return len(filled.fetch(ASKED, columns=["tokens_fed"] if place == "Lance" else []))

    monkeypatch.setattr(direct, "_NOWAIT", None)
    monkeypatch.setattr(owner, name, wait)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(fetch)
        assert waits.wait(5)
        check(filled, ASKED[:1])
        may_go_on.set()
        assert waiting.result() == len(ASKED)


def test_a_machine_without_reads_that_do_not_wait(filled, check, monkeypatch):
    monkeypatch.setattr(direct, "_NOWAIT", None)
    check(filled, ASKED)


# -- damage


@pytest.mark.fault(
    "A bit of a payload flips, or a payload lies in another row.",
    "Reading it is an error.",
)
def test_a_payload_of_another_document_is_noticed(filled):
    rows = filled.fetch(list(filled.ids()))
    (path, *_) = data_files(filled)
    content = path.read_bytes()
    held = [(i, each) for i, each in enumerate(rows.payloads) if each in content]
    (one, a), (other, b) = next((x, y) for x in held for y in held if x[0] < y[0] and len(x[1]) == len(y[1]))
    path.write_bytes(content.replace(a, bytes(len(a))).replace(b, a))
    with pytest.raises(CorruptStoreError, match="belongs to another document"):
        filled.fetch([rows.doc_ids[other]]).memory()
    with pytest.raises(CorruptStoreError, match="begins with"):
        filled.fetch([rows.doc_ids[one]]).memory()


def test_a_flipped_bit_of_a_payload_is_noticed(filled):
    (path, *_) = [file for file in data_files(filled) if file.read_bytes().find(b"pi\x01\x01") >= 0]
    content = bytearray(path.read_bytes())
    content[content.find(b"pi\x01\x01") + 30] ^= 4
    path.write_bytes(content)
    with pytest.raises(CorruptStoreError, match="checksum"):
        filled.fetch(list(filled.ids())).memory()


@pytest.mark.fault(
    "Any file of a store is damaged, truncated or lost.",
    "What is read is right or refused, and `verify` finds what is refused.",
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_damage_of_a_data_file_gives_wrong_numbers(filled, memory_of, data):
    """A file of which bytes are changed or the end is lost gives the right memory or an error of ours."""
    ids = [f"{shard}-{i}" for shard in range(3) for i in (0, 39)]
    if data.draw(st.booleans()):
        shutil.rmtree(Path(filled.uri) / ".pisco-index", ignore_errors=True)
    else:
        filled.fetch(ids)
    path = data.draw(st.sampled_from(data_files(filled)))
    whole = path.read_bytes()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        # Half of the changes among the last bytes, where the structure is.
        start = data.draw(st.sampled_from([0, len(content) - 3000]))
        content[data.draw(st.integers(start, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    try:
        store = Store.open(filled.uri)
        for doc_id in ids:
            try:
                values, _ = store.fetch([doc_id]).memory()
            except PiscoIndexError:
                continue
            np.testing.assert_array_equal(values, memory_of(doc_id))
    finally:
        path.write_bytes(whole)


def test_offsets_that_lead_beyond_a_file_are_refused_before_lance_reads_by_them(filled):
    """Lance would ask for as much memory as they say."""
    (page,) = filled._rows()._places.id_map.shares[0].segment.parts[0].pages
    path = Path(filled.uri, "memory.lance", "data", page.file)
    content = bytearray(path.read_bytes())
    width = np.dtype(page.index_integer).itemsize
    content[page.index + 7 * width : page.index + 8 * width] = b"\xff" * width
    path.write_bytes(content)
    fragments = filled.table.get_fragments()
    shard = next(i for i, each in enumerate(fragments) if each.metadata.files[0].path == page.file)
    store = Store.open(filled.uri)
    whole = {0, 1, 2} - {shard}
    assert all(len(store.read(range(40 * other, 40 * other + 40))) == 40 for other in whole)
    with pytest.raises(CorruptStoreError, match=r"has damaged offsets of values.*verify"):
        store.read([40 * shard])
    (doc_id,) = filled.table.take([40 * shard], columns=["doc_id"]).column(0).to_pylist()
    with pytest.raises(CorruptStoreError, match="has damaged offsets of values"):
        store.fetch([doc_id], columns=["tokens_fed"])


def test_a_version_that_names_no_column_for_payloads_is_left_to_lance(filled):
    """As a damaged one may do: lists of fields and of columns that do not fit together."""
    metadata = filled.table.get_fragments()[0].metadata
    for columns in ([], [99] * len(metadata.files[0].fields)):
        metadata.files[0].column_indices[:] = columns
        found = pages.payload_pages(filled.uri, "memory", metadata, payload_field(filled))
        assert found == (pages.PayloadPage("", 40),)
