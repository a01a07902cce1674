"""Readers in threads and in processes while a build commits and a compaction runs."""

import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pisco_index.store import Store, codec_by_name, commit, compact, encode, memory_rows, text_hash, write_fragment

DIM, ROUNDS, DOCUMENTS = 64, 12, 40

IN_A_PROCESS = f"""
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("readers", {__file__!r})
readers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readers)
readers.read(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
"""


def memory_of(doc_id):
    seed = sum(doc_id.encode()) % 97
    return np.full((4 + seed % 9, DIM), seed, dtype=np.float32) + np.arange(DIM, dtype=np.float32) % 2


def read(uri, folder, name):
    """Open the store and fetch from it, again and again, until there is a file ``stop``."""
    draw = random.Random(name)
    while not (folder / "stop").exists():
        store = Store.open(uri)
        ids = list(store.ids())
        for _ in range(5):
            require_right(store, draw.choices(ids, k=10))
        (folder / f"{name} reads").touch()


def require_right(store, ids):
    values, lengths = store.fetch(ids).memory()
    expected = [memory_of(doc_id) for doc_id in ids]
    assert lengths.tolist() == [len(each) for each in expected]
    assert np.array_equal(values, np.concatenate(expected))


def rows(shard):
    ids = [f"{shard}-{n}" for n in range(DOCUMENTS)]
    codec = codec_by_name("bf16")
    return memory_rows(
        doc_ids=ids,
        tokens_total=[40] * len(ids),
        tokens_fed=[40] * len(ids),
        payloads=[encode(i, memory_of(i), codec) for i in ids],
        text_hashes=[text_hash(i) for i in ids],
        errors=[None] * len(ids),
    )


@pytest.fixture
def uri(tmp_path, meta):
    made = Store.create(tmp_path / "index", meta=meta.model_copy(update={"dim": DIM}), assets={})
    commit(made, [write_fragment(made.uri, 0, rows(0))])
    return made.uri


def test_readers_in_threads_and_processes_while_a_build_commits_and_a_compaction_runs(uri, tmp_path):
    first = Store.open(uri)
    commands = [[sys.executable, "-c", IN_A_PROCESS, uri, str(tmp_path), f"process {n}"] for n in range(4)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        with ThreadPoolExecutor(4) as threads:
            try:
                reading = [threads.submit(read, uri, tmp_path, f"thread {n}") for n in range(4)]
                wait_for(lambda: len(list(tmp_path.glob("* reads"))) == 8)
                for shard in range(1, ROUNDS + 1):
                    commit(first, [write_fragment(uri, shard, rows(shard))])
                    if shard % 3 == 0:
                        compact(uri)
                for path in tmp_path.glob("* reads"):
                    path.unlink()
                # Each has opened what is there now.
                wait_for(lambda: len(list(tmp_path.glob("* reads"))) == 8)
            finally:
                (tmp_path / "stop").touch()
            for each in reading:
                each.result()
        for process in processes:
            errors = process.communicate(timeout=60)[1]
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    assert Store.open(uri).count == (ROUNDS + 1) * DOCUMENTS
    require_right(first, ["0-3", "0-39"])


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "a reader ended, or reads nothing"
        time.sleep(0.02)


def test_threads_that_share_a_store_read_what_each_asked_for(uri):
    store, ids = Store.open(uri), [f"0-{n}" for n in range(DOCUMENTS)]
    begin = threading.Barrier(8)

    def fetch(place):
        begin.wait()
        for _ in range(30):
            require_right(store, ids[place::8] * 2)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(fetch, range(8)))
