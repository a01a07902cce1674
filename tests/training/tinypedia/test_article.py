"""Articles: what they promise a reader, and that no answer can be guessed."""

import re
from collections import Counter, defaultdict
from itertools import islice

from pisco_index.training.tinypedia import KINDS, articles, people, places, works


def test_articles_are_the_same_for_the_same_split_and_seed_only(split):
    def first(chosen, seed):
        return list(islice(articles(chosen, seed=seed), 20))

    assert first(split, 7) == first(split, 7)
    texts = [
        tuple(article.text for article in first(*stream)) for stream in (("train", 7), ("held-out", 7), (split, 8))
    ]
    assert len(set(texts)) == 3


def test_ids_titles_and_questions_are_distinct(written, split):
    assert [article.doc_id for article in written[split]] == [f"tp-{split}-{n:06d}" for n in range(5000)]
    assert len({article.title for article in written[split]}) == 5000
    facts = [fact for article in written[split] for fact in article.facts]
    assert len({fact.question for fact in facts}) == len(facts)


def test_an_article_begins_with_its_title_and_states_each_answer_once(written, split):
    """A distractor never repeats an answer, and no reference to the subject gives it away."""
    for article in written[split]:
        assert article.text.startswith(article.title)
        assert 5 <= len(article.facts) <= 7
        assert len({fact.relation for fact in article.facts}) == len(article.facts)
        assert len({fact.answer for fact in article.facts}) == len(article.facts)
        for fact in article.facts:
            assert article.title in fact.question
            assert len(re.findall(rf"\b{re.escape(fact.answer)}\b", article.text)) == 1, (article.text, fact)


def test_articles_are_short(written, split):
    lengths = sorted(len(article.text.split()) for article in written[split])
    assert lengths[0] >= 20
    assert lengths[-1] <= 110
    assert sum(40 <= length <= 80 for length in lengths) > 0.6 * len(lengths)
    assert max(len(fact.question.split()) for article in written[split] for fact in article.facts) < 15


def test_every_kind_has_eight_relations_stated_in_many_ways():
    tables = {"person": [people.RELATIONS], "place": [places.RELATIONS]}
    tables["work"] = [works.RELATIONS + family.relations for family in works.FAMILIES]
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
