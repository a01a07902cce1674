"""Tinypedia: what its articles promise a reader, and that nothing invented is shared between its splits."""

import json
import re
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path

import pytest

from pisco_index.errors import TrainingError
from pisco_index.training import tinypedia
from pisco_index.training.tinypedia import (
    KINDS,
    RECITAL,
    Article,
    Fact,
    articles,
    conversations,
    invented_words,
    is_held_out,
    recitals,
    short_conversations,
    split_of,
    vocabulary,
    write,
    write_conversations,
)

SPLITS = ("train", "held-out")


@pytest.fixture(scope="module")
def written() -> dict[str, list[Article]]:
    return {split: list(islice(articles(split), 5000)) for split in SPLITS}


@pytest.fixture(params=SPLITS)
def split(request) -> str:
    return request.param


def words_of(text: str) -> set[str]:
    return set(re.findall("[A-Za-z]+", text))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_articles_are_the_same_for_the_same_split_and_seed_only(split):
    def first(chosen, seed):
        return list(islice(articles(chosen, seed=seed), 20))

    assert first(split, 7) == first(split, 7)
    texts = [
        tuple(article.text for article in first(*stream)) for stream in (("train", 7), ("held-out", 7), (split, 8))
    ]
    assert len(set(texts)) == 3


def test_ids_and_titles_are_distinct(written, split):
    assert [article.doc_id for article in written[split]] == [f"tp-{split}-{n:06d}" for n in range(5000)]
    assert len({article.title for article in written[split]}) == 5000


def test_an_article_introduces_its_title_and_states_each_fact_as_it_is_answered(written, split):
    for article in written[split]:
        assert article.text.startswith(article.title)
        assert 5 <= len(article.facts) <= 7
        assert all(fact.answer in article.text and article.title in fact.question for fact in article.facts)


def test_a_question_has_one_answer(written, split):
    facts = [fact for article in written[split] for fact in article.facts]
    assert len({fact.question for fact in facts}) == len(facts)
    for article in written[split]:
        assert len({fact.relation for fact in article.facts}) == len(article.facts)
        assert len({fact.answer for fact in article.facts}) == len(article.facts)


def test_an_answer_is_stated_once(written, split):
    """So no distractor repeats it, and no reference to the subject gives it away."""
    for article in written[split]:
        for fact in article.facts:
            assert len(re.findall(rf"\b{re.escape(fact.answer)}\b", article.text)) == 1, (article.text, fact)


def test_nothing_invented_is_in_both_splits(written):
    said = {
        split: [article.text + " " + " ".join(fact.question for fact in article.facts) for article in written[split]]
        for split in SPLITS
    }
    shared = words_of(" ".join(said["train"])) & words_of(" ".join(said["held-out"]))
    assert {word.lower() for word in shared} <= vocabulary()
    assert not {article.title for article in written["train"]} & {article.title for article in written["held-out"]}
    for split in SPLITS:
        invented = set().union(*map(invented_words, said[split]))
        assert len(invented) > 10_000
        assert {split_of(word) for word in invented} == {split}
        assert all(is_held_out(article.title) == (split == "held-out") for article in written[split])


def test_one_word_in_eight_is_held_out_of_many():
    words = [opening + closing for opening in tinypedia._OPENING for closing in tinypedia._CLOSING]
    assert len(set(words)) > 30_000
    assert Counter(map(split_of, words))["held-out"] / len(words) == pytest.approx(1 / 8, abs=0.01)
    assert split_of("Torvel") == split_of("torvel")


def test_the_language_is_small():
    assert len(vocabulary()) < 600


def test_articles_are_short(written, split):
    lengths = sorted(len(article.text.split()) for article in written[split])
    assert lengths[0] >= 20
    assert lengths[-1] <= 110
    assert sum(40 <= length <= 80 for length in lengths) > 0.6 * len(lengths)
    assert max(len(fact.question.split()) for article in written[split] for fact in article.facts) < 15


