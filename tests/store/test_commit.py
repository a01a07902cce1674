import json
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import lance
import numpy as np
import pytest
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata

from pisco_index.errors import CorruptStoreError, MachineError, StoreError
from pisco_index.store import (
    Store,
    WrittenShard,
    codec_by_name,
    commit,
    done_shards,
    encode,
    memory_rows,
    remove_orphans,
    verify_written,
    write_fragment,
)

REAL_COMMIT = lance.LanceDataset.commit


def ids_of(store: Store) -> Counter[str]:
    return Counter(store.refresh().ids())


def expected(shards, documents=5) -> Counter[str]:
    return Counter(f"{shard}-{i}" for shard in shards for i in range(documents))


@pytest.fixture
def write(store, shard_rows):
    """Write shards of five documents."""

    def write(*shards: int) -> list[WrittenShard]:
        return [write_fragment(store.uri, shard, shard_rows(shard)) for shard in shards]

    return write


# -- written shards


def test_a_written_shard_is_small_and_says_what_it_holds(store, rows_of, one_reject):
    written = write_fragment(store.uri, 7, rows_of(["a", "b", "c"], failed={"b"}), one_reject)
    rows = rows_of(["a", "c"])
    assert (written.shard, written.rows, written.failed, written.rejected) == (7, 3, 1, 1)
    assert (written.tokens_total, written.tokens_fed) == (120, 90)
    assert written.n_mem == sum(rows["n_mem"].to_pylist())
    assert written.payload_bytes == sum(map(len, rows["payload"].to_pylist()))
    for name, size in written.files:
        (path,) = Path(store.uri).rglob(name)
        assert path.stat().st_size == size
    assert len(written.files) == 2
    assert len(pickle.dumps(written)) < 10_000
    assert WrittenShard.from_json(written.to_json()) == pickle.loads(pickle.dumps(written)) == written


def test_nothing_is_visible_before_the_commit(store, write):
    write(0)
    assert store.refresh().count == 0
    assert done_shards(store) == set()


def row(**changes):
    payload = encode("a", np.zeros((1, 2)), codec_by_name("fp32"))
    values = {"doc_ids": ["a"], "tokens_total": [1], "tokens_fed": [1], "payloads": [payload]}
    return memory_rows(**values | {"text_hashes": [bytes(16)], "errors": [None]} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_ids": [""]}, "between 1 and 512 bytes"),
        ({"doc_ids": ["é" * 257]}, "between 1 and 512 bytes"),
        ({"errors": ["bad"]}, "a payload or an error"),
        ({"payloads": [None]}, "a payload or an error"),
        ({"payloads": [b"junk"]}, "less than its header"),
    ],
)
def test_impossible_rows_are_refused(changes, message):
    assert row().num_rows == 1
    with pytest.raises(StoreError, match=message):
        row(**changes)


def test_an_id_twice_in_a_shard_is_refused(rows_of):
    with pytest.raises(StoreError, match="'b' occurs twice"):
        rows_of(["a", "b", "c", "b"])


def test_writing_needs_a_store(tmp_path, shard_rows):
    with pytest.raises(StoreError, match="cannot open table 'memory'"):
        write_fragment(tmp_path / "nowhere", 0, shard_rows(0))


# -- committing


def test_a_commit_makes_shards_visible_and_done(store, write):
    committed = commit(store, write(4, 2))
    assert (committed.new, committed.already_done) == ({2, 4}, set())
    assert done_shards(store) == {2, 4}
    assert ids_of(store) == expected([2, 4])


def test_committing_again_changes_nothing(store, write):
    written = write(0, 1)
    commit(store, written)
    version = store.refresh().version
    committed = commit(store, written)
    assert (committed.new, committed.already_done) == (set(), {0, 1})
    assert store.refresh().version == version


def test_a_shard_written_twice_is_stored_once(store, write):
    first, again, other = *write(0, 0), *write(1)
    assert commit(store, [first, again]).new == {0}
    committed = commit(store, [again, other])
    assert (committed.new, committed.already_done) == ({1}, {0})
    assert ids_of(store) == expected([0, 1])


def test_many_commits_keep_every_row_and_unique_fragments(store, write):
    for shard in range(0, 24, 2):
        commit(store, write(shard, shard + 1))
    store = store.refresh()
    fragments = [fragment.fragment_id for fragment in store.table.get_fragments()]
    assert len(fragments) == len(set(fragments)) == 24
    assert store.count == 120
    assert ids_of(store) == expected(range(24))
    assert done_shards(Store.open(store.uri)) == set(range(24))


def test_fragment_ids_are_not_reused_after_a_deletion(store, write):
    commit(store, write(0, 1))
    lance.dataset(f"{store.uri}/memory.lance").delete("shard = 1")
    commit(store, write(2))
    assert [fragment.fragment_id for fragment in store.refresh().table.get_fragments()] == [0, 2]
    assert ids_of(store) == expected([0, 2])


