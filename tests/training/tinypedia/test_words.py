"""Invented words belong to one split, and the English words beside them are few."""

import re
from collections import Counter

import pytest

from pisco_index.training.tinypedia import invented_words, is_held_out, split_of, vocabulary
from pisco_index.training.tinypedia.words import CLOSING, OPENING


def words_of(text: str) -> set[str]:
    return set(re.findall("[A-Za-z]+", text))


def test_one_word_in_eight_is_held_out_of_many():
    words = [opening + closing for opening in OPENING for closing in CLOSING]
    assert len(set(words)) > 30_000
    assert Counter(map(split_of, words))["held-out"] / len(words) == pytest.approx(1 / 8, abs=0.01)
    assert split_of("Torvel") == split_of("torvel")


def test_nothing_invented_is_in_both_splits(written):
    said = {
        split: [article.text + " " + " ".join(fact.question for fact in article.facts) for article in articles]
        for split, articles in written.items()
    }
    shared = words_of(" ".join(said["train"])) & words_of(" ".join(said["held-out"]))
    assert {word.lower() for word in shared} <= vocabulary()
    assert not {article.title for article in written["train"]} & {article.title for article in written["held-out"]}
    for split, texts in said.items():
        invented = invented_words(" ".join(texts))
        assert len(invented) > 10_000
        assert {split_of(word) for word in invented} == {split}
        assert all(is_held_out(article.title) == (split == "held-out") for article in written[split])


def test_the_vocabulary_is_small():
    assert len(vocabulary()) < 600
