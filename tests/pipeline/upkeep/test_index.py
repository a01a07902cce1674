"""A build makes its store searchable, ``index`` does so for any store, and ``verify`` and ``repair`` check it."""

import json
import shutil

import lance
import pytest

from pisco_index import BuildConfig, build, compact, delete, recode, repair, verify
from pisco_index.configs import SearchConfig
from pisco_index.errors import BuildIncompleteError, ConfigError, CorpusError, StoreError, StoreLockedError
from pisco_index.pipeline.upkeep.index import index
from pisco_index.pipeline.watch.progress import BuildProgress
from pisco_index.pipeline.watch.totals import build_status
from pisco_index.pipeline.worker import ShardWorker
from pisco_index.store import Store, build_lock, has_contents, search_index
from pisco_index.store.search.index import INDEX_FOLDER

from ..conftest import write_corpus

DOCUMENTS = 24


@pytest.fixture(scope="module")
def config():
    def config(**store) -> BuildConfig:
        sections = {
            "run": {"shard_documents": 8, "commit_shards": 2},
            "compression": {"dtype": "float32", "max_length": 64},
            "store": {"codec": "fp32", **store},
        }
        return BuildConfig.parse(sections, "test")

    return config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    write_corpus(path, DOCUMENTS)
    return path


@pytest.fixture(scope="module")
def built(corpus, checkpoint, config, tmp_path_factory):
    """Stores to copy: a searchable one, one without index, and one without index that keeps its texts."""
    folder = tmp_path_factory.mktemp("built")
    build([corpus], checkpoint, folder / "searchable", config())
    build([corpus], checkpoint, folder / "plain", config(index=False))
    build([corpus], checkpoint, folder / "texts", config(index=False, keep=["title", "text"]))
    return folder


@pytest.fixture
def copy(built, tmp_path):
    def copy(name):
        return shutil.copytree(built / name, tmp_path / name)

    return copy


def found(uri, question) -> list[str]:
    table = Store.open(uri).table
    hits = table.scanner(columns=["doc_id", "_score"], full_text_query=question, prefilter=True, limit=100)
    return sorted(hits.to_table().column("doc_id").to_pylist())


def ids(*numbers: int) -> list[str]:
    return sorted(f"doc-{number}" for number in numbers)


def is_indexed(uri) -> bool:
    table = Store.open(uri).table
    found = search_index(table)
    return has_contents(table) and found is not None and found.is_in_step


