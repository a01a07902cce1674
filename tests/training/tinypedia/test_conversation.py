"""Conversations: which articles they show, what they ask, and how many."""

import re
from collections import Counter
from itertools import islice

import pytest

from pisco_index.training.tinypedia import RECITAL, Fact, conversations, is_held_out, recitals, short_conversations


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


def test_only_titles_tell_the_documents_of_short_conversations_apart(split):
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


def test_recitals_end_with_the_text_of_an_article(split):
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