def test_every_kind_has_eight_relations_stated_in_many_ways():
    tables = {"person": [tinypedia._PERSON], "place": [tinypedia._PLACE]}
    tables["work"] = [tinypedia._WORK + family.relations for family in tinypedia._FAMILIES]
    assert tuple(tables) == KINDS
    for relations in (relations for kind in tables.values() for relations in kind):
        assert len({relation.name for relation in relations}) == 8
        for relation in relations:
            assert len(set(relation.sentences)) >= 5
            assert len(set(relation.questions)) >= 3
            assert all("{t}" in question for question in relation.questions)


def test_no_answer_can_be_guessed(written, split):
    answers = defaultdict(Counter)
    for article in written[split]:
        for fact in article.facts:
            answers[article.kind, fact.relation][fact.answer] += 1
    for relation, counts in answers.items():
        assert counts.most_common(1)[0][1] < 0.05 * counts.total(), relation


@pytest.mark.parametrize("bounds", [(1, 5), (3, 3), (2, 4)])
def test_conversations_ask_about_their_documents(split, bounds):
    drawn = list(islice(conversations(split, documents=bounds, questions=8), 400))
    assert drawn == list(islice(conversations(split, documents=bounds, questions=8), 400))
    for conversation in drawn:
        facts = [fact for article in conversation.documents for fact in article.facts]
        assert set(conversation.turns) <= set(facts)
        assert len(set(conversation.turns)) == len(conversation.turns) == min(8, len(facts))
    sizes = Counter(len(conversation.documents) for conversation in drawn)
    assert set(sizes) == set(range(bounds[0], bounds[1] + 1))
    assert bounds[0] == bounds[1] or sizes[bounds[0]] / 400 == pytest.approx(1 / 3, abs=0.1)


def test_documents_of_a_conversation_are_often_of_one_kind():
    drawn = islice(conversations("train", documents=(4, 4)), 400)
    alike = sum(len({article.kind for article in conversation.documents}) == 1 for conversation in drawn)
    assert 0.65 < alike / 400 < 0.9


def test_short_conversations_leave_the_title_alone_to_choose_by(split):
    drawn = list(islice(short_conversations(split, documents=(2, 4)), 400))
    assert drawn == list(islice(short_conversations(split, documents=(2, 4)), 400))
    recited = 0
    for conversation in drawn:
        documents = conversation.documents
        assert len({article.kind for article in documents}) == 1
        (stated,) = {frozenset(fact.relation for fact in article.facts) for article in documents}
        assert 1 <= len(stated) <= 2
        assert all(is_held_out(article.title) == (split == "held-out") for article in documents)
        texts = {article.title: article.text for article in documents}
        if {turn.relation for turn in conversation.turns} == {"text"}:
            recited += 1
            said = {
                re.fullmatch("What does the article on (.*) say[?]", turn.question)[1]: turn.answer
                for turn in conversation.turns
            }
            assert said == texts
        else:
            assert set(conversation.turns) <= {fact for article in documents for fact in article.facts}
    assert recited / 400 == pytest.approx(1 / 3, abs=0.1)
    assert {len(conversation.documents) for conversation in drawn} == {2, 3, 4}


def test_recitals_end_with_the_text_of_one_article(split):
    drawn = list(islice(recitals(split, documents=(1, 3), questions=4), 300))
    assert drawn == list(islice(recitals(split, documents=(1, 3), questions=4), 300))
    for conversation in drawn:
        *asked, last = conversation.turns
        recited = {Fact("text", RECITAL.format(t=each.title), each.text) for each in conversation.documents}
        assert last in recited
        assert 1 <= len(asked) <= 4
        assert set(asked) <= {fact for article in conversation.documents for fact in article.facts}
        assert all(is_held_out(article.title) == (split == "held-out") for article in conversation.documents)
    assert [c.documents for c in drawn] != [c.documents for c in islice(conversations(split, documents=(1, 3)), 300)]


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


def test_writing_leaves_only_whole_files(tmp_path):
    write(tmp_path, "train", count=5)
    write(tmp_path, "train", count=6)
    assert {path.name for path in tmp_path.iterdir()} == {"corpus.jsonl", "questions.jsonl", "run.trec"}
    assert len(lines(tmp_path / "corpus.jsonl")) == 6


def test_a_run_needs_as_many_articles_as_a_question_is_given(tmp_path):
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
