"""A store in an object store: every shard is stored once and read back, even if requests fail or get lost."""

import itertools
import pickle
import socket
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import lance
import pyarrow as pa
import pytest

from pisco_index import Reader
from pisco_index.errors import CorruptStoreError, StoreError
from pisco_index.store import (
    Searcher,
    Store,
    commit,
    compact,
    delete,
    describe,
    done_shards,
    fill_contents,
    keep_index,
    memory_rows,
    remove_orphans,
    search_index,
    text_hash,
    verify_written,
    write_fragment,
)
from pisco_index.store.lookup import hashing
from pisco_index.store.search.checksums import damaged_files, read_notes


@pytest.fixture
def write(store, shard_rows):
    """Write shards of five documents."""

    def write(*shards: int):
        return [write_fragment(store.uri, shard, shard_rows(shard)) for shard in shards]

    return write


@pytest.fixture
def impatient(monkeypatch):
    """Give up quickly."""
    monkeypatch.setenv("OBJECT_STORE_CLIENT_MAX_RETRIES", "0")
    monkeypatch.setenv("OBJECT_STORE_CLIENT_RETRY_TIMEOUT", "1")


def ids_of(store) -> Counter[str]:
    return Counter(store.refresh().ids())


def expected(shards) -> Counter[str]:
    return Counter(f"{shard}-{i}" for shard in shards for i in range(5))


# -- what works as in a folder


def test_the_life_of_a_store(store, write, payload_of, bucket):
    bucket.put("some/index/notes.txt", b"of somebody else")
    assert Store.exists(store.uri)
    commit(store, [*write(0), *write(1)])
    commit(store, write(2))
    orphan = write(3)
    reader = store.refresh()
    asked = ["2-1", "0-4", "1-0", "2-1"]
    rows = reader.fetch(asked, columns=["tokens_fed"])
    assert (rows.doc_ids, rows.payloads) == (tuple(asked), tuple(map(payload_of, asked)))
    assert pickle.loads(pickle.dumps(reader)).fetch(asked).payloads == rows.payloads
    assert reader.asset("connector") == b"weights"
    info = describe(reader)
    assert (info.documents, info.shards_done, info.fragments, info.disk_bytes) == (15, 3, 3, None)
    assert info.table_bytes > info.payload_bytes > 15 * len(payload_of("0-0"))

    assert delete(store.uri, ["0-4", "nobody"], missing="skip").deleted == 1
    assert reader.fetch(asked).payloads == rows.payloads
    with pytest.raises(StoreError, match=r"whether a build is writing .* cannot be seen.*--no-build-runs"):
        compact(store.uri)
    (unseen,) = (name for name, _ in orphan[0].files)
    assert any(key.endswith(unseen) for key in bucket.objects())
    compaction = compact(store.uri, older_than_hours=0, no_build_runs=True)
    assert (compaction.fragments_before, compaction.fragments, compaction.versions) == (3, 1, 1)
    assert ids_of(store) == expected([0, 1, 2]) - Counter(["0-4"])
    assert store.refresh().fetch(asked, missing="skip").payloads == tuple(map(payload_of, ["2-1", "1-0", "2-1"]))
    with pytest.raises(StoreError, match=r"[Oo]pen it again"):
        reader.fetch(["1-1"])
    kept = bucket.objects()
    assert not any(key.endswith(unseen) for key in kept)
    assert kept["some/index/notes.txt"] == b"of somebody else"


def test_files_that_no_version_refers_to_stay_until_somebody_says_that_no_build_runs(store, write, bucket):
    def files():
        return [key for key in bucket.objects() if "memory.lance/data/" in key]

    commit(store, write(0))
    write(1)
    assert remove_orphans(store.refresh()) == 0
    assert len(files()) == 2
    compact(store.uri, older_than_hours=0, no_build_runs=True)
    assert len(files()) == 1
    assert ids_of(store) == expected([0])


