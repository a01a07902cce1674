"""Written files: the corpus, its questions and their run, conversations, and the same bytes in every version."""

import json
from collections import Counter, defaultdict
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import pytest

from pisco_index.errors import TrainingError
from pisco_index.training.tinypedia import (
    articles,
    conversations,
    recitals,
    short_conversations,
    write,
    write_conversations,
)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_written_corpus_has_its_questions_and_their_run(tmp_path, split):
    write(tmp_path, split, count=60, seed=3)
    corpus = list(islice(articles(split, seed=3), 60))
    expected = [{"_id": article.doc_id, "title": article.title, "text": article.text} for article in corpus]
    assert lines(tmp_path / "corpus.jsonl") == expected
    questions = {record["id"]: record for record in lines(tmp_path / "questions.jsonl")}
    assert len(questions) == sum(len(article.facts) for article in corpus)
    fact = corpus[5].facts[0]
    assert questions[f"tp-{split}-000005-{fact.relation}"] == {
        "id": f"tp-{split}-000005-{fact.relation}",
        "question": fact.question,
        "answers": [fact.answer],
        "doc_ids": [corpus[5].doc_id],
    }

    run = defaultdict(list)
    for line in (tmp_path / "run.trec").read_text("utf-8").splitlines():
        qid, q0, doc_id, rank, score, tag = line.split(" ")
        assert (q0, tag) == ("Q0", "tinypedia")
        run[qid].append((doc_id, int(rank), float(score)))
    assert set(run) == set(questions)
    kinds = {article.doc_id: article.kind for article in corpus}
    gold_ranks, alike = Counter(), []
    for qid, ranked in run.items():
        (gold,) = questions[qid]["doc_ids"]
        ids = [doc_id for doc_id, _, _ in ranked]
        assert len(set(ids)) == 5
        assert set(ids) <= set(kinds)
        assert [rank for _, rank, _ in ranked] == [1, 2, 3, 4, 5]
        assert [score for _, _, score in ranked] == sorted((score for _, _, score in ranked), reverse=True)
        gold_ranks[ids.index(gold)] += 1
        alike += [kinds[doc_id] == kinds[gold] for doc_id in ids if doc_id != gold]
    assert len(gold_ranks) == 5
    assert max(gold_ranks.values()) < 2 * min(gold_ranks.values())
    assert 0.7 < sum(alike) / len(alike) < 1


def test_a_seed_gives_the_same_bytes_in_every_version(tmp_path):
    """The shipped checkpoint was trained on these streams, and published numbers are about their held-out part."""
    write(tmp_path, "held-out", count=60)
    for draw in (conversations, short_conversations, recitals):
        write_conversations(tmp_path / f"{draw.__name__}.jsonl", islice(draw("train", seed=1), 20))
    digests = {path.name: blake2b(path.read_bytes(), digest_size=8).hexdigest() for path in sorted(tmp_path.iterdir())}
    assert digests == {
        "conversations.jsonl": "745ef05ce398f76e",
        "corpus.jsonl": "ebe588093fbef41e",
        "questions.jsonl": "d8919bca3804d192",
        "recitals.jsonl": "27d83789eda62b5e",
        "run.trec": "1d12326216aaca41",
        "short_conversations.jsonl": "98ea0ef734bcc5a5",
    }


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    write(tmp_path, "train", count=5)
    write(tmp_path, "train", count=6)
    assert {path.name for path in tmp_path.iterdir()} == {"corpus.jsonl", "questions.jsonl", "run.trec"}
    assert len(lines(tmp_path / "corpus.jsonl")) == 6


def test_a_run_needs_as_many_articles_as_it_ranks(tmp_path):
    with pytest.raises(TrainingError, match="raise count"):
        write(tmp_path, "train", count=4, documents=5)


def test_written_conversations_are_those_of_the_stream(tmp_path):
    path = tmp_path / "conversations.jsonl"
    drawn = list(islice(conversations("held-out", seed=2, documents=(2, 3), questions=4), 3))
    write_conversations(path, drawn)
    assert lines(path) == [
        {
            "documents": [{"title": article.title, "text": article.text} for article in conversation.documents],
            "turns": [{"question": fact.question, "answer": fact.answer} for fact in conversation.turns],
        }
        for conversation in drawn
    ]
