"""Id maps are kept beside the store, made again when they are damaged, and never in the way."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lance
import lancedb
import numpy as np
import pytest
from filelock import Timeout
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from platformdirs import user_cache_path

from pisco_index.errors import MissingDocumentsError, StoreError
from pisco_index.store import Store, commit, write_fragment
from pisco_index.store.derived.folders import CACHE_FOLDER
from pisco_index.store.lookup import hashing, idcache
from pisco_index.store.lookup.idmap import GROWTH

ASKED = ["0-1", "1-4", "0-0"]


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def filled(store, shard_rows) -> Store:
    """Two shards, ten documents."""
    commit(store, [write_fragment(store.uri, shard, shard_rows(shard)) for shard in (0, 1)])
    # Totals and hashes, which a commit keeps in the same folder.
    shutil.rmtree(Path(store.uri, CACHE_FOLDER))
    return store.refresh()


@pytest.fixture
def hashed(monkeypatch) -> list[int]:
    """The number of ids that were hashed for maps, each time."""
    counts = []
    real = hashing.hashes_of

    def count(doc_ids):
        counts.append(len(doc_ids))
        return real(doc_ids)

    monkeypatch.setattr(hashing, "hashes_of", count)
    return counts


def maps(folder: Path | str) -> list[Path]:
    return sorted(Path(folder).rglob("*.idmap"))


def test_a_map_is_made_once(filled, hashed):
    assert filled.fetch(ASKED).doc_ids == tuple(ASKED)
    assert sum(hashed) == 10
    assert [path.parent for path in maps(filled.uri)] == [Path(filled.uri) / ".pisco-index"]
    assert Store.open(filled.uri).fetch(ASKED).doc_ids == tuple(ASKED)
    assert sum(hashed) == 10


def test_a_map_disturbs_neither_lancedb_nor_a_new_store(filled, tmp_path, meta):
    filled.fetch(ASKED)
    database = lancedb.connect(filled.uri)
    assert set(database.list_tables().tables) == {"memory", "rejected", "assets"}
    assert database.open_table("memory").count_rows() == 10
    (tmp_path / "new").mkdir()
    shutil.copytree(Path(filled.uri) / ".pisco-index", tmp_path / "new" / ".pisco-index")
    Store.require_free(tmp_path / "new")
    new = Store.create(tmp_path / "new", meta=meta, assets={})
    assert len(new.fetch(ASKED, missing="skip")) == 0


def test_appending_hashes_only_what_is_new(filled, shard_rows, hashed):
    filled.fetch(ASKED)
    commit(filled, [write_fragment(filled.uri, 2, shard_rows(2, documents=3))])
    later = filled.refresh()
    assert later.fetch(["2-2", *ASKED]).doc_ids == ("2-2", *ASKED)
    assert sum(hashed) == 13
    with pytest.raises(MissingDocumentsError):
        filled.fetch(["2-2"])


def test_deleting_needs_no_new_map_and_older_versions_keep_their_rows(filled, hashed):
    lance.dataset(f"{filled.uri}/memory.lance").delete("doc_id in ('0-1', '1-4')")
    later = filled.refresh()
    assert later.fetch([*ASKED, "1-3"], missing="skip").doc_ids == ("0-0", "1-3")
    assert Store.open(filled.uri, filled.version).fetch(ASKED).doc_ids == tuple(ASKED)
    assert sum(hashed) == 10
    assert len(maps(filled.uri)) == 1


def test_compaction_drops_the_files_that_are_gone(filled, shard_rows, hashed):
    filled.fetch(ASKED)
    lance.dataset(f"{filled.uri}/memory.lance").optimize.compact_files()
    compacted = filled.refresh()
    assert compacted.fetch(ASKED).doc_ids == tuple(ASKED)
    commit(compacted, [write_fragment(compacted.uri, 2, shard_rows(2))])
    assert compacted.refresh().fetch(["2-1", *ASKED]).doc_ids == ("2-1", *ASKED)
    assert sum(hashed) == 10 + 10 + 5


def test_a_version_with_new_files_adds_a_small_segment(store, rows_of, hashed):
    large = [f"0-{number}" for number in range(GROWTH * 3 + 1)]
    commit(store, [write_fragment(store.uri, 0, rows_of(large))])
    store.refresh().fetch(large)
    (first,) = maps(store.uri)
    before = first.stat().st_mtime_ns
    for number, segments in ((1, 2), (2, 2), (3, 2), (4, 1)):
        commit(store, [write_fragment(store.uri, number, rows_of([f"{number}-0"]))])
        everything = [*large, *(f"{each}-0" for each in range(1, number + 1))]
        assert store.refresh().fetch(everything).doc_ids == tuple(everything)
        # The fourth row makes the new rows more than an eighth of the others.
        assert len(maps(store.uri)) == segments
        assert (first.exists() and first.stat().st_mtime_ns == before) == (segments == 2)
    assert sum(hashed) == len(everything)


def test_a_writer_makes_the_map_for_its_readers(filled, hashed):
    idcache.keep_map(filled.uri)
    assert sum(hashed) == 10
    filled.fetch(ASKED)
    lance.dataset(f"{filled.uri}/memory.lance").optimize.compact_files()
    idcache.keep_map(filled.uri)
    idcache.keep_map(filled.uri)
    assert sum(hashed) == 20
    assert filled.refresh().fetch(ASKED).doc_ids == tuple(ASKED)
    assert sum(hashed) == 20


def test_a_writer_leaves_damage_to_its_readers(filled):
    for path in Path(filled.uri).glob("memory.lance/data/*.lance"):
        path.write_bytes(bytes(path.stat().st_size))
    idcache.keep_map(filled.uri)
    assert not maps(filled.uri)


def test_reading_ids_for_long_is_reported(filled, monkeypatch, caplog):
    monkeypatch.setattr(hashing, "_QUIET_S", -1)
    monkeypatch.setattr(hashing, "_RUN_ROWS", 5)
    filled.fetch(ASKED)
    assert [each.getMessage() for each in caplog.records] == [
        f"Reading the 10 document ids of {filled.uri} once, to find documents by them: {done} % done."
        for done in (50, 100)
    ]


def test_maps_of_older_versions_and_abandoned_files_are_deleted(filled, shard_rows):
    folder = Path(filled.uri) / ".pisco-index"
    folder.mkdir()
    abandoned, fresh = folder / "a.idmap.1.tmp", folder / "b.idmap.2.tmp"
    for path in (abandoned, fresh):
        path.write_bytes(b"half")
    os.utime(abandoned, times=(time.time() - 7200,) * 2)
    table = lance.dataset(f"{filled.uri}/memory.lance")
    for shard in range(2, 7):
        commit(filled, [write_fragment(filled.uri, shard, shard_rows(shard))])
        table.checkout_latest()
        table.optimize.compact_files()
        filled.refresh().fetch([f"{shard}-0", *ASKED])
    # The latest version has 35 rows. The former ones have 30, 25, 20 and 15, of which 70 may stay, the latest first.
    assert len(maps(folder)) == 4
    assert fresh.exists()
    assert not abandoned.exists()


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    damaged = {
        "empty": b"",
        "short": content[:-1],
        "long": content + bytes(8),
        "other": b"a song of ice and fire " * 100,
        "magic": b"X" + content[1:],
        "version": content[:8] + b"\xff" + content[9:],
        "header": content[:40] + bytes([content[40] ^ 1]) + content[41:],
        "last row": content[:-8] + bytes([content[-8] ^ 1]) + content[-7:],
        "zeros": bytes(len(content)),
    }
    path.write_bytes(damaged[kind])


KINDS = ["empty", "short", "long", "other", "magic", "version", "header", "last row", "zeros"]


@pytest.mark.fault(
    "An id map is damaged, or belongs to another store.",
    "It is made again.",
)
def test_a_damaged_map_is_made_anew(filled, hashed):
    filled.fetch(ASKED)
    (path,) = maps(filled.uri)
    whole = path.read_bytes()
    everything = sorted(filled.ids())
    for kind in KINDS:
        hashed.clear()
        damage(path, kind)
        store = Store.open(filled.uri)
        assert store.fetch(everything).doc_ids == tuple(everything), kind
        assert sum(hashed) == 10, kind
        assert path.read_bytes() == whole, kind


def test_a_damaged_map_is_no_base_for_the_next(filled, shard_rows):
    store = filled
    for shard, kind in enumerate(KINDS, start=2):
        store.fetch(ASKED)
        *older, newest = sorted(maps(store.uri), key=lambda path: path.stat().st_mtime_ns)
        for path in older:
            path.unlink()
        damage(newest, kind)
        commit(store, [write_fragment(store.uri, shard, shard_rows(shard))])
        store = store.refresh()
        everything = sorted(store.ids())
        assert store.fetch(everything).doc_ids == tuple(everything), kind


@pytest.mark.fault(
    "An id map is damaged, or belongs to another store.",
    "It is made again.",
)
def test_the_map_of_another_store_is_not_trusted(filled, tmp_path, meta, rows_of):
    filled.fetch(ASKED)
    (path,) = maps(filled.uri)
    other = Store.create(tmp_path / "other", meta=meta, assets={})
    commit(other, [write_fragment(other.uri, 0, rows_of(["x", "y"]))])
    other = other.refresh()
    other.fetch(["x"])
    (others,) = maps(other.uri)
    shutil.copy(path, others)
    assert Store.open(other.uri).fetch(["y", "x"]).doc_ids == ("y", "x")
    with pytest.raises(MissingDocumentsError):
        Store.open(other.uri).fetch(["0-1"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_change_of_a_map_changes_an_answer(filled, memory_of, data):
    filled.fetch(ASKED)
    (path,) = maps(filled.uri)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    rows = Store.open(filled.uri).fetch([*ASKED, "absent"], missing="skip")
    assert rows.doc_ids == tuple(ASKED)
    np.testing.assert_array_equal(rows.memory()[0], np.concatenate([memory_of(doc_id) for doc_id in ASKED]))


@pytest.mark.fault(
    "A store cannot be written to.",
    "Its map is kept in the user's cache, or in memory.",
)
def test_a_store_that_cannot_be_written_has_its_map_in_the_users_cache(filled, user_cache, hashed):
    (Path(filled.uri) / ".pisco-index").write_text("no folder can be made here")
    for _ in range(2):
        assert Store.open(filled.uri).fetch(ASKED).doc_ids == tuple(ASKED)
    assert len(maps(user_cache)) == 1
    assert sum(hashed) == 10


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_permission_to_write(filled, user_cache):
    Path(filled.uri).chmod(0o500)
    try:
        assert filled.fetch(ASKED).doc_ids == tuple(ASKED)
    finally:
        Path(filled.uri).chmod(0o700)
    assert len(maps(user_cache)) == 1


FETCH = """
import sys
from pisco_index.store import Store
sys.stdin.read()
assert Store.open(sys.argv[1]).fetch(["0-1", "1-4"]).doc_ids == ("0-1", "1-4")
"""


MOUNT = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 77
exec "$2" -c "$3" "$1"
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare")
def test_a_store_on_a_disk_that_cannot_be_written(filled, user_cache):
    command = ["unshare", "--mount", "sh", "-c", MOUNT, "sh", filled.uri, sys.executable, FETCH]
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if finished.returncode in (1, 77) and "Traceback" not in finished.stderr:
        pytest.skip(f"nothing can be mounted here: {finished.stderr}")
    assert finished.returncode == 0, finished.stderr
    assert len(maps(user_cache)) == 1
    assert not maps(filled.uri)


@pytest.mark.fault(
    "A store cannot be written to.",
    "Its map is kept in the user's cache, or in memory.",
)
def test_where_nothing_can_be_written_the_map_is_in_memory(filled, user_cache, hashed):
    (Path(filled.uri) / ".pisco-index").write_text("no folder can be made here")
    user_cache.write_text("nor here")
    for _ in range(2):
        assert Store.open(filled.uri).fetch(ASKED).doc_ids == tuple(ASKED)
    assert sum(hashed) == 20


def test_a_user_without_a_home_folder_reads(filled, monkeypatch, hashed):
    """Containers often run as a user id that the system does not know."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: {}["unknown"])
    (Path(filled.uri) / ".pisco-index").write_text("no folder can be made here")
    with pytest.raises(RuntimeError):
        user_cache_path("pisco-index")
    assert Store.open(filled.uri).fetch(ASKED).doc_ids == tuple(ASKED)
    assert sum(hashed) == 10


