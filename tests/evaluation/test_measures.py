"""Scores of answers, as SQuAD's evaluation and the literature on retrieval define them."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.text.squad import squad

from pisco_index.evaluation.measures import normalise, score

WORDS = st.lists(
    st.sampled_from(["a", "An", "the", "The.", "cat", "Cat!", "ın", "-", "x-y", "é", "\u00a0"]), max_size=6
)
TEXTS = st.one_of(WORDS.map(" ".join), st.text(max_size=12))


@pytest.mark.parametrize(
    ("answer", "references", "match", "exact", "f1"),
    [
        ("Karl von Frisch", ["Karl von Frisch"], 1, 1, 1),
        ("The amazon.", ["an Amazon"], 1, 1, 1),
        ("It is the Amazon river", ["Amazon"], 1, 0, 0.4),
        ("Amazon", ["the Amazon river"], 0, 0, 2 / 3),
        ("in 2012", ["2011", "2012"], 1, 0, 2 / 3),
        ("Nile", ["Amazon"], 0, 0, 0),
        ("", ["Amazon"], 0, 0, 0),
        ("Amazon", ["The"], 0, 0, 0),
        ("a", ["The"], 1, 1, 1),
        ("new new york", ["new york"], 1, 0, 0.8),
    ],
)
def test_scores(answer, references, match, exact, f1):
    found = score(answer, references)
    assert (found.match, found.exact_match) == (match, exact)
    assert found.f1 == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("Malm\u00f6", "Malmo\u0308", 1),
        ("\uc11c\uc6b8", "\u1109\u1165\u110b\u116e\u11af", 1),
        ("\u00c5land", "\u212bland", 1),
        ("Malm\u00f6", "Malmo", 0),
    ],
)
def test_canonically_equal_answers_are_equal(answer, reference, expected):
    for given_answer, wanted in ((answer, reference), (reference, answer)):
        scores = score(given_answer, [wanted])
        assert (scores.match, scores.exact_match, scores.f1) == (expected, expected, expected)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_exact_match_and_f1_are_those_of_squad(answer, references):
    given_answer, *wanted = (unicodedata.normalize("NFC", text) for text in (answer, *references))
    target = {"answers": {"answer_start": [0] * len(wanted), "text": wanted}, "id": "0"}
    expected = squad({"prediction_text": given_answer, "id": "0"}, target)
    found = score(answer, references)
    assert 100 * found.exact_match == float(expected["exact_match"])
    assert 100 * found.f1 == pytest.approx(float(expected["f1"]))
    assert bool(found.exact_match) == (normalise(answer) in map(normalise, references))


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_an_exact_match_is_a_match(answer, references):
    found = score(answer, references)
    assert 0 <= found.exact_match <= found.match <= 1
    assert found.exact_match <= found.f1 + 1e-6