def test_shards_without_rows_are_done_too(store, shard_rows, one_reject):
    empty = write_fragment(store.uri, 3, shard_rows(3, documents=0))
    refused = write_fragment(store.uri, 5, shard_rows(5, documents=0), one_reject)
    assert empty.files == ()
    for new in ({3, 5}, set()):
        assert commit(store, [empty, refused]).new == new
        assert done_shards(store) == {3, 5}
    assert lance.dataset(f"{store.uri}/rejected.lance").count_rows() == 1


@pytest.mark.fault(
    "A driver dies between `rejected` and `memory`.",
    "Rejected records are still stored once.",
)
def test_rejected_records_are_stored_once_though_a_driver_dies_in_between(store, shard_rows, one_reject, monkeypatch):
    written = write_fragment(store.uri, 0, shard_rows(0), one_reject)

    def die_at_memory(dataset, *args, **kwargs):
        if dataset.uri.endswith("memory.lance"):
            raise KeyboardInterrupt
        return REAL_COMMIT(dataset, *args, **kwargs)

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(die_at_memory))
    with pytest.raises(KeyboardInterrupt):
        commit(store, [written])
    monkeypatch.undo()
    assert done_shards(store) == set()
    again = write_fragment(store.uri, 0, shard_rows(0), one_reject)
    assert commit(store, [again]).new == {0}
    rejected = lance.dataset(f"{store.uri}/rejected.lance").to_table().to_pylist()
    assert rejected == [{"shard": 0, "source": "corpus.jsonl:7", "doc_id": None, "error": "no id"}]


# -- files that are not what they were


@pytest.mark.fault(
    "A written file is missing, short, or has other rows.",
    "It is not committed. The shard is written again, and given up if that is damaged each time.",
)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "bytes and not"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "cannot be read"),
    ],
)
def test_a_damaged_file_stops_the_commit_and_is_named(store, write, damage, message):
    good, bad = write(0, 1)
    ((name, _),) = bad.files
    damage(Path(store.uri, "memory.lance", "data", name))
    for attempt in (lambda: commit(store, [good, bad]), lambda: verify_written(store, bad)):
        with pytest.raises(CorruptStoreError, match=f"shard 1 .*{name} .*{message}"):
            attempt()
    verify_written(store, good)
    assert done_shards(store) == set()
    assert commit(store, [good]).new == {0}


def test_a_file_with_other_rows_stops_the_commit(store, write):
    (written,) = write(0)
    fragment = json.loads(written.memory_fragments[0]) | {"physical_rows": 6}
    lying = WrittenShard.from_json(
        json.dumps(json.loads(written.to_json()) | {"memory_fragments": [json.dumps(fragment)]})
    )
    with pytest.raises(CorruptStoreError, match=r"shard 0 .*has 5 rows and not 6"):
        commit(store, [lying])


# -- other drivers, failures


def test_lance_refuses_a_merge_after_any_other_commit(store, write):
    """The protocol relies on this: a Merge conflicts with a Merge and with an Append."""
    a, b, c = ([FragmentMetadata.from_json(text) for text in each.memory_fragments] for each in write(0, 1, 2))
    start = store.table
    merge = lance.LanceOperation.Merge
    REAL_COMMIT(start, merge(a, start.lance_schema), read_version=start.version)
    with pytest.raises(CommitConflictError):
        REAL_COMMIT(start, merge(b, start.lance_schema), read_version=start.version)
    second = lance.dataset(start.uri)
    REAL_COMMIT(second, lance.LanceOperation.Append(b), read_version=second.version)
    existing = [fragment.metadata for fragment in second.get_fragments()]
    with pytest.raises(CommitConflictError):
        REAL_COMMIT(second, merge([*existing, *c], start.lance_schema), read_version=second.version)
    assert ids_of(store) == expected([0, 1])


@pytest.mark.fault(
    "Another commit comes between.",
    "The driver looks again and overwrites nothing.",
)
def test_a_driver_that_comes_between_is_not_overwritten(store, write, monkeypatch):
    mine, theirs = write(0, 1), write(1, 2)
    real, raced = REAL_COMMIT, []

    def race_once(dataset, *args, **kwargs):
        if not raced:
            raced.append(True)
            commit(Store.open(store.uri), theirs)
        return real(dataset, *args, **kwargs)

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(race_once))
    committed = commit(store, mine)
    assert (committed.new, committed.already_done) == ({0}, {1})
    assert ids_of(store) == expected([0, 1, 2])