def test_a_file_that_is_missing_or_damaged_is_not_committed(store, write, bucket):
    good, bad, empty = write(0, 1, 2)
    for written, damage in ((bad, b"damage" * 1000), (empty, b"")):
        ((name, _),) = written.files
        bucket.put(f"some/index/memory.lance/data/{name}", damage)
        for attempt in (
            lambda each=written: commit(store, [good, each]),
            lambda each=written: verify_written(store, each),
        ):
            with pytest.raises(CorruptStoreError, match=f"shard {written.shard} .*{name} cannot be read"):
                attempt()
    assert done_shards(store) == set()


def test_a_table_of_somebody_else_is_not_written_to(uri, meta):
    lance.write_dataset(pa.table({"x": [1]}), f"{uri}/memory.lance")
    with pytest.raises(StoreError, match="is no store, but holds a table 'memory' with 1 rows"):
        Store.create(uri, meta=meta, assets={})
    with pytest.raises(StoreError, match="never completed"):
        Store.open(uri)


# -- exactly once

RACER = """
import pickle, sys
from pathlib import Path
from pisco_index.store import Store, commit
uri, file = sys.argv[1], Path(sys.argv[2])
store = Store.open(uri)
written = pickle.loads(file.read_bytes())
print("ready", flush=True)
sys.stdin.readline()
new = [commit(store, [each]).new for each in written]
file.write_bytes(pickle.dumps(sorted(set().union(*new))))
"""


@pytest.mark.fault(
    "Several drivers commit the same shards, also to an object store.",
    "Each shard is stored once.",
)
def test_processes_that_race_to_commit_the_same_shards_store_each_once(store, write, proxy, tmp_path):
    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        file.write_bytes(pickle.dumps(write(*range(6))))
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, store.uri, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for file in files
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate()
        assert racer.returncode == 0
    claimed = [shard for file in files for shard in pickle.loads(file.read_bytes())]
    assert sorted(claimed) == list(range(6))
    assert ids_of(store) == expected(range(6))
    manifests = [each for each in proxy.requests if each.method == "PUT" and "/_versions/" in each.path]
    assert all(each.is_conditional for each in manifests if each.path.endswith(".manifest"))


def commits_of(method: str, path: str) -> bool:
    return method == "PUT" and "/memory.lance/_versions/" in path and path.endswith(".manifest")


@pytest.mark.fault(
    "Several drivers commit the same shards, also to an object store.",
    "Each shard is stored once.",
)
def test_a_commit_that_comes_between_the_look_and_the_put_is_not_overwritten(store, write, proxy):
    """Another driver comes at the last moment: Lance has seen no other version, and puts its own."""
    mine, theirs = write(0, 1), write(1, 2)
    raced = []

    def race_once(method, path):
        if commits_of(method, path) and not raced:
            raced.append(path)
            commit(Store.open(store.uri), theirs)

    proxy.before = race_once
    committed = commit(store, mine)
    assert (committed.new, committed.already_done) == ({0}, {1})
    assert ids_of(store) == expected([0, 1, 2])
    assert [each.status for each in proxy.requests if each.path == raced[0] and each.method == "PUT"] == [200, 412]


@pytest.mark.fault(
    "Requests to an object store fail, or their answers are lost.",
    "They are retried; a commit that landed is recognised.",
)
def test_a_commit_whose_answer_got_lost_is_recognised(store, write, proxy):
    lost = []

    def lose_once(method, path, status):
        if commits_of(method, path) and status == 200 and not lost:
            lost.append(path)
            return True
        return False

    proxy.loses = lose_once
    assert commit(store, write(0, 1)).new == {0, 1}
    assert len(lost) == 1
    assert ids_of(store) == expected([0, 1])


# -- requests that fail


