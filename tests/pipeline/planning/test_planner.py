"""Planning: deterministic shards that cover a validated corpus exactly once."""

import gzip
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pisco_index.configs import CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.errors import CorpusError
from pisco_index.pipeline.planning.planner import plan_corpus
from pisco_index.pipeline.planning.reading import Shared, open_sources, read_shard

from .conftest import documents, ids_by_shard, plan, write


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


def test_documents_of_a_record_that_is_larger_than_a_shard_are_shared(tmp_path):
    long, config = " ".join(f"w{n:02}" for n in range(1500)), CorpusConfig(passage_words=125, on_error="skip")
    records = [
        *documents(1),
        {"id": "a", "text": long},
        {"text": "no id"},
        *documents(1, start=1),
        {"id": "b", "text": ""},
    ]
    path = write(tmp_path / "a.jsonl", records)
    found = plan(path, config=config)
    parts = [[f"a#{n}" for n in range(begin, begin + 6)] for begin in (0, 6)]
    assert ids_by_shard(found) == [["d0#0"], *parts, ["d1#0", "b#0"]]
    assert ([shard.records for shard in found.shards], found.records) == ([1, 1, 1, 2], 4)
    assert found.characters == sum(len(record["text"]) for record in records if "id" in record)
    rejected = []
    for shard in found.shards:
        list(read_shard(shard, open_sources(found.sources), lambda each, number=shard.number: rejected.append(number)))
    assert rejected == [3]
    # A process reads the record once.
    shared, sources, kept = Shared(), open_sources(found.sources), []
    for shard in found.shards[1:3]:
        kept += read_shard(shard, sources, shared=shared)
        sources = () if shard.share else sources
    assert [each.doc_id for each in kept] == [*parts[0], *parts[1]]
    # Few documents are not shared among more shards, and one cannot be.
    for words in (600, None):
        assert all(
            each.share is None for each in plan(path, config=CorpusConfig(passage_words=words, on_error="skip")).shards
        )


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


@pytest.mark.fault(
    "An id occurs twice.",
    "Planning is refused, naming both places.",
)
def test_a_duplicate_id_names_both_places(tmp_path):
    first = write(tmp_path / "in" / "a.jsonl", documents(3))
    second = write(tmp_path / "in" / "b.jsonl", [*documents(2, start=7), {"id": "d1", "text": ""}])
    with pytest.raises(CorpusError, match=r"'d1' occurs twice: .*a\.jsonl, record 2 and .*b\.jsonl, record 3"):
        plan(first, second)


@pytest.mark.parametrize("order", [(0, 2, 1), (0, 1, 2)])
def test_pages_of_two_wikis_with_one_id_are_no_versions(tmp_path, order):
    pages = [(1, "Sea"), (1, "Rock"), (2, "Wind")]
    page = "<page><title>{1}</title><ns>0</ns><id>{0}</id><revision><id>7</id><text>{1}.</text></revision></page>"
    path = tmp_path / "dump.xml"
    path.write_text(f"<mediawiki>{''.join(page.format(*pages[each]) for each in order)}</mediawiki>")
    with pytest.raises(CorpusError, match="'1' occurs twice"):
        plan(path)


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