@pytest.mark.fault(
    "A commit lands and reports an error.",
    "It is recognised and not doubled.",
)
def test_a_commit_that_landed_but_reported_an_error_is_recognised(store, write, monkeypatch):
    failed = []

    def land_then_fail(*args, **kwargs):
        landed = REAL_COMMIT(*args, **kwargs)
        if not failed:
            failed.append(True)
            raise OSError("connection reset")
        return landed

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(land_then_fail))
    assert commit(store, write(0, 1)).new == {0, 1}
    assert ids_of(store) == expected([0, 1])


def test_a_commit_that_keeps_failing_is_an_error_and_leaves_the_store_as_it_was(store, write, monkeypatch):
    written = write(0, 1)
    attempts = []

    def fail(*args, **kwargs):
        attempts.append(True)
        raise OSError("the network is down")

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(fail))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(StoreError, match=r"shards \[0, 1\].*the network is down"):
        commit(store, written)
    assert 1 < len(attempts) < 20
    monkeypatch.undo()
    assert store.refresh().count == 0
    assert commit(store, written).new == {0, 1}


RACER = """
import pickle, sys, time
from pathlib import Path
from pisco_index.store import Store, commit
uri, folder, name, size = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
store = Store.open(uri)
written = pickle.loads((folder / f"{name}.pickle").read_bytes())
(folder / f"{name}.ready").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
new = [commit(store, written[i : i + size]).new for i in range(0, len(written), size)]
(folder / f"{name}.new").write_bytes(pickle.dumps(sorted(set().union(*new))))
"""


@pytest.mark.fault(
    "Several drivers commit the same shards, also to an object store.",
    "Each shard is stored once.",
)
def test_processes_that_race_to_commit_the_same_shards_store_each_once(store, write, tmp_path):
    # Two racers commit shard by shard, and one commits five shards at a time.
    names = {"one": 1, "two": 1, "three": 5}
    for name in names:
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps(write(*range(10))))
    arguments = [store.uri, str(tmp_path)]
    racers = [subprocess.Popen([sys.executable, "-c", RACER, *arguments, *map(str, each)]) for each in names.items()]
    while not all((tmp_path / f"{name}.ready").exists() for name in names):
        assert all(racer.poll() is None for racer in racers)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert [racer.wait() for racer in racers] == [0, 0, 0]
    claimed = [shard for name in names for shard in pickle.loads((tmp_path / f"{name}.new").read_bytes())]
    assert sorted(claimed) == list(range(10))
    assert ids_of(store) == expected(range(10))


# -- full disks, orphans


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_while_writing_loses_nothing(small_disk, meta, shard_rows):
    store = Store.create(small_disk, meta=meta, assets={})
    commit(store, [write_fragment(small_disk, 0, shard_rows(0))])
    filler = small_disk / ".filler"
    filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - 8192))
    with pytest.raises(MachineError, match=r"shard 1 .*the disk is full"):
        write_fragment(small_disk, 1, shard_rows(1, documents=500))
    assert ids_of(store) == expected([0])
    filler.unlink()
    assert commit(store, [write_fragment(small_disk, 1, shard_rows(1))]).new == {1}


@pytest.mark.fault(
    "The disk is full.",
    "The build ends; after making room the same command resumes.",
)
def test_a_disk_that_fills_before_the_commit_loses_nothing(small_disk, meta, shard_rows):
    store = Store.create(small_disk, meta=meta, assets={})
    written = [write_fragment(small_disk, 0, shard_rows(0))]
    filler = small_disk / ".filler"
    filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    with pytest.raises(MachineError, match=r"shards .*the disk is full"):
        commit(store, written)
    assert Store.open(small_disk).count == 0
    filler.unlink()
    assert commit(store, written).new == {0}
    assert ids_of(store) == expected([0])


def test_a_full_disk_is_not_tried_again(store, write, monkeypatch):
    attempts = []

    def fail(*args, **kwargs):
        attempts.append(True)
        raise OSError("LanceError(IO): No space left on device (os error 28)")

    written = write(0)
    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(fail))
    with pytest.raises(StoreError, match="the disk is full"):
        commit(store, written)
    assert len(attempts) == 1


def test_orphans_are_removed_and_nothing_else(store, write, shard_rows, one_reject):
    kept, lost = write(0, 1)
    write_fragment(store.uri, 2, shard_rows(2), one_reject)
    commit(store, [kept])
    data = Path(store.uri, "memory.lance", "data")
    assert len(list(data.iterdir())) == 3
    opened = store.refresh()
    assert remove_orphans(store) > 0
    assert [path.name for path in data.iterdir()] == [name for name, _ in kept.files]
    assert not list(Path(store.uri, "rejected.lance").rglob("*.lance"))
    assert opened.fetch(["0-1"]).doc_ids == ("0-1",)
    assert ids_of(store) == expected([0])
    assert store.refresh().asset("connector") == b"weights"
    with pytest.raises(CorruptStoreError, match="is missing"):
        commit(store, [lost])