def test_a_full_disk_leaves_nothing_behind(filled, user_cache, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert filled.fetch(ASKED).doc_ids == tuple(ASKED)
    for folder in (Path(filled.uri) / ".pisco-index", user_cache):
        assert {path.name for path in folder.rglob("*") if path.is_file()} <= {"idmap.lock"}


def test_a_store_that_was_deleted_does_not_come_back(filled, user_cache, hashed, monkeypatch):
    real = idcache.read_runs

    def delete_first(*args):
        runs = list(real(*args))
        shutil.rmtree(filled.uri)
        return runs

    monkeypatch.setattr(idcache, "read_runs", delete_first)
    with pytest.raises(StoreError, match="is gone"):
        filled.fetch(ASKED)
    assert sum(hashed) == 10
    assert not Path(filled.uri).exists()
    assert not user_cache.exists()


@pytest.mark.fault(
    "Several processes open a new version at once.",
    "One makes the map, the others wait for it.",
)
def test_one_of_the_processes_that_open_a_store_at_once_makes_the_map(filled, hashed):
    command = [sys.executable, "-c", SLOW_FETCH, filled.uri]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        process.stdin.close()
    assert sorted(process.stdout.read() for process in processes) == [b"", b"", b"", b"made"]
    assert [process.wait() for process in processes] == [0] * 4
    for process in processes:
        process.stdout.close()
    assert {path.suffix for path in (Path(filled.uri) / ".pisco-index").iterdir()} == {".idmap", ".lock"}
    assert filled.fetch(ASKED).doc_ids == tuple(ASKED)
    assert not hashed


SLOW_FETCH = f"""
import sys, time
from pisco_index.store.lookup import idcache
real = idcache._make
def make(*args):
    print(end="made")
    time.sleep(0.5)
    return real(*args)
idcache._make = make
{FETCH}
"""


@pytest.mark.fault(
    "A process dies while it makes an id map.",
    "The next process makes it, without waiting.",
)
def test_a_process_that_dies_while_it_writes_a_map_leaves_no_lock(filled, hashed):
    finished = subprocess.run([sys.executable, "-c", DIES, filled.uri], stdin=subprocess.DEVNULL, check=False)
    assert finished.returncode == -signal.SIGKILL
    assert [path.suffix for path in (Path(filled.uri) / ".pisco-index").iterdir() if path.suffix != ".lock"] == [".tmp"]
    assert filled.fetch(ASKED).doc_ids == tuple(ASKED)
    assert sum(hashed) == 10


DIES = f"""
import os, signal
from pisco_index.store.lookup import idcache
real = idcache.write_segment
def write(file, *args):
    real(file, *args)
    file.truncate(100)
    os.kill(os.getpid(), signal.SIGKILL)
idcache.write_segment = write
{FETCH}
"""


@pytest.mark.parametrize("failure", [OSError(38, "Function not implemented"), Timeout("idmap.lock")])
def test_without_a_lock_the_map_is_made_all_the_same(filled, monkeypatch, failure, user_cache):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(idcache.FileLock, "acquire", fail)
    assert filled.fetch(ASKED).doc_ids == tuple(ASKED)
    assert len(maps(filled.uri)) == 1


@pytest.mark.fault(
    "An id map is damaged, or belongs to another store.",
    "It is made again.",
)
@pytest.mark.parametrize("which", ["larger", "smaller"])
def test_damage_to_one_of_several_segments_changes_no_answer(store, rows_of, which):
    ids = [f"0-{number}" for number in range(40)]
    for shard, own in enumerate((ids, ["1-0"])):
        commit(store, [write_fragment(store.uri, shard, rows_of(own))])
        store.refresh().fetch(own)
    sizes = sorted(maps(store.uri), key=lambda path: path.stat().st_size)
    assert len(sizes) == 2
    path = sizes[which == "larger"]
    for content in (path.read_bytes()[:-8] + bytes(8), b"", path.read_bytes()[:-20]):
        path.write_bytes(content)
        assert store.refresh().fetch([*ids, "1-0"]).doc_ids == (*ids, "1-0")
