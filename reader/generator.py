"""The seam between prompts and answers: ``Prompter``, ``Generator``, and a fake for tests.

``model.decoder.Decoder`` implements both, in this process, on transformers.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from ..errors import PromptError
from ..model.memory import Memory
from ..model.prompt import require_question


class Prompter(Protocol):
    """Makes the prompts of questions for a generator."""

    def prompt_ids(self, question: str, documents: Sequence[int | str]) -> list[int]:
        """Return the token ids of a question's prompt.

        Args:
            question: the question.
            documents: number of memory tokens of each document, or its text.

        Raises:
            PromptError: the question is empty.
        """
        ...

    def require_fit(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Check that every prompt fits the model's context, with the new tokens after it.

        Raises:
            PromptError: stating the length of the longest prompt.
        """
        ...


class Generator(Prompter, Protocol):
    """Answers questions from the memory of their documents.

    Attributes:
        token_budget: largest number of tokens of questions that are answered together: their number, times the longest
            prompt and the new tokens.
    """

    token_budget: int

    def answer_batch(
        self,
        questions: Sequence[str],
        memories: Sequence[Memory],
        *,
        max_new_tokens: int = 128,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> list[str]:
        """Answer questions together, each from the memory of its own documents.

        Args:
            questions: the questions.
            memories: memory of each question's documents.
            max_new_tokens: largest number of tokens of an answer.
            prompts: token ids of the questions' prompts, if ``prompt_ids`` has made them before.

        Raises:
            PromptError: if a prompt with its answer does not fit the model's context.
            FingerprintMismatchError: if memory was made with another connector than the generator's.
        """
        ...


class FakeGenerator:
    """A generator for tests: its answers are given, and its prompts have a token for each word and memory vector.

    Args:
        answers: the answer to each question that may be asked.
        context: largest number of tokens of a prompt with its answer; None for no limit.
        token_budget: see ``Generator``.

    Attributes:
        asked: every question so far, with the number of memory vectors that it was answered from.
        batches: number of questions of each call so far.
    """

    def __init__(self, answers: Mapping[str, str], *, context: int | None = None, token_budget: int = 16_384):
        self._answers = answers
        self.token_budget = token_budget
        self._context = context
        self.batches: list[int] = []
        self.asked: list[tuple[str, int]] = []

    def prompt_ids(self, question: str, documents: Sequence[int | str]) -> list[int]:
        """Return a zero for each memory vector and each word."""
        require_question(question)
        counts = [document if isinstance(document, int) else len(document.split()) for document in documents]
        return [0] * (sum(counts) + len(question.split()))

    def require_fit(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Compare the prompts with the context that was given."""
        longest = max(map(len, prompts), default=0)
        if self._context is not None and longest + max_new_tokens > self._context:
            raise PromptError(f"A prompt of {longest} tokens does not fit the context of {self._context}.")

    def answer_batch(
        self,
        questions: Sequence[str],
        memories: Sequence[Memory],
        *,
        max_new_tokens: int = 128,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> list[str]:
        """Return the first words of the answers that were given."""
        own = [self.prompt_ids(q, memory.lengths) for q, memory in zip(questions, memories, strict=True)]
        assert prompts is None or [list(prompt) for prompt in prompts] == own
        self.require_fit(own, max_new_tokens)
        self.batches.append(len(own))
        self.asked += [(question, len(memory.values)) for question, memory in zip(questions, memories, strict=True)]
        return [" ".join(self._answers[question].split()[:max_new_tokens]) for question in questions]
