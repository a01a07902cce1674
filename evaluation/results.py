"""What an evaluation found: answers with their scores, and a row for each condition."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class EvaluationRow:
    """One condition over all questions.

    Attributes:
        condition: ``none``, ``text``, ``stored`` or ``recoded``.
        stage: of memory; None without memory.
        codec: of memory; None without memory.
        bytes_per_document: mean over the documents that were read: payloads, or UTF-8 of the text; None without any.
        match: share of answers that contain a reference answer, 0 to 1.
        exact_match: share of answers that are a reference answer, 0 to 1.
        f1: mean of the words' F1, 0 to 1.
        nll: the first reference answer's negative log-likelihood, in nats a token.
        kl: divergence of the next token's distribution from the reference's along that answer, in nats a token.
        questions: how many.
    """

    condition: str
    stage: str | None
    codec: str | None
    bytes_per_document: float | None
    match: float
    exact_match: float
    f1: float
    nll: float
    kl: float
    questions: int


@dataclass(frozen=True)
class EvaluatedAnswer:
    """One question under one condition, with the scores that ``EvaluationRow`` has of all.

    Attributes:
        answer: the decoder's words.
        references: the reference answers.
        answer_tokens: tokens of the first reference answer, which ``nll`` and ``kl`` are means over.
    """

    id: str
    condition: str
    stage: str | None
    codec: str | None
    question: str
    answer: str
    references: tuple[str, ...]
    match: float
    exact_match: float
    f1: float
    nll: float
    kl: float
    answer_tokens: int


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        uri: the store.
        reference: the store whose memory ``kl`` is measured against.
        questions: how many were asked.
        documents: how many different documents they were answered from.
        ignored_queries: queries of the run that were not among the questions.
        rows: one a condition.
        answers: one a question and condition, by rows and then in the order of the questions.
    """

    uri: str
    reference: str
    questions: int
    documents: int
    ignored_queries: int
    rows: tuple[EvaluationRow, ...]
    answers: tuple[EvaluatedAnswer, ...]

    def to_dict(self) -> dict[str, Any]:
        """All but the answers, as values that JSON knows."""
        return {name: value for name, value in asdict(self).items() if name != "answers"}

    def save_answers(self, path: str | Path) -> None:
        """Write the answers as JSON lines.

        Raises:
            InputError: if the file cannot be written.
        """
        lines = (json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in self.answers)
        try:
            Path(path).write_text("".join(lines), "utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror or error}.") from error


def row_of(answers: Sequence[EvaluatedAnswer], sizes: Collection[int]) -> EvaluationRow:
    """Sum up one condition: its answers, at least one, and the bytes of each document under it."""
    tokens = sum(answer.answer_tokens for answer in answers)
    first = answers[0]
    return EvaluationRow(
        condition=first.condition,
        stage=first.stage,
        codec=first.codec,
        bytes_per_document=sum(sizes) / len(sizes) if sizes else None,
        match=sum(answer.match for answer in answers) / len(answers),
        exact_match=sum(answer.exact_match for answer in answers) / len(answers),
        f1=sum(answer.f1 for answer in answers) / len(answers),
        nll=sum(answer.nll * answer.answer_tokens for answer in answers) / tokens,
        kl=sum(answer.kl * answer.answer_tokens for answer in answers) / tokens,
        questions=len(answers),
    )
