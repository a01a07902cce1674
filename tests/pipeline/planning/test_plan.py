"""The plan: deterministic shards over a validated corpus, resumed only over the same one."""

import bz2
import gzip
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pisco_index import CorpusConfig, CorpusError, PlanMismatchError
from pisco_index.corpus import open_corpus
from pisco_index.pipeline.planning.plan import CorpusWatch, Plan, open_sources, plan_corpus, read_shard, resume_plan


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def documents(count, start=0, text="some text"):
    return [{"id": f"d{n}", "text": text} for n in range(start, start + count)]


def plan(*paths, shard_documents=4, config=None):
    config = config or CorpusConfig()
    return plan_corpus(open_corpus(paths, config), shard_documents=shard_documents)


def ids_by_shard(a_plan):
    sources = open_sources(a_plan.sources)
    return [[document.doc_id for document in read_shard(shard, sources)] for shard in a_plan.shards]


def test_shards_hold_every_document_once_in_order(tmp_path):
    found = plan(write(tmp_path / "a.jsonl", documents(10)))
    assert ids_by_shard(found) == [["d0", "d1", "d2", "d3"], ["d4", "d5", "d6", "d7"], ["d8", "d9"]]
    assert [shard.number for shard in found.shards] == [0, 1, 2]
    assert [shard.records for shard in found.shards] == [4, 4, 2]
    assert found.characters == 10 * len("some text")


def test_a_shard_spans_small_files(tmp_path):
    for n in range(5):
        write(tmp_path / "many" / f"{n}.jsonl", documents(1, start=n))
    found = plan(tmp_path / "many")
    assert ids_by_shard(found) == [["d0", "d1", "d2", "d3"], ["d4"]]


def test_long_records_make_shards_of_fewer(tmp_path):
    found = plan(write(tmp_path / "a.jsonl", documents(6, text="x" * 2000)))
    assert [shard.records for shard in found.shards] == [2, 2, 2]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(1, 9))
def test_any_corpus_is_covered_exactly_once(tmp_path_factory, sizes, shard_documents):
    folder = tmp_path_factory.mktemp("corpus")
    start = 0
    for number, size in enumerate(sizes):
        write(folder / f"{number}.jsonl", documents(size, start=start))
        start += size
    if not start:
        with pytest.raises(CorpusError, match="holds no document"):
            plan(folder, shard_documents=shard_documents)
        return
    found = plan(folder, shard_documents=shard_documents)
    assert [doc for shard in ids_by_shard(found) for doc in shard] == [f"d{n}" for n in range(start)]
    assert all(shard.records for shard in found.shards)


def test_planning_twice_gives_the_same_plan(tmp_path):
    path = write(tmp_path / "a.jsonl", documents(10))
    assert plan(path) == plan(path)
    assert plan(path) != plan(path, shard_documents=3)


def test_a_plan_survives_json(tmp_path):
    path = tmp_path / "a.jsonl.bz2"
    path.write_bytes(bz2.compress(write(tmp_path / "raw.jsonl", documents(9)).read_bytes()))
    found = plan(path)
    again = Plan.from_json(found.to_json())
    assert again == found
    assert ids_by_shard(again) == ids_by_shard(found)


def test_a_duplicate_id_names_both_places(tmp_path):
    first = write(tmp_path / "in" / "a.jsonl", documents(3))
    second = write(tmp_path / "in" / "b.jsonl", [*documents(2, start=7), {"id": "d1", "text": ""}])
    with pytest.raises(CorpusError, match=r"'d1' occurs twice: .*a\.jsonl, record 2 and .*b\.jsonl, record 3"):
        plan(first, second)


