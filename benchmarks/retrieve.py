"""Measure full-text search: making the index, questions one by one and by the thousand, and new documents.

Passages of 80 to 110 words follow Zipf's law, with English stop words as the most frequent ones. Questions are eight
words of a passage. The store is written as a build writes it, with vectors of one number. SQLite's full-text search
(FTS5) answers the same questions over fewer passages, and so does a store of that size, question by question in turns.

    python benchmarks/retrieve.py --passages 1000000 --baseline-passages 100000
"""

import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from measure import PeakMemory, options, positive, report, seconds
from random_store import create_store

from pisco_index.store import (
    Searcher,
    Store,
    codec_by_name,
    commit,
    encode,
    keep_index,
    memory_rows,
    search_index,
    text_hash,
    write_fragment,
)

SHARD = 4096
VOCABULARY = 300_000
QUESTION_WORDS = 8
BATCH = 1000
# The most frequent words of English, which the index leaves out.
STOP_WORDS = "the of and a in to was is for on as by with that it at are be this an not or".split()  # noqa: SIM905
LETTERS = "bcdfghjkmnpqrtvw"

FIRST_QUESTION = """
import sys, time
from pisco_index.store import Searcher, Store
began = time.perf_counter()
assert Searcher(Store.open(sys.argv[1])).search(sys.argv[2])
print(time.perf_counter() - began)
"""


