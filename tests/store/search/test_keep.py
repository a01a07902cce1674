"""The index stays in step with the rows through commits, deletions, compactions and crashes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pisco_index.configs import SearchConfig
from pisco_index.errors import StoreError
from pisco_index.store import (
    CONTENTS,
    Store,
    begin_update,
    commit,
    compact,
    delete,
    keep_index,
    plan_in_force,
    recode,
    remove_orphans,
    search_index,
    write_fragment,
)
from pisco_index.store.search import keep
from pisco_index.store.search.index import INDEX_NAME

from .conftest import details, found, require_found, text_of, word_of


def keep_all(store: Store, **options) -> str:
    """Bring the index in step; check that it is, and return what was done."""
    report = keep_index(store.uri, **options)
    assert search_index(store.refresh().table) == report.index
    assert report.index.is_in_step
    return report.action


def test_an_index_grows_with_its_store(store, add):
    ids = add(store, 0, 300)
    assert keep_all(store) == "made"
    assert keep_all(store) == "kept"
    for shard in range(1, 5):
        ids += add(store, shard, 5)
        assert search_index(store.refresh().table).unindexed_rows == 5
        require_found(store.refresh(), ids)
        assert keep_all(store) == "extended"
    assert len(search_index(store.refresh().table).segments) == 5
    ids += add(store, 5, 5)
    # A fifth delta would be one too many.
    assert keep_all(store) == "merged"
    assert search_index(store.refresh().table).rows == (325,)
    require_found(store.refresh(), ids)
    ids += add(store, 6, 100)
    # More than a tenth of the rows is merged at once.
    assert keep_all(store) == "merged"
    require_found(store.refresh(), ids)


def test_deleted_documents_are_never_found_and_leave_the_statistics(store, add):
    ids = add(store, 0, 100)
    keep_all(store)
    gone = ids[::3]
    delete(store.uri, gone)
    left = [i for i in ids if i not in gone]
    require_found(store.refresh(), left)
    assert found(store.refresh(), word_of(gone[0])) == []
    # Merging would keep the deleted documents in the statistics.
    assert keep_all(store) == "rebuilt"
    assert keep_all(store) == "kept"
    delete(store.uri, left[:2])
    assert keep_all(store) == "kept"
    require_found(store.refresh(), left[2:])


def test_settings_stay_until_others_are_given(store, add):
    ids = add(store, 0)
    german = SearchConfig(language="German", tokenizer="icu", stem=False, stop_words=False)
    assert keep_all(store, settings=german) == "made"
    expected = {
        "language": "German",
        "base_tokenizer": "icu",
        "stem": False,
        "remove_stop_words": False,
        "with_position": False,
        "block_size": 128,
    }
    assert expected.items() <= details(store.refresh()).items()
    ids += add(store, 1, 40)
    assert keep_all(store) == "merged"
    assert search_index(store.refresh().table).settings == german
    assert keep_all(store, settings=SearchConfig()) == "rebuilt"
    assert search_index(store.refresh().table).settings == SearchConfig()
    assert keep_all(store, settings=SearchConfig()) == "kept"
    assert keep_all(store, rebuild=True) == "rebuilt"
    require_found(store.refresh(), ids)


def test_words_of_a_language_without_spaces(store, rows_of):
    texts = ["東京は日本の首都です", "京都は古い都です"]
    commit(store, [write_fragment(store.uri, 0, rows_of(["a", "b"], texts, contents=texts))])
    keep_all(store, settings=SearchConfig(tokenizer="icu"))
    assert found(store.refresh(), "東京") == ["a"]


@pytest.mark.parametrize("language", SearchConfig.model_fields["language"].annotation.__args__)
def test_every_language(store, add, language):
    ids = add(store, 0, 7)
    assert keep_all(store, settings=SearchConfig(language=language)) == "made"
    assert search_index(store.refresh().table).settings.language == language
    assert found(store.refresh(), word_of(ids[3])) == [ids[3]]


def test_an_index_of_another_program_is_made_anew(store, add):
    add(store, 0)
    store.refresh().table.create_scalar_index(CONTENTS, "INVERTED", name=INDEX_NAME, base_tokenizer="whitespace")
    assert search_index(store.refresh().table).settings is None
    assert keep_all(store) == "rebuilt"
    assert search_index(store.refresh().table).settings == SearchConfig()


def test_nothing_to_index(store, plain, add):
    assert (keep_index(store.uri).action, keep_index(store.uri).index) == ("none", None)
    add(plain, 0)
    assert (keep_index(plain.uri).action, keep_index(plain.uri).index) == ("none", None)
    with pytest.raises(StoreError, match="has no search index"):
        keep.merge_index(plain.uri)


def test_progress_is_reported(store, add):
    add(store, 0, 50)
    moments = []
    keep_index(store.uri, progress=lambda *moment: moments.append(moment))
    assert moments[0] == ("made", 0, 50)
    assert moments[-1] == ("made", 50, 50)
    moments.clear()
    keep_index(store.uri, progress=lambda *moment: moments.append(moment))
    assert not moments


class TestVersions:
    @pytest.mark.fault(
        "A store is updated or compacted under a reader.",
        "The reader keeps its version; if that was dropped, an error asks to open the store again.",
    )
    def test_a_reader_of_an_older_version_searches_on(self, store, add, rows_of):
        ids = add(store, 0, 50)
        keep_all(store)
        reader = store.refresh()
        begin_update(store.refresh(), b"plan", np.empty(0, np.uint64))
        plan = plan_in_force(store.refresh().table)
        texts = [f"{text_of(i)} changed" for i in ids[:20]]
        changed = write_fragment(store.uri, 7, rows_of(ids[:20], texts, contents=texts))
        commit(store.refresh(), [changed], plan)
        assert keep_all(store) == "rebuilt"
        remove_orphans(store)
        assert sorted(found(store.refresh(), "changed")) == sorted(ids[:20])
        require_found(store.refresh(), ids)
        # A new process has nothing of the index in memory.
        for open_now in (reader, Store.open(store.uri, reader.version)):
            assert found(open_now, "changed") == []
            require_found(open_now, ids)

    def test_superseded_versions_still_go(self, store, add):
        add(store, 0, 100)
        keep_all(store)
        add(store, 1, 3)
        assert keep_all(store) == "extended"
        remove_orphans(store)
        assert len(store.refresh().table.versions()) == 1
        (Path(store.uri) / "memory.lance" / "_indices" / "0b7e0000-0000-0000-0000-000000000000").mkdir()
        orphan = Path(store.uri) / "memory.lance" / "_indices" / "0b7e0000-0000-0000-0000-000000000000" / "part_0.lance"
        orphan.write_bytes(bytes(1000))
        assert remove_orphans(store) == 1000
        assert not orphan.exists()

    def test_a_compaction_keeps_the_answers(self, store, add):
        ids = add(store, 0, 100) + add(store, 1, 10)
        keep_all(store)
        ids += add(store, 2, 5)
        keep_all(store)
        assert len(search_index(store.refresh().table).segments) == 2
        delete(store.uri, ids[3:50:9])
        left = [i for i in ids if i not in ids[3:50:9]]
        reader, before = store.refresh(), found(store.refresh(), "river castle")
        compaction = compact(store.uri)
        assert compaction.fragments == 1
        require_found(store.refresh(), left)
        assert sorted(found(store.refresh(), "river castle")) == sorted(before)
        assert found(reader, "river castle") == before
        index = search_index(store.refresh().table)
        assert (index.rows, index.is_in_step) == ((len(left),), True)
        compact(store.uri, older_than_hours=0)
        assert len(list((Path(store.uri) / "memory.lance" / "_indices").iterdir())) == 1
        assert [n for n in store.asset_names() if n.startswith("index/")] == [f"index/{index.segments[0]}"]
        with pytest.raises(StoreError, match="open it again"), keep.lance_errors("cannot search"):
            found(Store(reader.uri, reader.meta, reader.table), "orchard")

    def test_a_recoded_store_has_an_index_of_the_same_settings(self, store, add):
        ids = add(store, 0) + add(store, 1)
        keep_all(store, settings=SearchConfig(language="French"))
        recoded = recode(store.uri, "int8")
        assert search_index(Store.open(recoded.uri).table).settings.language == "French"
        require_found(Store.open(recoded.uri), ids)


KILLED = """
import os, signal, sys, threading, time
from pisco_index.store import keep_index, search_index, Store
from pisco_index.store.search import keep

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

