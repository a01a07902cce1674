"""The seam between prompts and answers: ``Generator``, and a fake for tests.

``model.decoder.Decoder`` implements it, in this process, on transformers.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from ..model.memory import Memory


class Generator(Protocol):
    """Answers questions from the memory of their documents."""

    def prompt_ids(self, question: str, documents: Sequence[int | str]) -> list[int]:
        """Return the token ids of a question's prompt.

        Args:
            question: the question.
            documents: number of memory tokens of each document, or its text.
        """
        ...

    def answer_batch(
        self, questions: Sequence[str], memories: Sequence[Memory], *, max_new_tokens: int = 128
    ) -> list[str]:
        """Answer questions together, each from the memory of its own documents.

        Raises:
            PromptError: if a prompt with its answer does not fit the model's context.
            FingerprintMismatchError: if memory was made with another connector than the generator's.
        """
        ...


class FakeGenerator:
    """A generator for tests: its answers are given, and its prompts have a token for each word and memory vector.

    Args:
        answers: the answer to each question that may be asked.

    Attributes:
        asked: every question so far, with the number of memory vectors that it was answered from.
    """

    def __init__(self, answers: Mapping[str, str]):
        self._answers = answers
        self.asked: list[tuple[str, int]] = []

    def prompt_ids(self, question: str, documents: Sequence[int | str]) -> list[int]:
        """Return a zero for each memory vector and each word."""
        counts = [document if isinstance(document, int) else len(document.split()) for document in documents]
        return [0] * (sum(counts) + len(question.split()))

    def answer_batch(
        self,
        questions: Sequence[str],
        memories: Sequence[Memory],
        *,
        max_new_tokens: int = 128,
    ) -> list[str]:
        """Return the first words of the answers that were given."""
        self.asked += [(question, len(memory.values)) for question, memory in zip(questions, memories, strict=True)]
        return [" ".join(self._answers[question].split()[:max_new_tokens]) for question in questions]
