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
    record_written,
    stored_files,
    version_of,
)
from pisco_index.store.table.datasets import append_assets
from pisco_index.store.upkeep.check_files import read_record
from pisco_index.store.upkeep.findings import Findings


@pytest.fixture
def filled(store, rows_of):
    """A store of two shards."""
    with build_lock(store.uri):
        for shard in range(2):
            commit(store, [write_fragment(store.uri, shard, rows_of([f"doc-{shard}-{n}" for n in range(4)]))])
        # The store was created without the lock.
        record_checksums(store.uri)
    return store


def record_problems(uri: str) -> list[str]:
    findings = Findings(uri)
    read_record(findings)
    return [problem.what for problem in findings.problems]


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
    record.write_bytes(content[:40] + content[41:])
    assert read_checksums(filled.uri).is_damaged
    assert record_checksums(filled.uri) == 0
    assert record.read_bytes() == content[:40] + content[41:]
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


def test_a_commit_adds_to_the_record_and_reads_neither_it_nor_other_files(filled, rows_of, monkeypatch):
    record = Path(filled.uri, RECORD_NAME)
    before = record.read_bytes()
    for function in ("stored_files", "read_checksums", "_write"):
        monkeypatch.setattr(checksums, function, None)
    commit(filled, [write_fragment(filled.uri, 2, rows_of(["late"]))])
    after = record.read_bytes()
    assert after.startswith(before)
    assert len(after) - len(before) < 200


def test_a_crash_while_the_record_grows_loses_only_what_was_being_added(filled, rows_of):
    record, files = Path(filled.uri, RECORD_NAME), stored_files(filled.uri)
    before = record.read_bytes()
    commit(filled, [write_fragment(filled.uri, 2, rows_of(["late"]))])
    after = record.read_bytes()
    for length in range(len(before), len(after)):
        record.write_bytes(after[:length])
        found = read_checksums(filled.uri)
        assert not found.is_damaged
        assert found.is_torn == (length > len(before))
        assert found.recorded.keys() == files
        record_written(filled.uri, [next(iter(files))])
        assert record.read_bytes().startswith(after[:length])
    # Whoever takes the lock next makes the record whole.
    record.write_bytes(after[:-1])
    record_checksums(filled.uri)
    assert read_checksums(filled.uri).recorded.keys() == stored_files(filled.uri)
    assert not read_checksums(filled.uri).is_torn
    for content in (b"", after[:-1]):
        record.write_bytes(content)
        (problem,) = record_problems(filled.uri)
        assert "cut off" in problem
        record_checksums(filled.uri)
        assert not record_problems(filled.uri)


def test_a_crash_between_commit_and_the_end_of_the_build_costs_no_checksum(filled, rows_of, one_reject):
    commit(filled, [write_fragment(filled.uri, 2, rows_of(["late"]), one_reject)])
    append_assets(filled.uri, {"note": b""})
    with build_lock(filled.uri):
        pass
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
    monkeypatch.setattr(checksums, "_block", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        checksums._write(Path(filled.uri), {})
    assert record.read_bytes() == before
    assert [path.name for path in Path(filled.uri).glob(f"{RECORD_NAME}*")] == [RECORD_NAME]


def test_versions_are_known_by_the_names_of_their_manifests():
    assert version_of("memory.lance/_versions/18446744073709551609.manifest") == 6
    assert version_of("memory.lance/_versions/6.manifest") == 6
    assert version_of("memory.lance/_versions/x.manifest") == -1