uri, moment = sys.argv[1:]
index = lambda **options: keep_index(uri, **options)
if moment == "before checksums":
    keep.record_checksums = die
elif moment == "at the first document":
    index = lambda **options: keep_index(uri, progress=lambda action, done, total: done and die(), **options)
else:
    event = threading.Event()
    threading.Thread(target=lambda: (event.wait(), time.sleep(float(moment)), die()), daemon=True).start()
    index = lambda **options: (event.set(), keep_index(uri, **options))
while True:
    index(rebuild=moment == "at the first document")
    index(rebuild=True)
"""


@pytest.mark.fault(
    "A process is killed while it makes, extends or merges the search index.",
    "The former index stays in force; the store searches, and the next build or `index` finishes the work.",
)
@pytest.mark.parametrize("moment", ["at the first document", "before checksums", "0.002", "0.01", "0.03"])
def test_a_kill_leaves_a_store_that_searches(store, add, moment):
    ids = add(store, 0, 400)
    keep_all(store)
    ids += add(store, 1, 100)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", KILLED, store.uri, moment], check=False, env=environment)
    assert ended.returncode == -signal.SIGKILL
    require_found(store.refresh(), ids)
    keep_all(store)
    remove_orphans(store)
    require_found(store.refresh(), ids)
    index = search_index(store.refresh().table)
    assert {f"index/{segment}" for segment in index.segments} <= set(store.asset_names())
    assert not keep.is_damaged(store.uri, index)