def index_files(uri):
    return sorted((uri / "memory.lance" / INDEX_FOLDER).glob("*/*"))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class TestBuild:
    def test_it_stores_and_indexes_what_is_compressed(self, built):
        uri = built / "searchable"
        assert is_indexed(uri)
        rows = Store.open(uri).table.to_table(columns=["doc_id", "contents"]).to_pylist()
        contents = {row["doc_id"]: row["contents"] for row in rows}
        assert contents[ids(2)[0]] == f"Title 2\nDocument 2 is about {'the history of the city and its river ' * 2}"
        assert found(uri, "17") == ids(17)
        assert found(uri, "rivers") == ids(*(n for n in range(DOCUMENTS) if n % 7))
        assert verify(uri).is_sound
        assert not verify(uri).notes
        # One version holds rows and index; the ones before it are no longer needed.
        assert len(Store.open(uri).table.versions()) == 1
        search = build_status(uri).to_dict()["search"]
        assert (search["rows_indexed"], search["rows_unindexed"]) == (DOCUMENTS, 0)

    def test_it_leaves_the_index_out(self, built):
        assert not has_contents(Store.open(built / "plain").table)
        assert search_index(Store.open(built / "plain").table) is None
        assert build_status(built / "plain").store.search is None
        assert verify(built / "plain").is_sound

    def test_a_store_of_an_earlier_version_is_built_on_as_it_is(self, copy, corpus, checkpoint, config):
        uri = copy("plain")
        write_corpus(corpus.with_name("more.jsonl"), DOCUMENTS + 4)
        build([corpus.with_name("more.jsonl")], checkpoint, uri, config())
        assert Store.open(uri).count == DOCUMENTS + 4
        assert not has_contents(Store.open(uri).table)
        assert verify(uri).is_sound

    def test_an_update_brings_it_in_step(self, copy, corpus, checkpoint, config, tmp_path):
        uri = copy("searchable")
        index(uri, settings={"language": "German"})
        lines = [line.replace("Document 3 ", "Dokument drei ") for line in corpus.read_text().splitlines()[:-2]]
        (tmp_path / "changed.jsonl").write_text("\n".join(lines))
        moments = []

        class Listener(BuildProgress):
            def indexing(self, action, done, total):
                moments.append((action, done, total))

        build([tmp_path / "changed.jsonl"], checkpoint, uri, config(), prune=True, progress=Listener())
        # An eighth of the documents is gone from the index.
        assert moments[0] == ("rebuilt", 0, DOCUMENTS - 2)
        assert is_indexed(uri)
        # The settings are those of the index, not those of the build.
        assert search_index(Store.open(uri).table).settings.language == "German"
        assert found(uri, "drei") == ids(3)
        assert found(uri, "Document") == ids(*(n for n in range(DOCUMENTS - 2) if n != 3))
        assert verify(uri).is_sound

    def test_a_build_mends_what_a_killed_one_left(self, copy, corpus, checkpoint, config):
        uri = copy("searchable")
        lance.dataset(f"{uri}/memory.lance").drop_index("contents")
        assert any("has no search index" in note for note in verify(uri).notes)
        build([corpus], checkpoint, uri, config(index=False))
        assert not is_indexed(uri)
        build([corpus], checkpoint, uri, config())
        assert is_indexed(uri)

    def test_an_index_of_another_program_gets_the_settings_of_the_build(self, copy, corpus, checkpoint, config):
        uri = copy("searchable")
        table = lance.dataset(f"{uri}/memory.lance")
        table.create_scalar_index("contents", "INVERTED", name="contents", base_tokenizer="whitespace")
        compact(uri)
        recoded = recode(uri, "int8").uri
        assert search_index(Store.open(uri).table).settings is None
        assert search_index(Store.open(recoded).table) is None
        german = config().model_copy(update={"search": SearchConfig(language="German")})
        build([corpus], checkpoint, uri, german)
        assert search_index(Store.open(uri).table).settings == german.search

    def test_failed_documents_are_searchable_too(self, corpus, checkpoint, config, tmp_path, monkeypatch):
        run = ShardWorker.run
        monkeypatch.setattr(ShardWorker, "run", lambda self, shard: run(self, shard, {3: "no luck"}))
        with pytest.raises(BuildIncompleteError, match="doc-11"):
            build([corpus], checkpoint, tmp_path / "store", config())
        assert is_indexed(tmp_path / "store")
        assert found(tmp_path / "store", "11") == ids(11)


class TestIndex:
    def test_from_the_corpus(self, copy, corpus):
        uri = copy("plain")
        before = Store.open(uri).fetch(ids(*range(DOCUMENTS))).payloads
        indexed = index(uri, [corpus])
        assert (indexed.report.action, indexed.filled.filled) == ("made", DOCUMENTS)
        assert found(uri, "17") == ids(17)
        assert Store.open(uri).fetch(ids(*range(DOCUMENTS))).payloads == before
        assert verify(uri).is_sound
        assert not verify(uri).notes
        again = index(uri)
        assert (again.report.action, again.filled) == ("kept", None)
        json.dumps(indexed.to_dict())

    def test_from_the_texts_that_a_store_keeps(self, copy):
        uri = copy("texts")
        assert index(uri).filled.filled == DOCUMENTS
        assert found(uri, "17") == ids(17)
        assert verify(uri).is_sound

    def test_from_a_corpus_that_has_changed(self, copy, corpus, checkpoint, config, tmp_path):
        uri = copy("plain")
        lines = [line.replace("Document 3 ", "Dokument 3 ") for line in corpus.read_text().splitlines()[:-2]]
        (tmp_path / "changed.jsonl").write_text("\n".join(lines))
        filled = index(uri, [tmp_path / "changed.jsonl"]).filled
        assert (filled.filled, filled.changed_ids, filled.missing_ids) == (21, ["doc-3"], ["doc-22", "doc-23"])
        assert found(uri, "3") == []
        assert any("3 documents have no contents" in note for note in verify(uri).notes)
        # An update writes the changed document, whose text is then there.
        build([tmp_path / "changed.jsonl"], checkpoint, uri, config())
        assert found(uri, "3") == ids(3)
        index(uri, [corpus])
        assert found(uri, "23") == ids(23)
        assert verify(uri).is_sound
        assert not any("no contents" in note for note in verify(uri).notes)

    def test_the_corpus_is_read_as_the_store_was_built(self, checkpoint, config, tmp_path):
        (tmp_path / "corpus.jsonl").write_text(json.dumps({"key": "k", "body": "about the comet", "id": "no"}))
        settings = config(index=False)
        fields = settings.corpus.model_copy(update={"id_field": "key", "text_field": "body"})
        build(
            [tmp_path / "corpus.jsonl"], checkpoint, tmp_path / "store", settings.model_copy(update={"corpus": fields})
        )
        version = Store.open(tmp_path / "store").version
        for other, found_there in (({"id_field": "id"}, "is in CORPUS"), ({"text_field": "id"}, "1 have another text")):
            with pytest.raises(CorpusError, match=f"none of the 1 documents .*{found_there}.*--id-field"):
                index(tmp_path / "store", [tmp_path / "corpus.jsonl"], corpus_settings=other)
        assert Store.open(tmp_path / "store").version == version
        assert index(tmp_path / "store", [tmp_path / "corpus.jsonl"]).filled.filled == 1
        assert found(tmp_path / "store", "comets") == ["k"]

    def test_settings(self, copy):
        uri = copy("searchable")
        assert index(uri, settings={"stem": False}).report.action == "rebuilt"
        assert found(uri, "rivers") == []
        assert index(uri, settings={"language": "French"}).report.index.settings.model_dump() == {
            "language": "French",
            "tokenizer": "simple",
            "stem": False,
            "stop_words": True,
        }
        assert index(uri).report.action == "kept"
        assert index(uri, rebuild=True).report.action == "rebuilt"
        with pytest.raises(ConfigError, match="language"):
            index(uri, settings={"language": "Klingon"})

    def test_what_cannot_be(self, copy, tmp_path):
        with pytest.raises(StoreError, match=r"does not hold the texts.*Name the corpus"):
            index(copy("plain"))
        with pytest.raises(StoreError, match="there is no store"):
            index(tmp_path / "nowhere")
        assert not (tmp_path / "nowhere").exists()
        uri = copy("searchable")
        with build_lock(uri), pytest.raises(StoreLockedError):
            index(uri)


