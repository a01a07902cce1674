"""Searching returns what an exact BM25 would, whatever became of the store since its index was made."""

import random
import shutil
import unicodedata
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import bm25s
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pisco_index.configs import SearchConfig
from pisco_index.errors import CorruptStoreError, StoreError
from pisco_index.store import (
    Hit,
    Searcher,
    Store,
    WrittenShard,
    codec_by_name,
    commit,
    compact,
    delete,
    encode,
    keep_index,
    memory_rows,
    text_hash,
    write_fragment,
)

from .bm25 import Bm25, words_of

SHARDS = count()
CITIES = {
    "lyon": "Lyon lies where two rivers meet",
    "paris": "Paris lies on the river Seine",
    "quito": "Quito lies high in the mountains",
}


def ids(hits: list[Hit]) -> list[str]:
    return [hit.doc_id for hit in hits]


@pytest.fixture
def empty(tmp_path, meta) -> Store:
    """A store that can be searched once it has documents."""
    return Store.create(tmp_path / "searched", meta=meta, assets={}, further_columns=["contents"])


@pytest.fixture
def searcher_of(empty):
    """Make a store of documents with an index, and return its searcher."""

    def searcher_of(documents, config=None, **options) -> Searcher:
        store = add(empty, documents, **options)
        keep_index(store.uri, config)
        return Searcher(store.refresh())

    return searcher_of


def add(store: Store, documents: Mapping[str, str], *, failed: Collection[str] = (), size: int = 500) -> Store:
    """Add documents, in shards of some size, and return the latest version. The index stays as it is."""
    ids = list(documents)
    shards = [write(store, documents, ids[start : start + size], failed) for start in range(0, len(ids), size)]
    commit(store, shards)
    return store.refresh()


def write(store: Store, documents: Mapping[str, str], doc_ids: list[str], failed: Collection[str]) -> WrittenShard:
    vector, codec = np.zeros((1, store.meta.dim), np.float32), codec_by_name("bf16")
    rows = memory_rows(
        doc_ids=doc_ids,
        tokens_total=[1] * len(doc_ids),
        tokens_fed=[1] * len(doc_ids),
        payloads=[None if each in failed else encode(each, vector, codec) for each in doc_ids],
        text_hashes=[text_hash(documents[each]) for each in doc_ids],
        errors=["too strange" if each in failed else None for each in doc_ids],
        contents=[documents[each] for each in doc_ids],
    )
    return write_fragment(store.uri, next(SHARDS), rows)


# Exactness


class Zipf:
    """Random texts in which the n-th word of a vocabulary has a share in proportion to 1/n."""

    def __init__(self, vocabulary: int = 20_000):
        self._random = np.random.default_rng(0)
        self._words = [f"w{number}x" for number in range(vocabulary)]
        shares = 1 / np.arange(1, vocabulary + 1)
        self._ends = np.cumsum(shares) / shares.sum()

    def text(self, fewest: int, most: int) -> str:
        drawn = self._random.random(self._random.integers(fewest, most + 1))
        return " ".join(map(self._words.__getitem__, np.searchsorted(self._ends, drawn)))

    def documents(self, prefix: str, count: int) -> dict[str, str]:
        return {f"{prefix}{number}": self.text(40, 110) for number in range(count)}


def overlap(searcher: Searcher, exact: Bm25, questions: list[str]) -> float:
    """Return the share of the ten best documents that the searcher finds too."""
    found = wanted = 0
    for question in questions:
        best, hits = exact.best(words_of(question)), ids(searcher.search(question))
        assert len(set(hits)) == len(hits) == len(best)
        assert set(hits) <= exact.words.keys()
        found, wanted = found + len(set(best) & set(hits)), wanted + len(best)
    return found / wanted


def test_the_best_documents_are_those_of_an_exact_bm25_through_the_life_of_a_store(empty):
    zipf = Zipf()
    documents = zipf.documents("a", 3000)
    questions = [zipf.text(4, 8) for _ in range(60)]

    def check(at_least: float) -> None:
        share = overlap(Searcher(store.refresh()), Bm25(documents), questions)
        assert share >= at_least, share

    store = add(empty, documents)
    assert keep_index(store.uri).action == "made"
    check(0.99)
    documents |= (new := zipf.documents("b", 300))
    add(store, new)
    check(0.97)
    assert keep_index(store.uri).action == "extended"
    check(0.97)
    documents |= (new := zipf.documents("c", 600))
    add(store, new)
    assert keep_index(store.uri).action == "merged"
    check(0.99)
    delete(store.uri, gone := list(documents)[::10])
    documents = {doc_id: text for doc_id, text in documents.items() if doc_id not in gone}
    check(0.97)
    compact(store.uri, older_than_hours=0)
    keep_index(store.uri)
    check(0.99)


