"""A store without texts gets them, row by row, and everything else about it stays as it is."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pisco_index.errors import StoreError
from pisco_index.store import (
    CONTENTS,
    Store,
    begin_update,
    commit,
    compact,
    delete,
    done_shards,
    fill_contents,
    has_contents,
    keep_index,
    plan_in_force,
    recode,
    search_index,
    write_fragment,
)
from pisco_index.store.search import fill

from .conftest import found, require_found, text_of


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch):
    """Make several groups of fragments of a small store."""
    monkeypatch.setattr(fill, "_GROUP_ROWS", 50)
    monkeypatch.setattr(fill, "_TEXTS_AT_ONCE", 16)


@pytest.fixture
def ids(plain, add):
    return [doc_id for shard in range(6) for doc_id in add(plain, shard)]


def texts_of(doc_ids):
    """The texts of documents, in another order than the store's, and one of somebody else."""
    shuffled = random.Random(1).sample(doc_ids, len(doc_ids))
    return [(doc_id, text_of(doc_id)) for doc_id in [*shuffled, "not-in-the-store"]]


def contents_of(store) -> dict[str, str | None]:
    rows = store.refresh().table.to_table(columns=["doc_id", CONTENTS]).to_pylist()
    return {row["doc_id"]: row[CONTENTS] for row in rows}


def test_every_document_gets_its_text(plain, ids):
    before = plain.refresh().fetch(ids).payloads
    progress = []
    filled = fill_contents(plain.uri, texts_of(ids), lambda *moment: progress.append(moment))
    assert (filled.documents, filled.filled, filled.missing, filled.changed) == (180, 180, 0, 0)
    assert progress[-1] == (180, 180)
    assert contents_of(plain) == {doc_id: text_of(doc_id) for doc_id in ids}
    after = plain.refresh()
    assert after.fetch(ids).payloads == before
    assert not [path for path in Path(plain.uri).iterdir() if "contents" in path.name]
    keep_index(plain.uri)
    require_found(plain.refresh(), ids)


def test_payloads_are_still_read_directly(plain, ids):
    fill_contents(plain.uri, texts_of(ids))
    reader = plain.refresh()
    reader.fetch(ids)
    assert (reader._rows().direct, reader._rows().by_lance) == (180, 0)


def test_other_texts_and_missing_ones_are_reported(plain, ids):
    texts = dict(texts_of(ids))
    del texts[ids[0]], texts[ids[50]]
    texts[ids[7]] += " Or is it?"
    filled = fill_contents(plain.uri, texts.items())
    assert (filled.filled, filled.missing, filled.changed) == (177, 2, 1)
    assert (filled.missing_ids, filled.changed_ids) == ([ids[0], ids[50]], [ids[7]])
    unsearchable = {ids[0], ids[7], ids[50]}
    assert {doc_id for doc_id, text in contents_of(plain).items() if text is None} == unsearchable
    keep_index(plain.uri)
    require_found(plain.refresh(), [doc_id for doc_id in ids if doc_id not in unsearchable])

    # The corpus comes again with the right texts; those that are there are not asked for.
    filled = fill_contents(plain.uri, texts_of(ids))
    assert (filled.documents, filled.filled) == (3, 3)
    assert search_index(plain.refresh().table).unindexed_rows > 0
    keep_index(plain.uri)
    require_found(plain.refresh(), ids)
    texts = iter(texts_of(ids))
    assert fill_contents(plain.uri, texts).documents == 0
    assert len(list(texts)) == 181, "none was read"


def test_a_repeated_document_counts_once(plain, ids):
    texts = [(ids[3], "something else"), *texts_of(ids), *texts_of(ids[:20]), (ids[3], "and again")]
    assert fill_contents(plain.uri, texts).filled == 180
    assert contents_of(plain)[ids[3]] == text_of(ids[3])


