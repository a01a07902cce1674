"""Measure how errors of memory change what a decoder predicts, on documents with their texts.

The decoder reads a document's memory in its ordinary prompt, and then a part of the document's own text as the answer.
The distributions over the next token along that answer are compared (``divergence``), or differentiated by the stored
vectors (``fisher_matrix``). To second order both agree: errors that are independent of each other, with covariance
``C``, change the distributions of a document of ``n`` vectors by ``n / 2 · trace(C · fisher_matrix)`` nats.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...errors import PromptError
from ..decoder import Decoder
from ..memory import Memory, Stage
from .batches import split_into_batches

QUESTION = "What does the document say?"
"""Question whose answer is the document's own text."""

ANSWER_TOKENS = 64
"""Number of tokens of the text along which the decoder's predictions are looked at."""

# A document of more tokens, memory and answer together, is skipped: a few of them would take most of the time.
_MOST_TOKENS = 4096
# Largest number of tokens in a batch, padding included. With gradients an 8B model keeps about 3 MB for a token.
_TOKEN_BUDGET = 1024
# Largest number of logits in a batch: a quarter of a gigabyte in float32, of which several copies are made.
_LOGITS = 1 << 26
# Gradients wanted for each channel of memory, and the most times that tokens are drawn to have them: with fewer
# gradients than channels the matrix says nothing of most directions.
_GRADIENTS_PER_CHANNEL = 4
_MOST_DRAWS = 8
# Characters of a part of a text, per token. A token of any language has fewer on average; longer parts are cut.
_CHARACTERS = 16
# A part begins at a word, if one begins within this number of characters.
_WORD = 32


@dataclass(frozen=True, eq=False)
class SampledDocument:
    """A document to read.

    Attributes:
        memory: memory of the one document, as it is stored.
        text: text that the memory was made from.
    """

    memory: Memory
    text: str


def sampled_documents(
    values: np.ndarray, lengths: Sequence[int], texts: Sequence[str], stage: Stage, digest: str
) -> list[SampledDocument]:
    """Return documents from the arrays of a sample.

    Args:
        values: memory of all documents in order, ``(Σ n_mem, dim)``.
        lengths: number of vectors of each document.
        texts: text of each document.
        stage: stage of the memory.
        digest: digest that the checkpoint's memory carries.
    """
    parts = torch.tensor(values, dtype=torch.float32).split(list(lengths))
    memories = [Memory(part, (len(part),), stage, digest) for part in parts]
    return [SampledDocument(memory, text) for memory, text in zip(memories, texts, strict=True)]


@dataclass(frozen=True)
class Divergence:
    """The difference between what a decoder predicts from decoded memory and from the exact memory.

    Attributes:
        kl: KL divergence of the next token's distribution in nats per token, ``KL(exact ‖ decoded)``: the mean over
            the documents.
        kl_worst: the largest mean over the tokens of one document.
        top1_kept: share of the tokens at which the most probable token stays the same.
        delta_nll: change of the text's negative log-likelihood, in nats per token.
        documents: number of documents that were read.
    """

    kl: float
    kl_worst: float
    top1_kept: float
    delta_nll: float
    documents: int


@dataclass(frozen=True)
class _Prompt:
    """A prompt with a document's memory, and a part of its text as the answer.

    Attributes:
        number: number of the document.
        ids: token ids of the prompt, which ends with the answer.
        answer_tokens: number of tokens of the answer.
    """

    number: int
    ids: list[int]
    answer_tokens: int


