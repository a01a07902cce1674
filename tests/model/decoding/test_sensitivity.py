"""The sensitivity of a decoder to errors in memory, against brute force with a decoder whose vocabulary is small."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pisco_index import Decoder
from pisco_index.errors import PromptError
from pisco_index.model.decoding import sensitivity
from pisco_index.model.decoding.sensitivity import (
    ANSWER_TOKENS,
    divergence,
    fisher_matrix,
    kl_divergence,
    sampled_documents,
)

TEXTS = ["A short text.", "The river runs through the old town and past its walls. " * 4, "No. 3"]
LENGTHS = [3, 6, 3]


@pytest.fixture(scope="module")
def decoder(fake):
    return Decoder.load(fake, dtype=torch.float32)


def documents_of(decoder, stage, texts=TEXTS, lengths=LENGTHS, seed=0):
    dim = 16 if stage == "hidden" else 24
    values = np.random.default_rng(seed).standard_normal((sum(lengths), dim)).astype(np.float32)
    return values, sampled_documents(values, lengths, texts, stage, decoder.memory_digest)


def exact_matrix(decoder, documents, seed=0):
    """The expectation over the whole vocabulary, position by position and token by token."""
    total, vectors = 0, 0
    for prompt in sensitivity._prompts(decoder, documents, seed):
        memory = documents[prompt.number].memory
        values = memory.values.clone().requires_grad_()
        (embedded,) = decoder.embed_values([prompt.ids], values, memory.stage)
        positions = decoder.model(inputs_embeds=embedded[None]).logits[0].log_softmax(-1)
        for row in positions[-1 - prompt.answer_tokens : -1]:
            for log_prob in row:
                (gradient,) = torch.autograd.grad(log_prob, values, retain_graph=True)
                gradient = gradient.double()
                total = total + log_prob.exp().item() * gradient.T @ gradient / prompt.answer_tokens
        vectors += len(values)
    return total.numpy() / vectors


@pytest.mark.parametrize("stage", ["hidden", "embedding"])
def test_many_draws_approach_the_expectation(decoder, stage, monkeypatch):
    monkeypatch.setattr(sensitivity, "ANSWER_TOKENS", 3)
    _, documents = documents_of(decoder, stage, TEXTS[:1], LENGTHS[:1])
    expected = exact_matrix(decoder, documents)
    found = fisher_matrix(decoder, documents, draws=400)
    assert found.shape == expected.shape
    assert found.dtype == np.float64
    assert np.linalg.norm(found - expected) < 0.25 * np.linalg.norm(expected)
    assert np.trace(found) == pytest.approx(np.trace(expected), rel=0.15)


def test_the_matrix_is_symmetric_and_semidefinite_and_follows_the_seed(decoder, monkeypatch):
    _, documents = documents_of(decoder, "hidden")
    found, batches = fisher_matrix(decoder, documents), []
    assert (found == found.T).all()
    assert np.linalg.eigvalsh(found).min() > -1e-12 * np.trace(found)
    assert np.trace(found) > 0
    assert not np.allclose(found, fisher_matrix(decoder, documents, seed=1), rtol=0.01)
    # The batches change rounding only.
    monkeypatch.setattr(sensitivity, "_TOKEN_BUDGET", 1)
    np.testing.assert_allclose(
        fisher_matrix(decoder, documents, on_batch=lambda: batches.append(1)), found, rtol=1e-3, atol=1e-6
    )
    assert len(batches) == 3


def test_it_predicts_the_divergence_of_small_errors(decoder):
    """KL ≈ n_mem / 2 · trace(C · G) for independent errors of covariance C, in every part of the space."""
    lengths = [3] * 24
    values, documents = documents_of(decoder, "hidden", [TEXTS[1]] * 24, lengths)
    matrix = fisher_matrix(decoder, documents, draws=40)
    _, directions = np.linalg.eigh(matrix)
    found = []
    for part in (directions[:, :8], directions[:, 8:]):
        errors = 0.01 * np.random.default_rng(1).standard_normal((len(values), 8)) @ part.T
        predicted = 3 / 2 * 1e-4 * np.trace(part.T @ matrix @ part)
        measured = divergence(decoder, documents, values + errors.astype(np.float32))
        assert measured.kl == pytest.approx(predicted, rel=0.5)
        found.append(measured.kl)
    assert found[1] > 4 * found[0]


def test_equal_memory_diverges_by_nothing(decoder):
    values, documents = documents_of(decoder, "hidden")
    found = divergence(decoder, documents, values)
    assert (found.kl, found.kl_worst, found.top1_kept, found.delta_nll, found.documents) == (0, 0, 1, 0, 3)


def test_the_worst_document_is_told_apart(decoder):
    values, documents = documents_of(decoder, "hidden")
    changed = values.copy()
    changed[3:9] *= -1
    found = divergence(decoder, documents, changed)
    # The first document and the last are unchanged.
    assert found.kl_worst == pytest.approx(3 * found.kl)
    assert found.kl_worst > 1e-4
    assert found.delta_nll != 0
    prompt = sensitivity._prompts(decoder, documents, 0)[1]
    exact, other = (
        decoder.answer_log_probs([prompt.ids], [prompt.answer_tokens], [memory])[0]
        for memory in (documents[1].memory, replace(documents[1].memory, values=torch.tensor(changed[3:9])))
    )
    assert found.kl_worst == pytest.approx(float(kl_divergence(exact, other).mean()), rel=1e-3)


def test_a_part_of_a_long_text_is_read(decoder):
    text = "".join(f"word{n} " for n in range(5000))
    parts = {sensitivity._part(text, np.random.default_rng(seed)) for seed in range(20)}
    assert len(parts) > 15
    assert all(part.startswith("word") and part in text for part in parts)
    assert sensitivity._part(" short ", np.random.default_rng(0)) == "short"
    _, documents = documents_of(decoder, "hidden", [text] * 3)
    for prompt in sensitivity._prompts(decoder, documents, 0):
        assert prompt.answer_tokens == ANSWER_TOKENS
        assert decoder.tokenizer.decode(prompt.ids[-ANSWER_TOKENS:]).strip() in text


def test_documents_that_cannot_be_read_are_skipped(decoder):
    values, documents = documents_of(decoder, "hidden", ["", TEXTS[1], TEXTS[2]])
    values[-1] = np.nan
    documents = documents[:2] + sampled_documents(values, LENGTHS, TEXTS, "hidden", decoder.memory_digest)[2:]
    assert divergence(decoder, documents, values).documents == 1
    with pytest.raises(PromptError, match="none of 1 documents: they have no vectors or no text"):
        fisher_matrix(decoder, documents[:1])


def test_the_divergence_is_in_nats_and_has_a_direction():
    reference, other = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    expected = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.9 * math.log(1.8) + 0.1 * math.log(0.2)]
    assert kl_divergence(reference, other).tolist() == pytest.approx(expected)
    assert kl_divergence(reference, reference).tolist() == [0, 0]


def test_divergence_of_what_is_ruled_out():
    half, other = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert kl_divergence(half, half).tolist() == [0]
    assert kl_divergence(half, other).tolist() == pytest.approx([math.log(2)])
    assert kl_divergence(other, half).tolist() == [math.inf]