def test_another_corpus_changes_nothing(plain, ids):
    version = plain.refresh().version
    filled = fill_contents(plain.uri, [("x", "y")])
    assert (filled.filled, filled.missing, len(filled.missing_ids)) == (0, 180, 180)
    assert plain.refresh().version == version
    assert not has_contents(plain.refresh().table)


def test_an_empty_store_gets_the_column(plain, add):
    fill_contents(plain.uri, [])
    ids = add(plain, 0)
    assert contents_of(plain) == {doc_id: text_of(doc_id) for doc_id in ids}


def test_the_life_after_it(plain, ids, add, rows_of):
    """Deletions before it; new shards, an update, a recoding and a compaction after it."""
    gone = [*ids[:40], ids[100]]
    delete(plain.uri, gone)
    left = [doc_id for doc_id in ids if doc_id not in gone]
    assert fill_contents(plain.uri, texts_of(ids)).filled == len(left)
    keep_index(plain.uri)
    require_found(plain.refresh(), left)
    left += add(plain, 6)
    keep_index(plain.uri)
    require_found(plain.refresh(), left)

    begin_update(plain.refresh(), b"plan", np.empty(0, np.uint64))
    plan = plan_in_force(plain.refresh().table)
    texts = [f"{text_of(doc_id)} changed" for doc_id in left[:3]]
    changed = write_fragment(plain.uri, 7, rows_of(left[:3], texts, contents=texts))
    commit(plain.refresh(), [changed], plan)
    keep_index(plain.uri)
    assert sorted(found(plain.refresh(), "changed")) == sorted(left[:3])
    assert done_shards(plain.refresh()) == {0, 1, 2, 3, 4, 5, 6, 7}

    recoded = Store.open(recode(plain.uri, "int8").uri)
    payloads = plain.refresh().fetch(left).payloads
    compact(plain.uri, older_than_hours=0)
    assert len(plain.refresh().table.get_fragments()) == 1
    for store in (plain.refresh(), recoded):
        require_found(store, left)
        assert sorted(store.ids()) == sorted(left)
    assert plain.refresh().fetch(left).payloads == payloads


def test_a_store_that_changes_meanwhile(plain, ids, add):
    def texts():
        yield from texts_of(ids)
        add(plain, 9)

    with pytest.raises(StoreError, match="was changed while its documents were read"):
        fill_contents(plain.uri, texts())
    assert not has_contents(plain.refresh().table)


KILLED = """
import os, signal, sys
from pisco_index.store import fill_contents
from pisco_index.store.search import fill

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

uri, moment = sys.argv[1:]
fill._GROUP_ROWS, fill._TEXTS_AT_ONCE = 50, 16
setattr(fill, moment, die)
fill_contents(uri, [(f"{shard}-{i}", "text") for shard in range(6) for i in range(30)])
"""


@pytest.mark.fault(
    "A process is killed while it adds texts to a store.",
    "The store stays as it was, and the same command starts over.",
)
@pytest.mark.parametrize("moment", ["_read_spilled", "_commit"])
def test_a_kill_leaves_the_store_as_it_was(plain, rows_of, moment):
    ids = [f"{shard}-{i}" for shard in range(6) for i in range(30)]
    for shard in range(6):
        own = ids[30 * shard : 30 * shard + 30]
        commit(plain, [write_fragment(plain.uri, shard, rows_of(own, ["text"] * 30))])
    version = plain.refresh().version
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", KILLED, plain.uri, moment], check=False, env=environment)
    assert ended.returncode == -signal.SIGKILL
    assert (plain.refresh().version, has_contents(plain.refresh().table)) == (version, False)
    assert len(list(Path(plain.uri).glob(".contents-*"))) == (moment == "_read_spilled")
    assert fill_contents(plain.uri, [(doc_id, "text") for doc_id in ids]).filled == 180
    assert not list(Path(plain.uri).glob(".contents-*"))
    keep_index(plain.uri)
    assert sorted(found(plain.refresh(), "text")) == sorted(ids)