def fisher_matrix(
    decoder: Decoder,
    documents: Sequence[SampledDocument],
    *,
    draws: int | None = None,
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Return the Fisher matrix of memory: how much the decoder's predictions react to each direction of an error.

    It is the mean over the documents' vectors of the outer product of the gradient of ``log p(y)`` with respect to a
    stored vector, in nats per token of the text. The tokens ``y`` are drawn from the decoder's own distributions, each
    given the text before it. The same documents and seed give the same matrix, except for rounding.

    Args:
        decoder: the decoder.
        documents: the documents. Those without vectors or text, with vectors that are not finite, or too long for the
            decoder are skipped.
        draws: number of times that tokens are drawn for a document, each of which costs a backward pass; default: as
            many as give 4 gradients for each channel of memory, up to 8.
        seed: seed of the drawn tokens and of the parts of long texts.
        on_batch: callback after each batch.

    Returns:
        A symmetric, positive semidefinite matrix ``(dim, dim)`` float64, in units of the stored memory.

    Raises:
        PromptError: no document can be read.
    """
    prompts = _prompts(decoder, documents, seed)
    dim = documents[prompts[0].number].memory.dim
    if draws is None:
        gradients = sum(len(documents[prompt.number].memory.values) for prompt in prompts)
        draws = min(-(-_GRADIENTS_PER_CHANNEL * dim // gradients), _MOST_DRAWS)
    total = torch.zeros(dim, dim, dtype=torch.float64, device=decoder.device)
    vectors = 0
    for batch in _batches(decoder, prompts):
        memories = [documents[prompt.number].memory for prompt in batch]
        counts = [prompt.answer_tokens for prompt in batch]
        # Inference tensors take no gradients, but their copies do.
        values = torch.cat([memory.values for memory in memories]).to(decoder.device, torch.float32, copy=True)
        uniform = [
            np.random.default_rng([seed, 1, prompt.number]).random((draws, prompt.answer_tokens)) for prompt in batch
        ]
        with torch.enable_grad():
            values.requires_grad_()
            embedded = decoder.embed_values([prompt.ids for prompt in batch], values, memories[0].stage)
            logits = decoder.answer_logits([each[:-1] for each in embedded], counts)
            log_probs = [each.float().log_softmax(-1) for each in logits]
            for draw in range(draws):
                drawn = [_draw(p, u[draw]) for p, u in zip(log_probs, uniform, strict=True)]
                # The tokens are independent of each other, so that the expected square of a sum is the sum of squares.
                scores = [p.gather(1, y).sum() / n**0.5 for p, y, n in zip(log_probs, drawn, counts, strict=True)]
                score = torch.stack(scores).sum()
                (gradient,) = torch.autograd.grad(score, values, retain_graph=draw + 1 < draws)
                gradient = gradient[gradient.isfinite().all(1)].double()
                total += gradient.T @ gradient
                vectors += len(gradient)
        on_batch()
    if not vectors:
        raise PromptError("The decoder's gradients are not finite for any document. Use another dtype.")
    return ((total + total.T) / (2 * vectors)).cpu().numpy()


def divergence(
    decoder: Decoder,
    documents: Sequence[SampledDocument],
    decoded: np.ndarray,
    *,
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> Divergence:
    """Compare the decoder's predictions from decoded memory with those from the exact memory.

    Args:
        decoder: the decoder.
        documents: the documents with their exact memory. Some are skipped, as in ``fisher_matrix``.
        decoded: memory of all documents in order after a codec, ``(Σ n_mem, dim)``.
        seed: seed of the parts of long texts.
        on_batch: callback after each batch.

    Raises:
        PromptError: no document can be read.
    """
    parts = torch.tensor(decoded, dtype=torch.float32).split([len(each.memory.values) for each in documents])
    divergences, kept, changes = [], [], []
    for batch in _batches(decoder, _prompts(decoder, documents, seed)):
        memories = [documents[prompt.number].memory for prompt in batch]
        others = [replace(memory, values=parts[prompt.number]) for memory, prompt in zip(memories, batch, strict=True)]
        ids, counts = [prompt.ids for prompt in batch], [prompt.answer_tokens for prompt in batch]
        exact, changed = (decoder.answer_log_probs(ids, counts, each) for each in (memories, others))
        for prompt, p, q in zip(batch, exact, changed, strict=True):
            labels = torch.tensor(prompt.ids[-prompt.answer_tokens :], device=p.device)[:, None]
            divergences.append(float(kl_divergence(p, q).mean()))
            kept.append(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
            changes.append(float((p.gather(1, labels) - q.gather(1, labels)).double().mean()))
        on_batch()
    return Divergence(
        kl=float(np.mean(divergences)),
        kl_worst=max(divergences),
        top1_kept=float(np.mean(kept)),
        delta_nll=float(np.mean(changes)),
        documents=len(divergences),
    )


def kl_divergence(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return ``KL(reference ‖ other)`` in nats, ``(n,)``, for each row of log-probabilities ``(n, vocabulary)``.

    Both are normalised again in double precision, so that rounding alone can make a result negative. Tokens that the
    reference rules out (-inf) add nothing.
    """
    p, q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return torch.where(p.isneginf(), 0, p.exp() * (p - q)).sum(-1)


def _prompts(decoder: Decoder, documents: Sequence[SampledDocument], seed: int) -> list[_Prompt]:
    """Return the prompts of the documents that can be read.

    Raises:
        PromptError: there are none.
    """
    prompts, failure = list[_Prompt](), "they have no vectors or no text"
    for number, document in enumerate(documents):
        text = _part(document.text, np.random.default_rng([seed, 0, number]))
        values = document.memory.values
        if not text or not len(values) or not values.isfinite().all():
            continue
        try:
            ids, count = decoder.answered_ids(QUESTION, [len(values)], text)
            ids = ids[: len(ids) - max(count - ANSWER_TOKENS, 0)]
            decoder.require_fit([ids], 0)
        except PromptError as error:
            failure = str(error)
            continue
        if len(ids) > _MOST_TOKENS:
            failure = f"a prompt has more than {_MOST_TOKENS:,} tokens"
            continue
        prompts.append(_Prompt(number, ids, min(count, ANSWER_TOKENS)))
    if not prompts:
        raise PromptError(f"The decoder can read none of {len(documents)} documents: {failure}")
    return prompts


def _part(text: str, rng: np.random.Generator) -> str:
    """Return a part of a text that begins anywhere in it, at a word where words are short."""
    # A token has about 4 characters, so that the last part is seldom shorter than an answer.
    start = int(rng.integers(max(len(text) - 4 * ANSWER_TOKENS, 0) + 1))
    if start:
        start = text.find(" ", start, start + _WORD) + 1 or start
    return text[start : start + _CHARACTERS * ANSWER_TOKENS].strip()


def _batches(decoder: Decoder, prompts: Sequence[_Prompt]) -> Iterator[list[_Prompt]]:
    """Yield prompts of similar length, as many as the budgets of tokens and logits allow."""
    vocabulary = decoder.model.get_input_embeddings().weight.shape[0]
    most = max(1, _LOGITS // (ANSWER_TOKENS * vocabulary))
    for numbers in split_into_batches([len(prompt.ids) for prompt in prompts], 0, _TOKEN_BUDGET):
        for start in range(0, len(numbers), most):
            yield [prompts[number] for number in numbers[start : start + most]]


def _draw(log_probs: torch.Tensor, uniform: np.ndarray) -> torch.Tensor:
    """Return a token ``(n, 1)`` of each distribution ``(n, vocabulary)``, drawn by a number in [0, 1) for each."""
    cumulated = log_probs.detach().double().exp().cumsum(-1)
    places = torch.tensor(uniform, device=cumulated.device)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, places, right=True).clamp(max=cumulated.shape[1] - 1)