@pytest.mark.fault(
    "Requests to an object store fail, or their answers are lost.",
    "They are retried; a commit that landed is recognised.",
)
def test_requests_that_fail_now_and_then(uri, meta, shard_rows, payload_of, proxy):
    proxy.failing = 0.15
    store = Store.create(uri, meta=meta, assets={"connector": b"weights"})
    for shard in range(2):
        commit(store, [write_fragment(uri, shard, shard_rows(shard))])
    asked = [f"{shard}-{i}" for shard in range(2) for i in range(5)]
    assert store.refresh().fetch(asked).payloads == tuple(map(payload_of, asked))
    delete(uri, ["1-1"])
    compact(uri, older_than_hours=0, no_build_runs=True)
    asked.remove("1-1")
    assert store.refresh().fetch(asked).payloads == tuple(map(payload_of, asked))
    assert ids_of(store) == Counter(asked)
    failed = Counter(each.status for each in proxy.requests)
    assert all(failed[status] for status in (500, 503, 0))


@pytest.mark.fault(
    "An object store stays away, or never answers.",
    "It is an error after some minutes at most.",
)
def test_a_store_that_goes_away_is_an_error(store, write, proxy, impatient):
    (written,) = write(0)
    commit(store, [written])
    reader = Store.open(store.uri)
    proxy.failing = 1.0
    for attempt in (
        lambda: reader.fetch(["0-0"]),
        lambda: verify_written(store, written),
        lambda: commit(store, [written]),
    ):
        with pytest.raises(StoreError, match=r"^cannot .*: the object store does not answer, or refuses\. Check "):
            attempt()


@pytest.mark.fault(
    "An object store stays away, or never answers.",
    "It is an error after some minutes at most.",
)
def test_a_server_that_never_answers_is_an_error(proxy, impatient, monkeypatch):
    monkeypatch.setenv("TIMEOUT", "100ms")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StoreError, match="does not answer, or refuses"):
            Store.open("s3://silent/index")


def test_a_bucket_that_is_not_there(proxy, impatient):
    with pytest.raises(StoreError, match=r"does not answer, or refuses.*\n.*NoSuchBucket"):
        Store.exists("s3://no-such-bucket/index")


# -- what reading costs


def test_documents_are_asked_for_at_once_and_once_each(store, shard_rows, payload_of, proxy):
    commit(store, [write_fragment(store.uri, shard, shard_rows(shard, documents=200)) for shard in (0, 1)])
    reader = store.refresh()
    reader.fetch(["0-0", "1-0"])
    asked = [f"{shard}-{i}" for shard in (0, 1) for i in range(3, 200, 40)]
    waiting, all_here, counter = [], threading.Event(), itertools.count(1)

    def hold(method, path):
        """Hold every request back until ten are here, which never happens if they are sent one after the other."""
        if next(counter) >= len(asked):
            all_here.set()
        waiting.append(all_here.wait(5))

    proxy.requests.clear()
    proxy.before = hold
    assert reader.fetch(asked).payloads == tuple(map(payload_of, asked))
    assert all(waiting)
    # One for each document, and one for the ids of each file.
    assert len(asked) <= len(proxy.requests) <= len(asked) + 2


def test_the_map_of_ids_is_in_the_users_cache_and_made_once(store, write, proxy, tmp_path, monkeypatch, bucket):
    commit(store, write(0, 1))
    Store.open(store.uri).fetch(["0-0"])
    (kept,) = tmp_path.rglob("*.idmap")
    assert kept.is_relative_to(tmp_path / "cache")
    assert not any(".pisco-index" in key for key in bucket.objects())

    def fail(doc_ids):
        pytest.fail("the ids were read again")

    monkeypatch.setattr(hashing, "hashes_of", fail)
    again = Store.open(store.uri)
    proxy.requests.clear()
    assert again.fetch(["nobody"], missing="skip").doc_ids == ()
    assert proxy.requests == []


# -- addresses


@pytest.mark.fault(
    "An address holds credentials.",
    "It is refused, and the credentials appear in no message.",
)
@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIAKEY:topsecret@bucket/index",
        "s3://AKIAKEY:top/secret+topsecret@bucket/index",
        "s3://topsecret@bucket/index",
        "abfss://container:topsecret@account.dfs.core.windows.net/index",
        "https://user:topsecret@host/index",
        "az://container/index?sig=topsecret",
        "gs://bucket/index#topsecret",
        "s3+ddb://bucket/index?ddbTableName=topsecret",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(address):
    refusal = r"must not (hold credentials|contain '\?' or '#')|cannot be at"
    for opening in (Store.open, Store.exists, Reader, compact, lambda uri: delete(uri, ["a"])):
        with pytest.raises(StoreError, match=refusal) as refused:
            opening(address)
        assert "topsecret" not in str(refused.value)
        assert "KEY" not in str(refused.value)


