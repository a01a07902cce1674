"""The record of checksums: made by whoever changes a store, whole or not at all, and never over damage."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
import xxhash

from pisco_index.errors import StoreError
from pisco_index.store import build_lock, commit, compact, delete, write_fragment
from pisco_index.store.table import checksums
from pisco_index.store.table.checksums import (
    RECORD_NAME,
    forget_checksums,
    read_checksums,
    record_checksums,
    stored_files,
    version_of,
)


@pytest.fixture
def filled(store, rows_of):
    """A store of two shards."""
    with build_lock(store.uri):
        for shard in range(2):
            commit(store, [write_fragment(store.uri, shard, rows_of([f"doc-{shard}-{n}" for n in range(4)]))])
        # The store was created without the lock.
        record_checksums(store.uri)
    return store


def wrong(uri: str) -> list[str]:
    recorded = read_checksums(uri)
    return [path for path in sorted(recorded.recorded) if recorded.is_wrong(path)]


def test_each_change_of_a_store_records_its_files(filled):
    assert read_checksums(filled.uri).recorded.keys() == stored_files(filled.uri)
    delete(filled.uri, ["doc-0-1"])
    compact(filled.uri, older_than_hours=0)
    recorded = read_checksums(filled.uri).recorded
    assert recorded.keys() == stored_files(filled.uri)
    for path, checksum in recorded.items():
        assert xxhash.xxh3_128_hexdigest(Path(filled.uri, path).read_bytes()) == checksum


def test_a_commit_records_its_data_files_at_once(store, rows_of):
    before = stored_files(store.uri)
    commit(store, [write_fragment(store.uri, 0, rows_of(["a"]))])
    (data,) = [path for path in stored_files(store.uri) - before if "/data/" in path]
    assert read_checksums(store.uri).has(data)


def test_a_flipped_bit_is_wrong_and_stays_wrong(filled):
    for path in sorted(stored_files(filled.uri)):
        content = bytearray(Path(filled.uri, path).read_bytes())
        content[len(content) // 2] ^= 1
        Path(filled.uri, path).write_bytes(content)
        assert wrong(filled.uri) == [path]
        with suppress(StoreError):
            record_checksums(filled.uri)
        assert wrong(filled.uri) == [path]
        content[len(content) // 2] ^= 1
        Path(filled.uri, path).write_bytes(content)


def test_a_damaged_record_is_not_replaced(filled):
    record = Path(filled.uri, RECORD_NAME)
    content = record.read_bytes()
    for place in range(0, len(content), 7):
        record.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert read_checksums(filled.uri).is_damaged
    record.write_bytes(content[:-1])
    assert read_checksums(filled.uri).is_damaged
    assert record_checksums(filled.uri) == 0
    assert record.read_bytes() == content[:-1]
    forget_checksums(filled.uri)
    assert record_checksums(filled.uri) == len(stored_files(filled.uri))


def test_data_files_that_a_worker_still_writes_are_not_recorded(filled, rows_of):
    write_fragment(filled.uri, 7, rows_of(["late"]))
    record_checksums(filled.uri)
    (pending,) = stored_files(filled.uri) - read_checksums(filled.uri).recorded.keys()
    assert "/data/" in pending


def test_data_files_of_before_are_left_to_a_repair(filled):
    """Reading all of a large store would take longer than the deletion of one document."""
    forget_checksums(filled.uri)
    delete(filled.uri, ["doc-0-1"])
    recorded = read_checksums(filled.uri).recorded
    assert {path.split("/")[1] for path in stored_files(filled.uri) - recorded.keys()} == {"data"}
    assert record_checksums(filled.uri)
    assert read_checksums(filled.uri).recorded.keys() == stored_files(filled.uri)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_record_that_cannot_be_written_fails_no_commit(store, rows_of):
    Path(store.uri).chmod(0o555)
    try:
        commit(store, [write_fragment(store.uri, 0, rows_of(["a"]))])
    finally:
        Path(store.uri).chmod(0o755)
    assert store.refresh().count == 1


def test_a_full_disk_leaves_the_former_record(filled, monkeypatch):
    record = Path(filled.uri, RECORD_NAME)
    before = record.read_bytes()
    monkeypatch.setattr(checksums, "_seal", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        checksums._write(Path(filled.uri), {})
    assert record.read_bytes() == before
    assert [path.name for path in Path(filled.uri).glob(f"{RECORD_NAME}*")] == [RECORD_NAME]


def test_versions_are_known_by_the_names_of_their_manifests():
    assert version_of("memory.lance/_versions/18446744073709551609.manifest") == 6
    assert version_of("memory.lance/_versions/6.manifest") == 6
    assert version_of("memory.lance/_versions/x.manifest") == -1