class Passages:
    """Random passages, as many as are asked for."""

    def __init__(self, seed: int = 0):
        self._generator = np.random.default_rng(seed)
        self._words = np.array(STOP_WORDS + [word(number) for number in range(VOCABULARY)], dtype=object)
        shares = 1 / np.arange(1, len(self._words) + 1)
        self._ends = np.cumsum(shares) / shares.sum()

    def draw(self, count: int) -> list[str]:
        lengths = self._generator.integers(80, 111, count)
        drawn = self._words[np.searchsorted(self._ends, self._generator.random(lengths.sum()))]
        ends = np.cumsum(lengths).tolist()
        return [" ".join(drawn[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]


def word(number: int) -> str:
    """Return a word that has no stem and is no stop word."""
    digits = []
    while number or not digits:
        number, digit = divmod(number, len(LETTERS))
        digits.append(LETTERS[digit])
    return "z" + "".join(digits) + "k"


def questions_from(passages: Sequence[str], count: int) -> list[str]:
    chance = random.Random(0)
    return [" ".join(chance.sample(chance.choice(passages).split(), QUESTION_WORDS)) for _ in range(count)]


def make_store(uri: Path, passages: int, drawn: Passages) -> tuple[str, list[str]]:
    """Write passages, without an index, and return the store's address and the first passages."""
    store = create_store(uri, dim=1, codec="fp32", further_columns=["contents"])
    first: list[str] = []
    shards = []
    for number, begin in enumerate(range(0, passages, SHARD)):
        texts = drawn.draw(min(SHARD, passages - begin))
        first = first or texts
        shards.append(write(store, number, texts, begin))
    commit(store, shards)
    return store.uri, first


def write(store: Store, shard: int, texts: Sequence[str], begin: int):
    doc_ids = [str(begin + number) for number in range(len(texts))]
    vector, codec = np.zeros((1, 1), np.float32), codec_by_name("fp32")
    rows = memory_rows(
        doc_ids=doc_ids,
        tokens_total=[128] * len(texts),
        tokens_fed=[128] * len(texts),
        payloads=[encode(doc_id, vector, codec) for doc_id in doc_ids],
        text_hashes=[text_hash(text) for text in texts],
        errors=[None] * len(texts),
        contents=texts,
    )
    return write_fragment(store.uri, shard, rows)


def milliseconds(ask: Callable[[str], object], questions: Sequence[str]) -> np.ndarray:
    return np.array([seconds(lambda asked=question: ask(asked)) for question in questions]) * 1000


def first_question_s(uri: str, question: str) -> float:
    """Return the seconds from opening the store to the first answer, in a process of its own."""
    command = [sys.executable, "-c", FIRST_QUESTION, uri, question]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_making(uri: str) -> dict[str, float]:
    with PeakMemory() as memory:
        took = seconds(lambda: keep_index(uri))
    index = search_index(Store.open(uri).table)
    assert index is not None
    return {"index_s": took, "index_mb": index.bytes / 1e6, "index_mib_of_memory": memory.mib}


def measure_questions(uri: str, questions: Sequence[str]) -> dict[str, float]:
    first = [first_question_s(uri, questions[number]) for number in range(3)]
    searcher = Searcher(Store.open(uri))
    # Every word is read once before it is timed.
    batch = (questions * BATCH)[:BATCH]
    searcher.search_many(batch)
    ten, hundred = (milliseconds(lambda q, k=k: searcher.search(q, k), questions) for k in (10, 100))
    rates = {
        f"questions_per_s_k{hits}_{threads}_threads": len(batch)
        / seconds(lambda h=hits, t=threads: searcher.search_many(batch, h, t))
        for hits in (10, 100)
        for threads in (1, 2, 4)
    }
    return {
        "first_question_s": float(np.median(first)),
        "k10_p50_ms": float(np.median(ten)),
        "k10_p95_ms": float(np.percentile(ten, 95)),
        "k100_p50_ms": float(np.median(hundred)),
        **rates,
    }


def measure_new_documents(uri: str, passages: int, drawn: Passages, questions: Sequence[str]) -> dict[str, float]:
    """Return the times of a question before and after a shard of new documents is indexed, and of indexing it."""
    store = Store.open(uri)
    commit(store, [write(store, passages // SHARD + 1, drawn.draw(SHARD), passages)])
    before = milliseconds(Searcher(Store.open(uri)).search, questions[:20])
    took = seconds(lambda: keep_index(uri))
    searcher = Searcher(Store.open(uri))
    searcher.search_many(questions)
    after = milliseconds(searcher.search, questions)
    return {
        "new_documents": SHARD,
        "new_not_indexed_k10_p50_ms": float(np.median(before)),
        "new_index_s": took,
        "new_indexed_k10_p50_ms": float(np.median(after)),
    }


class Sqlite:
    """SQLite's full-text search, with its own BM25 and the Porter stemmer."""

    def __init__(self, path: Path, passages: Iterator[tuple[str, str]]):
        self._database = sqlite3.connect(path)
        self._database.execute("create virtual table passages using fts5(contents, id unindexed, tokenize='porter')")
        self._database.executemany("insert into passages (id, contents) values (?, ?)", passages)
        self._database.execute("insert into passages (passages) values ('optimize')")
        self._database.commit()

    def search(self, question: str) -> list[tuple[str, float]]:
        words = " OR ".join(f'"{each}"' for each in dict.fromkeys(question.split()) if each not in STOP_WORDS)
        asked = "select id, -rank from passages where passages match ? order by rank limit 10"
        return self._database.execute(asked, [words]).fetchall()


def measure_baseline(folder: Path, passages: int, questions: int) -> dict[str, float]:
    """Return the times of SQLite and of a store of the same passages."""
    uri, first = make_store(folder / "baseline", passages, Passages(1))
    keep_index(uri)
    searcher = Searcher(Store.open(uri))
    rows = Store.open(uri).table.to_batches(columns=["doc_id", "contents"])
    pairs = (pair for batch in rows for pair in zip(*(column.to_pylist() for column in batch.columns), strict=True))
    began = time.perf_counter()
    sqlite = Sqlite(folder / "fts5.db", pairs)
    sqlite_s = time.perf_counter() - began
    asked = questions_from(first, questions)
    times: dict[str, list[float]] = {"ours": [], "fts5": []}
    for question in asked:
        times["fts5"].append(seconds(lambda q=question: sqlite.search(q)) * 1000)
        times["ours"].append(seconds(lambda q=question: searcher.search(q)) * 1000)
    ours, theirs = (float(np.median(times[name])) for name in ("ours", "fts5"))
    return {
        "baseline_passages": passages,
        "baseline_fts5_index_s": sqlite_s,
        "baseline_fts5_k10_p50_ms": theirs,
        "baseline_ours_k10_p50_ms": ours,
        "baseline_ratio": theirs / ours,
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--passages", type=positive, default=1_000_000, help="number of passages in the store")
    parser.add_argument("--baseline-passages", type=positive, default=100_000, help="number of passages for SQLite")
    parser.add_argument("--questions", type=positive, default=300, help="number of questions to time one by one")
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure; default: the temporary folder")
    args = parser.parse_args()

    drawn = Passages()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        folder = Path(scratch)
        began = time.perf_counter()
        uri, first = make_store(folder / "store", args.passages, drawn)
        result: dict[str, float] = {"passages": args.passages, "write_s": time.perf_counter() - began}
        questions = questions_from(first, args.questions)
        result |= measure_making(uri)
        result |= measure_questions(uri, questions)
        result |= measure_new_documents(uri, args.passages, drawn, questions)
        result |= measure_baseline(folder, min(args.baseline_passages, args.passages), min(args.questions, 100))
    report(result, args.json)


if __name__ == "__main__":
    main()