@pytest.mark.parametrize("opening", [Store.open, Store.exists, Reader])
def test_a_path_of_an_address_is_no_folder(opening, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="two slashes") as refused:
        opening(Path("s3://AKIAKEY:topsecret@bucket/index"))
    assert "topsecret" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(
    "An address holds credentials.",
    "It is refused, and the credentials appear in no message.",
)
def test_what_an_object_store_answers_is_not_repeated(proxy, secrets, monkeypatch):
    """S3 repeats the unknown key and the text that it signed; this server repeats the other secrets too."""

    class Refuses(BaseHTTPRequestHandler):
        def refuse(self):
            key, secret = secrets
            said = (
                f"<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>{key}</AWSAccessKeyId><StringToSign>AWS4\n"
                f"{quote(secret, safe='')}</StringToSign><Message>not {secret}, nor session-of-mine</Message></Error>"
            ).encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_PUT = do_POST = do_HEAD = refuse  # noqa: N815

        def log_message(self, *args):
            """It does not print."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "session-of-mine")
        with pytest.raises(StoreError, match="refuses") as refused:
            Store.open("s3://a-bucket-that-refuses/index")
        server.shutdown()
    assert "SignatureDoesNotMatch" in str(refused.value)
    for secret in (*secrets, quote(secrets[1], safe=""), "session-of-mine"):
        assert secret not in str(refused.value)


def test_an_address_without_a_bucket():
    with pytest.raises(StoreError, match="names no bucket"):
        Store.open("s3:///index")


# -- the search index


def test_the_life_of_a_search_index(uri, meta, payload_of, bucket):
    """It is made, extended and checked; a store without texts gets them; and damage is found."""

    def add(shard: int, **optional) -> None:
        ids = [f"{shard}-{i}" for i in range(5)]
        rows = memory_rows(
            doc_ids=ids,
            tokens_total=[40] * 5,
            tokens_fed=[30] * 5,
            payloads=list(map(payload_of, ids)),
            text_hashes=[text_hash(f"the river {i}") for i in ids],
            errors=[None] * 5,
            **{name: list(map(make, ids)) for name, make in optional.items()},
        )
        commit(store, [write_fragment(uri, shard, rows)])

    def found() -> Counter[str]:
        return Counter(hit.doc_id for hit in Searcher(Store.open(uri)).search("rivers", 1000))

    store = Store.create(uri, meta=meta, assets={"connector": b"weights"})
    for shard in (0, 1):
        add(shard)
    texts = [(f"{shard}-{i}", f"the river {shard}-{i}") for shard in (0, 1) for i in range(5)]
    assert fill_contents(uri, texts).filled == 10
    assert keep_index(uri).action == "made"
    assert found() == expected((0, 1))
    add(2, contents=lambda doc_id: f"the river {doc_id}")
    assert keep_index(uri).action == "merged"
    assert found() == expected((0, 1, 2))
    index = search_index(Store.open(uri).table)
    assert index.is_in_step
    assert not list(damaged_files(uri, index, read_notes(uri)))
    delete(uri, ["1-0"])
    compact(uri, older_than_hours=0, no_build_runs=True)
    assert found() == expected((0, 1, 2)) - Counter(["1-0"])
    assert keep_index(uri).action == "kept"

    index = search_index(Store.open(uri).table)
    name = next(name for name in bucket.objects() if index.segments[0] in name)
    whole = bucket.objects()[name]
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1], b""):
        bucket.put(name, damaged)
        assert [name.endswith(file) for file, _ in damaged_files(uri, index, read_notes(uri))] == [True]