def test_another_library_finds_the_same_documents(searcher_of):
    zipf = Zipf(3000)
    documents = zipf.documents("d", 800)
    searcher = searcher_of(documents)
    oracle = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    oracle.index([words_of(text) for text in documents.values()], show_progress=False)
    names = np.array(list(documents))
    shares = []
    for question in [zipf.text(4, 8) for _ in range(50)]:
        found, _ = oracle.retrieve([list(dict.fromkeys(words_of(question)))], k=10, show_progress=False)
        shares.append(len(set(names[found[0]]) & set(ids(searcher.search(question)))) / 10)
    assert sum(shares) / len(shares) >= 0.95


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5), min_size=1, max_size=60),
    question=st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=4),
    hits=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_hits_are_the_first_of_all_by_falling_score_and_id(tmp_path, meta, texts, question, hits, seed):
    shutil.rmtree(tmp_path, ignore_errors=True)
    names = [f"d{number}" for number in range(len(texts))]
    random.Random(seed).shuffle(names)
    documents = {name: " ".join(f"{letter}word" for letter in text) for name, text in zip(names, texts, strict=True)}
    store = Store.create(tmp_path / "store", meta=meta, assets={}, further_columns=["contents"])
    add(store, documents, size=25)
    keep_index(store.uri)
    asked = " ".join(f"{letter}word" for letter in question)
    searcher = Searcher(store.refresh())
    found = searcher.search(asked, len(documents))
    assert {hit.doc_id: pytest.approx(hit.score, 1e-5) for hit in found} == Bm25(documents).scores(words_of(asked))
    assert found == sorted(found, key=lambda hit: (-hit.score, hit.doc_id))
    assert searcher.search(asked, hits) == found[:hits]


def test_a_tie_at_the_last_place_is_cut_by_id(searcher_of):
    names = [f"d{number:03}" for number in range(400)]
    random.Random(0).shuffle(names)
    searcher = searcher_of(dict.fromkeys(names, "river") | {"best": "river city"}, size=90)
    for hits in (1, 10, 37, 400):
        assert ids(searcher.search("river city", hits)) == ["best", *sorted(names)][:hits]
    assert len({hit.score for hit in searcher.search("river city", 401)}) == 2


# Questions


def test_a_repeated_word_counts_once_and_nothing_is_an_operator(searcher_of):
    searcher = searcher_of(CITIES)
    once = searcher.search("Paris river")
    assert ids(once) == ["paris", "lyon"]
    for same in (
        "paris RIVER river rivers River",
        "+river -(Paris",
        'river AND NOT "Paris"^2',
        "contents:paris* ~river\0",
    ):
        assert searcher.search(same)[: len(once)] == once, same
    assert searcher.words("The Rivers and the river of Paris") == ["river", "pari"]


def test_a_question_in_decomposed_letters_is_the_composed_one(searcher_of):
    searcher = searcher_of({"a": "Göteborg", "b": "the go teborg"})
    for question in ("Göteborg", unicodedata.normalize("NFD", "Göteborg"), "goteborg"):
        assert ids(searcher.search(question)) == ["a"]
        assert searcher.words(question) == ["goteborg"]


@pytest.mark.parametrize("question", ["", " \n", "the of and", "?!", "\0", "\ud800", "zebra"])
def test_a_question_without_a_word_of_the_index_has_no_documents(searcher_of, question):
    assert searcher_of(CITIES).search_many([question, "Quito", question]) == [
        [],
        [Hit("quito", pytest.approx(1, 1))],
        [],
    ]


def test_words_are_cut_as_the_index_cuts_them(searcher_of):
    cities = {"tokyo": "東京タワーへ行く", "osaka": "大阪城へ行く", "cafe": "Un CAFÉ à Orléans", "ufa": "Уфа стоит"}
    searcher = searcher_of(cities, SearchConfig(tokenizer="icu"))
    assert ids(searcher.search("東京")) == ["tokyo"]
    assert ids(searcher.search("cafe orleans")) == ["cafe"]
    assert ids(searcher.search("УФА")) == ["ufa"]


def test_a_word_that_is_a_stop_word_without_its_accent_is_searched(searcher_of):
    searcher = searcher_of({"plain": "are rivers", "accent": "áre"})
    for question in ("áre", "are áre", "The áre are", "ÁRE of the áre"):
        assert ids(searcher.search(question)) == ["accent"], question


