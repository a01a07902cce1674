"""Scores of answers, as SQuAD's evaluation and the literature on retrieval define them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.text.squad import squad

from pisco_index.evaluation.measures import divergence, normalise, score

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


@given(TEXTS, TEXTS)
def test_texts_are_normalised_as_for_exact_match(one, other):
    exact = squad({"prediction_text": one, "id": "0"}, {"answers": {"answer_start": [0], "text": [other]}, "id": "0"})[
        "exact_match"
    ]
    assert (normalise(one) == normalise(other)) == bool(exact)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_an_exact_match_is_a_match(answer, references):
    found = score(answer, references)
    assert 0 <= found.exact_match <= found.match <= 1
    assert found.exact_match <= found.f1 + 1e-6


def test_divergence_is_in_nats_and_has_a_direction():
    reference, other = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    expected = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.9 * math.log(1.8) + 0.1 * math.log(0.2)]
    assert divergence(reference, other).tolist() == pytest.approx(expected)
    assert divergence(reference, reference).tolist() == [0, 0]


def test_divergence_of_what_is_ruled_out():
    half, other = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert divergence(half, half).tolist() == [0]
    assert divergence(half, other).tolist() == pytest.approx([math.log(2)])
    assert divergence(other, half).tolist() == [math.inf]
