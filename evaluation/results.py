"""Results of an evaluation: each answer with its scores, and a row of means per condition."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..places import local_path


@dataclass(frozen=True)
class EvaluationRow:
    """One condition over all questions.

    Attributes:
        condition: name of the condition: ``none``, ``text``, ``stored``, ``fresh`` or ``recoded``.
        stage: stage of the memory; None for a condition without memory.
        codec: codec of the memory; None for a condition without memory.
        bytes_per_document: mean size of a document that was read: of its payload, or of its text in UTF-8. None for a
            condition without documents.
        match: share of answers that contain a reference answer, 0 to 1.
        exact_match: share of answers that equal a reference answer, 0 to 1.
        f1: mean F1 over words, 0 to 1.
        nll: negative log-likelihood of the first reference answer, in nats per token.
        kl: divergence of the distribution over the next token from the reference's along that answer, in nats per
            token.
        questions: number of questions.
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
    """The answer to one question under one condition, with its own values of the scores in ``EvaluationRow``.

    Attributes:
        answer: the decoder's answer.
        references: the reference answers.
        answer_tokens: number of tokens of the first reference answer; ``nll`` and ``kl`` are means over them.
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
    """Result of an evaluation.

    Attributes:
        uri: URI of the store.
        reference: URI of the store whose memory ``kl`` is measured against.
        questions: number of questions.
        documents: number of different documents that they were answered from.
        ignored_queries: number of queries of the run that are not among the questions.
        form: form of the file of questions, as it was recognised.
        warnings: sentences about what was ignored in the questions or the run.
        rows: one row per condition.
        answers: one answer per condition and question, in the order of the rows and then of the questions.
    """

    uri: str
    reference: str
    questions: int
    documents: int
    ignored_queries: int
    form: str
    warnings: tuple[str, ...]
    rows: tuple[EvaluationRow, ...]
    answers: tuple[EvaluatedAnswer, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the answers, as values that JSON can hold."""
        return {name: value for name, value in asdict(self).items() if name != "answers"}

    def save_answers(self, path: str | Path) -> None:
        """Write the answers as JSON lines.

        Raises:
            InputError: if the file cannot be written.
        """
        lines = (json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in self.answers)
        # A link stays a link.
        file = local_path(path).resolve()
        unfinished = file.with_name(f"{file.name}.unfinished")
        try:
            if file.exists() and not file.is_file():
                file.write_text("".join(lines), "utf-8")
                return
            try:
                unfinished.write_text("".join(lines), "utf-8")
                unfinished.replace(file)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{path}: the file cannot be written: {error.strerror or error}.") from error


def require_replaceable(path: str | Path) -> None:
    """Check that an evaluation's answers may replace a file: it does not exist, or it holds such answers.

    Raises:
        InputError: the file holds something else, or cannot be read.
    """
    file = local_path(path)
    try:
        if not file.is_file():
            return
        with file.open("rb") as opened:
            first = opened.readline()
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read: {error.strerror or error}.") from error
    try:
        known = json.loads(first or b"{}")
    except ValueError:
        known = None
    if first and not (isinstance(known, dict) and known.keys() >= {"id", "condition", "references"}):
        raise InputError(
            f"{path}: the file exists and holds no answers of an evaluation, so it is not overwritten. Name another "
            "file. To score answers, give their file in place of the store."
        )


def summarise(answers: Sequence[EvaluatedAnswer], sizes: Collection[int]) -> EvaluationRow:
    """Return the row of one condition.

    Args:
        answers: all answers under the condition, at least one.
        sizes: size of each document under the condition, in bytes.
    """
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