def test_an_empty_corpus_says_what_was_looked_at(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n")
    with pytest.raises(CorpusError, match="holds no document"):
        plan(path)


def test_planning_reports_its_progress(tmp_path):
    counts = []
    corpus = open_corpus([write(tmp_path / "a.jsonl", documents(3))], CorpusConfig())
    plan_corpus(corpus, shard_documents=4, on_records=counts.append)
    assert counts == [3]


class TestResume:
    def resume(self, found, *paths, config=None):
        config = config or CorpusConfig()
        return resume_plan(found, open_corpus(paths, config))

    def test_the_same_corpus_elsewhere(self, tmp_path):
        path = write(tmp_path / "a" / "corpus.jsonl", documents(9))
        found = plan(path)
        moved = tmp_path / "b" / "corpus.jsonl"
        moved.parent.mkdir()
        path.rename(moved)
        resumed = self.resume(found, moved)
        assert resumed.shards == found.shards
        assert len(ids_by_shard(resumed)) == 3

    def test_other_content_of_the_same_size(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", documents(9))
        found = plan(path)
        path.write_text(path.read_text().replace("some", "same"))
        with pytest.raises(PlanMismatchError, match=r"corpus\.jsonl has other content"):
            self.resume(found, path)

    def test_another_size(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", documents(9))
        found = plan(path)
        size = path.stat().st_size
        write(path, documents(10))
        with pytest.raises(PlanMismatchError, match=rf"had {size} bytes and has {path.stat().st_size}"):
            self.resume(found, path)

    def test_files_that_came_and_went(self, tmp_path):
        folder = tmp_path / "in"
        write(folder / "a.jsonl", documents(2))
        write(folder / "b.jsonl", documents(2, start=2))
        found = plan(folder)
        (folder / "b.jsonl").rename(folder / "c.jsonl")
        with pytest.raises(PlanMismatchError, match=r"b\.jsonl is missing; in/c\.jsonl is new"):
            self.resume(found, folder)

    def test_files_in_another_order(self, tmp_path):
        paths = [write(tmp_path / f"{n}.jsonl", documents(2, start=n * 2)) for n in range(2)]
        found = plan(*paths)
        with pytest.raises(PlanMismatchError, match="another order"):
            self.resume(found, *reversed(paths))

    def test_other_reading_options(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", documents(2))
        with pytest.raises(
            PlanMismatchError, match=r"corpus\.jsonl was read with passage_words None and is to be read with 50"
        ):
            self.resume(plan(path), path, config=CorpusConfig(passage_words=50))


def test_naming_what_was_recognised_is_no_change(tmp_path):
    path = write(tmp_path / "corpus.jsonl", documents(2))
    named = CorpusConfig(format="jsonl", id_field="id", text_field="text")
    assert resume_plan(plan(path), open_corpus([path], named)).shards == plan(path).shards


class TestWatch:
    def watch(self, path):
        return CorpusWatch(open_corpus([path], CorpusConfig()).sources)

    def test_a_file_that_is_written_to(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", documents(3))
        found, watch = plan(path), self.watch(path)
        watch.require_unchanged(found.files)
        path.write_text(path.read_text().replace("some", "SOME"))
        with pytest.raises(CorpusError, match=r"corpus\.jsonl: changed while the build was reading it"):
            watch.require_unchanged(found.files)

    def test_a_file_that_is_only_touched(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", documents(3))
        found, watch = plan(path), self.watch(path)
        path.touch()
        watch.require_unchanged(found.files)

    def test_a_file_that_is_gone(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", documents(3))
        watch = self.watch(path)
        path.unlink()
        with pytest.raises(CorpusError, match="cannot be read"):
            watch.require_unchanged()


def test_compressed_copies_are_planned_alike(tmp_path):
    raw = write(tmp_path / "raw.jsonl", documents(10))
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(raw.read_bytes()))
    assert ids_by_shard(plan(raw)) == ids_by_shard(plan(packed))


def test_what_is_dropped_is_counted(tmp_path):
    path = tmp_path / "dump.xml"
    page = (
        "<page><title>{0}</title><ns>{1}</ns><id>{2}</id>{3}"
        "<revision><id>1</id><text>{0} is prose.</text></revision></page>"
    )
    pages = [
        page.format("A", 0, 1, ""),
        page.format("B", 0, 2, '<redirect title="A"/>'),
        page.format("Talk:A", 1, 3, ""),
    ]
    path.write_text(
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" xml:lang="en"><siteinfo><namespaces>'
        '<namespace key="0"/></namespaces></siteinfo>' + "".join(pages) + "</mediawiki>"
    )
    found = plan(path)
    assert Counter(found.dropped) == {"redirect": 1, "other namespace": 1}
    assert ids_by_shard(found) == [["1#0"]]