class TestDamage:
    @pytest.mark.fault(
        "A file of the search index is damaged or lost.",
        "`verify` names it, and `repair` makes the index anew; no merge and no compaction copies the damage.",
    )
    @pytest.mark.parametrize("damage", [flip, lambda path: path.unlink()])
    def test_it_is_found_and_repaired(self, copy, damage):
        uri = copy("searchable")
        index(uri, settings={"language": "German"})
        path = max(index_files(uri), key=lambda path: (path.stat().st_mtime_ns, path.name.endswith("docs.lance")))
        damage(path)
        (problem,) = verify(uri).problems
        assert path.name in problem.file
        assert "repair" in problem.remedy
        assert repair(uri, dry_run=True).is_index_damaged
        report = repair(uri)
        assert (report.is_index_damaged, report.rows, report.files) == (True, 0, ())
        assert verify(uri).is_sound
        assert search_index(Store.open(uri).table).settings.language == "German"
        assert found(uri, "17") == ids(17)

    def test_changed_contents_are_found_and_refilled(self, copy, corpus, checkpoint, config):
        uri = copy("searchable")
        lance.dataset(f"{uri}/memory.lance").update({"contents": "'something else'"}, where="doc_id = 'doc-9'")
        (problem,) = verify(uri).problems
        assert (problem.doc_id, problem.what) == ("doc-9", "its contents and text_hash do not fit together.")
        assert repair(uri).rows == 1
        build([corpus], checkpoint, uri, config())
        assert verify(uri).is_sound
        assert found(uri, "9") == ids(9)

    def test_deleted_documents_are_not_found(self, copy):
        uri = copy("searchable")
        delete(uri, ["doc-3"])
        assert found(uri, "3") == []
        assert verify(uri).is_sound

    def test_notes_about_what_is_not_in_step(self, copy):
        uri = copy("searchable")
        table = lance.dataset(f"{uri}/memory.lance")
        moved = table.to_table(filter="doc_id = 'doc-3'")
        table.delete("doc_id = 'doc-3'")
        lance.write_dataset(moved, table.uri, mode="append")
        assert any("lacks 1 document" in note for note in verify(uri).notes)
        assets = lance.dataset(f"{uri}/assets.lance")
        assets.delete("starts_with(name, 'index/')")
        report = verify(uri)
        assert any("segment" in each for each in (*report.notes, *report.unchecked)), report
        index(uri)
        assert not [note for note in verify(uri).notes if "index" in note]
