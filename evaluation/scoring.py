"""Score a file of answers against the questions' reference answers, and its documents against judgements."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, QuestionsError, some
from ..reader.answering import AnsweredQuestion, read_answers
from ..reader.questions import Question, RunFile, read_questions
from .measures import Scores, score
from .qrels import Qrels, read_qrels

MEASURES = ("R@1", "R@5", "RR", "nDCG@10")
"""Measures of retrieval by default, in the notation of ir_measures."""

# Documents of a run that are compared for a query: as many as trec_eval takes.
_DEPTH = 1000


@dataclass(frozen=True)
class AnswerScores:
    """Scores of a file of answers. A question without an answer has the scores of an empty one.

    Attributes:
        path: file of the answers.
        questions: number of questions that are scored.
        failed: number of these questions that have no answer, but an error.
        unanswered: ids of the questions that have no line in the file.
        ignored: number of lines whose question is not among the questions.
        answered_by_reference: number of questions with a reference answer; the next three are means over them.
        match: share of answers that contain a reference answer, 0 to 1; None without reference answers.
        exact_match: share of answers that equal a reference answer, 0 to 1; None without reference answers.
        f1: mean F1 over words, 0 to 1; None without reference answers.
        retrieval: measures of the documents, by name; empty without judgements.
        judged: number of questions with a relevant document; the measures are means over them.
        judged_by: origin of the judgements: ``qrels``, ``questions`` or an empty text.
        documents_from: origin of the documents that are measured: ``run`` or ``answers``.
        form: form of the file of questions, as it was recognised.
        warnings: sentences about what was ignored in the files.
    """

    path: str
    questions: int
    failed: int
    unanswered: tuple[str, ...]
    ignored: int
    answered_by_reference: int
    match: float | None
    exact_match: float | None
    f1: float | None
    retrieval: Mapping[str, float] = field(default_factory=dict)
    judged: int = 0
    judged_by: str = ""
    documents_from: str = "answers"
    form: str = ""
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as values that JSON can hold."""
        return asdict(self)


def score_answers(
    answers: str | Path,
    questions: str | Path,
    *,
    qrels: str | Path | None = None,
    run: str | Path | None = None,
    measures: Sequence[str] = MEASURES,
) -> AnswerScores:
    """Score the answers that ``answer_file`` has written.

    Retrieval is measured by ir_measures over the documents of the run, or those that each question was answered from.
    A document is relevant if the qrels say so. Without qrels, it is relevant if the question names it, unless the
    questions were answered from the documents that they name: then nothing is measured.

    Args:
        answers: file of answers.
        questions: file of questions with reference answers, documents, or both.
        qrels: file of judgements (see ``read_qrels``).
        run: run whose documents are measured in place of those in the answers.
        measures: measures of retrieval of trec_eval, or RR with a cutoff, in the notation of ir_measures.

    Raises:
        QuestionsError: if a file cannot be read, no answer belongs to a question, or there is nothing to score.
        ConfigError: if a measure is unknown, lacks its cutoff, or is none of trec_eval's.
    """
    lines = {each.id: each for each in read_answers(answers)}
    read = read_questions(questions, answered=False, documented=False)
    scored = [each for each in read.asked if each.id in lines]
    if not scored:
        raise QuestionsError(
            f"{answers}: none of its {len(lines):,} answers belongs to a question in {questions}. Give the questions "
            "that were answered."
        )
    listed = None if run is None else RunFile(run, depth=_DEPTH)
    relevant, judged_by = _judgements(scored, lines, qrels, listed)
    found = [score(lines[each.id].answer or "", each.answers) for each in scored if each.answers]
    if not found and not relevant:
        raise QuestionsError(
            f"{questions}: there is nothing to score: the questions have no reference answers, and nothing judges "
            "their documents. Add answers, or give judgements (--qrels)."
        )
    return AnswerScores(
        path=str(answers),
        questions=len(scored),
        failed=sum(lines[each.id].answer is None for each in scored),
        unanswered=tuple(each.id for each in read.asked if each.id not in lines),
        ignored=len(lines) - len(scored),
        answered_by_reference=len(found),
        **_means(found),
        retrieval=_measure(relevant, _ranked(scored, lines, listed), measures) if relevant else {},
        judged=len(relevant),
        judged_by=judged_by if relevant else "",
        documents_from="answers" if run is None else "run",
        form=read.form,
        warnings=() if listed is None else listed.warnings,
    )


def _means(scores: Sequence[Scores]) -> dict[str, float | None]:
    names = ("match", "exact_match", "f1")
    return {name: sum(getattr(each, name) for each in scores) / len(scores) if scores else None for name in names}


def _judgements(
    questions: Sequence[Question], lines: Mapping[str, AnsweredQuestion], qrels: str | Path | None, run: RunFile | None
) -> tuple[Qrels, str]:
    """Return the judgements of the questions that have a relevant document, and their origin."""
    if qrels is not None:
        judged = read_qrels(qrels)
        own = {each.id: judged[each.id] for each in questions if each.id in judged}
        if not own:
            raise QuestionsError(
                f"{qrels}: the file judges none of the questions, but {some(list(judged), 3)}. Its first column must "
                "hold the questions' ids."
            )
        return {qid: judgements for qid, judgements in own.items() if any(r > 0 for r in judgements.values())}, "qrels"
    if run is None and not any(lines[each.id].scores for each in questions):
        # The questions were answered from the documents that they name. There is nothing to measure.
        return {}, ""
    return {each.id: dict.fromkeys(each.doc_ids, 1) for each in questions if each.doc_ids}, "questions"


def _ranked(
    questions: Sequence[Question], lines: Mapping[str, AnsweredQuestion], run: RunFile | None
) -> dict[str, tuple[str, ...]]:
    """Return the ids of the documents to measure, best first, by question."""
    if run is None:
        return {each.id: lines[each.id].documents for each in questions}
    found = run.retrieve({each.id: each.text for each in questions}, hits=_DEPTH)
    return {question_id: tuple(hit.doc_id for hit in hits) for question_id, hits in found.items()}


def _measure(relevant: Qrels, ranked: Mapping[str, Sequence[str]], measures: Sequence[str]) -> dict[str, float]:
    """Return the measures, each a mean over the judged questions."""
    import ir_measures

    # ir_measures' other providers need programs that are not installed.
    providers = ir_measures.providers.FallbackProvider([ir_measures.pytrec_eval, ir_measures.msmarco])
    # The order is ours: trec_eval would order documents of equal score by their ids.
    run = {qid: {doc_id: -float(place) for place, doc_id in enumerate(dict.fromkeys(ranked[qid]))} for qid in relevant}
    found: dict[str, float] = {}
    for name in measures:
        try:
            measure = ir_measures.parse_measure(name)
            # With a cutoff of 0, pytrec_eval would end this process.
            if not providers.supports(measure) or measure.params.get("cutoff", 1) < 1:
                raise ValueError(name)
            found[str(measure)] = float(providers.calc_aggregate([measure], relevant, run)[measure])
        except (NameError, ValueError, SyntaxError, AssertionError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{name!r} is not a measure of trec_eval in the notation of ir-measur.es, with its cutoff, at least 1. "
                "Give for example R@5, P@5, RR@10, nDCG@10 or AP."
            ) from error
    return found