def test_settings_without_stems_and_stop_words_are_those_of_questions_too(searcher_of):
    searcher = searcher_of(CITIES, SearchConfig(stem=False, stop_words=False))
    assert ids(searcher.search("rivers")) == ["lyon"]
    assert ids(searcher.search("the")) == ["paris", "quito"]


def test_many_questions_are_answered_as_each_alone(searcher_of):
    zipf = Zipf(500)
    searcher = searcher_of(zipf.documents("d", 600))
    questions = [zipf.text(1, 6) for _ in range(300)]
    alone = [searcher.search(question, 5) for question in questions]
    assert searcher.search_many(questions, 5) == searcher.search_many(questions, 5, threads=1) == alone
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda question: searcher.search(question, 5), questions)) == alone
    assert list(searcher.search_each(questions, 5)) == alone
    assert searcher.search_many([]) == []


def test_wrong_arguments_are_refused(searcher_of):
    searcher = searcher_of(CITIES)
    with pytest.raises(ValueError, match="hits must be at least 1, not 0"):
        searcher.search("river", 0)
    with pytest.raises(TypeError, match="not the string 'river'"):
        searcher.search_many("river")


# Rows


def test_documents_without_memory_are_never_found(searcher_of):
    failed = {f"failed{number}": "river " * (number + 2) for number in range(30)}
    searcher = searcher_of(failed | CITIES, failed=failed)
    assert ids(searcher.search("river", 2)) == ["paris", "lyon"]
    assert ids(searcher.search("river", 50)) == ["paris", "lyon"]


def test_rows_that_are_not_indexed_are_found_and_deleted_ones_are_not(searcher_of, empty):
    searcher = searcher_of(CITIES)
    add(empty, {"vienna": "Vienna on the river Danube"})
    delete(empty.uri, ["paris"])
    assert ids(searcher.search("river")) == ["paris", "lyon"], "the opened version"
    assert set(ids(Searcher(empty.refresh()).search("river"))) == {"lyon", "vienna"}
    delete(empty.uri, ["vienna", "lyon"])
    assert Searcher(empty.refresh()).search("river") == []


@pytest.mark.fault(
    "A store is updated or compacted under a reader.",
    "The reader keeps its version; if that was dropped, an error asks to open the store again.",
)
def test_a_version_that_was_dropped_says_so(searcher_of, empty):
    searcher = searcher_of(CITIES)
    for number in range(3):
        add(empty, {f"more{number}": "the river"})
        keep_index(empty.uri)
    compact(empty.uri, older_than_hours=0)
    with pytest.raises(StoreError, match="open it again"):
        searcher.search("mountains river")


def test_a_document_that_is_stored_twice_is_an_error(searcher_of, empty):
    searcher_of(CITIES)
    store = add(empty, {"paris": "the river"})
    with pytest.raises(CorruptStoreError, match="holds document 'paris' twice"):
        Searcher(store).search("river")


# Stores that cannot be searched


def test_a_store_without_an_index_says_how_to_make_it(empty, plain, rows_of):
    assert Searcher(empty).search("river") == []
    with pytest.raises(StoreError, match=r"has no search index\. Make it: pisco-index index \S+searched$"):
        Searcher(add(empty, CITIES))
    commit(plain, [write_fragment(plain.uri, 0, rows_of(["d"]))])
    with pytest.raises(StoreError, match=r"lacks the texts to make one from.* pisco-index index \S+ CORPUS"):
        Searcher(plain.refresh())


def test_an_index_of_another_program_is_refused(empty):
    store = add(empty, CITIES)
    store.table.create_scalar_index("contents", "INVERTED", name="contents", with_position=True)
    with pytest.raises(StoreError, match=r"another program made .* pisco-index index \S+searched$"):
        Searcher(store.refresh())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blank(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.fault("A store with a damaged search index is searched.", "An error says how to make the index again.")
@pytest.mark.parametrize("damage", [cut, blank, Path.unlink])
def test_a_damaged_index_is_an_error_that_says_what_to_do(searcher_of, empty, damage):
    searcher_of(CITIES)
    files = sorted((Path(empty.uri) / "memory.lance" / "_indices").rglob("*.lance"))
    assert len(files) >= 4
    for path in files:
        kept = path.read_bytes()
        damage(path)
        with pytest.raises(StoreError, match=r"pisco-index index \S+ --rebuild"):
            Searcher(empty.refresh()).search("river")
        path.write_bytes(kept)
