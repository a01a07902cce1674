"""Evaluating a store: answers from its memory, and from what other codecs and stages would make of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from ..errors import MissingDocumentsError, PromptError, some
from ..model.decoder import Decoder
from ..model.device import choose_device
from ..model.families.pisco import Checkpoint
from ..model.memory import Memory, Stage
from ..reader.questions import Question, read_questions
from .conditions import Condition, Documents, Source, conditions
from .measures import divergence, score
from .results import EvaluatedAnswer, Evaluation, row_of

_CHECKED_AT_ONCE = 256
_STORED = Condition("stored")
_Item = TypeVar("_Item")


def evaluate(
    uri: str | Path,
    checkpoint: str | Path,
    questions: str | Path,
    *,
    run: str | Path | None = None,
    documents: int | None = None,
    reference: str | Path | None = None,
    codecs: Sequence[str] = (),
    stage: Stage | None = None,
    text: bool = True,
    decoder_base: str | None = None,
    dtype: str = "bfloat16",
    device: str = "auto",
    max_new_tokens: int = 128,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Answer questions from a store's memory and from what else could stand in its place, and score the answers.

    Args:
        uri: the store.
        checkpoint: what it was built with.
        questions: file of questions, see ``read_questions``.
        run: TREC run that names the documents of each question; without it the questions do.
        documents: take the first so many of each question; by default 5 of a run, and all that a question names.
        reference: store of the same checkpoint whose memory is uncompressed: KL is measured against it, and recoded
            memory made from it. By default the store itself.
        codecs: recode to these only; by default to all.
        stage: recode at this stage only; by default at each that can be had.
        text: ask with the documents' text too, if the store keeps it.
        decoder_base: base decoder, in place of the name in the checkpoint.
        dtype: the decoder's arithmetic.
        device: where it computes.
        max_new_tokens: longest answer.
        batch_size: questions that are answered together.
        progress: told how many of how many answers there are.

    Raises:
        QuestionsError: if the questions or the run cannot be read.
        FingerprintMismatchError: if a store was built with another checkpoint.
        MissingDocumentsError: naming the documents a store does not hold.
        PromptError: if a question with its documents does not fit the decoder, naming the question.
        StoreError: if a store cannot be read, or a codec or stage cannot be had.
    """
    read = read_questions(questions, run=run, documents=documents)
    opened = Checkpoint(checkpoint, decoder_base=decoder_base)
    measured = Source(uri, opened)
    base = measured if reference is None else Source(reference, opened)
    asked = _Asked(measured, base, conditions(measured, base, codecs, stage, text), max_new_tokens)
    decoder = Decoder.load(opened, dtype=getattr(torch, dtype), device=choose_device(device))
    lengths = asked.check(decoder, read.asked)
    order = sorted(range(len(read.asked)), key=lengths.__getitem__, reverse=True)
    answers: dict[tuple[Condition, int], EvaluatedAnswer] = {}
    sizes: dict[Condition, dict[str, int]] = {condition: {} for condition in asked.conditions}
    for picks in _batches(order, batch_size):
        for condition, found, of_documents in asked.answer(decoder, [read.asked[i] for i in picks]):
            answers |= {(condition, i): answer for i, answer in zip(picks, found, strict=True)}
            sizes[condition] |= of_documents
            if progress is not None:
                progress(len(answers), len(order) * len(asked.conditions))
    by_condition = {c: [answers[c, i] for i in range(len(order))] for c in asked.conditions}
    return Evaluation(
        uri=measured.uri,
        reference=base.uri,
        questions=len(order),
        documents=len({doc_id for question in read.asked for doc_id in question.doc_ids}),
        ignored_queries=read.ignored_queries,
        rows=tuple(row_of(found, sizes[condition].values()) for condition, found in by_condition.items()),
        answers=tuple(answer for found in by_condition.values() for answer in found),
    )


@dataclass(frozen=True)
class _Prompt:
    """A question's prompt, open for generation and with its first reference answer, and the memory in both."""

    open: list[int]
    answered: list[int]
    answer_tokens: int
    memory: Memory


@dataclass(frozen=True)
class _Asked:
    """The conditions under which questions are asked, and where their documents are."""

    measured: Source
    reference: Source
    conditions: list[Condition]
    max_new_tokens: int

    def check(self, decoder: Decoder, questions: Sequence[Question]) -> list[int]:
        """Look for every document and try every prompt before anything is computed.

        Returns:
            Tokens of each question's prompt, memory standing for its documents.
        """
        lengths: list[int] = []
        shapes = [c for c in self.conditions if c.name != "recoded"]
        missing: dict[Source, list[str]] = {self.measured: [], self.reference: []}
        for chunk in _batches(questions, _CHECKED_AT_ONCE):
            ids = _documents_of(chunk)
            rows = {source: source.fetch(ids, missing="skip") for source in missing}
            for source, found in rows.items():
                held = set(found.doc_ids)
                missing[source] += [doc_id for doc_id in ids if doc_id not in held]
            if any(missing.values()):
                continue
            for condition in shapes:
                self._prompts(decoder, chunk, condition, self.measured.documents(rows[self.measured], condition), ids)
            memory = self.reference.documents(rows[self.reference], _STORED)
            lengths += [len(p.open) for p in self._prompts(decoder, chunk, _STORED, memory, ids)]
        for source, absent in missing.items():
            if absent:
                raise _missing(source, list(dict.fromkeys(absent)))
        return lengths

    def answer(
        self, decoder: Decoder, questions: Sequence[Question]
    ) -> Iterator[tuple[Condition, list[EvaluatedAnswer], dict[str, int]]]:
        """The answers to some questions under each condition, with the size of each document under it."""
        ids = _documents_of(questions)
        rows = {source: source.fetch(ids) for source in {self.measured, self.reference}}
        uncompressed = self.reference.documents(rows[self.reference], _STORED)
        expected = _log_probs(decoder, self._prompts(decoder, questions, _STORED, uncompressed, ids))
        for condition in self.conditions:
            source = self.reference if condition.name == "recoded" else self.measured
            documents = source.documents(rows[source], condition)
            prompts = self._prompts(decoder, questions, condition, documents, ids)
            is_reference = condition.name == "stored" and self.measured is self.reference
            found = expected if is_reference else _log_probs(decoder, prompts)
            generated = decoder.generate(
                [p.open for p in prompts], [p.memory for p in prompts], max_new_tokens=self.max_new_tokens
            )
            texts = [decoder.tokenizer.decode(each, skip_special_tokens=True).strip() for each in generated]
            scored = zip(questions, texts, prompts, expected, found, strict=True)
            answers = [_evaluated(condition, *each) for each in scored]
            yield condition, answers, dict(zip(ids, documents.sizes, strict=False))

    def _prompts(
        self,
        decoder: Decoder,
        questions: Sequence[Question],
        condition: Condition,
        documents: Documents,
        ids: list[str],
    ) -> list[_Prompt]:
        place = {doc_id: i for i, doc_id in enumerate(ids)}
        made = []
        for question in questions:
            shown, memory = documents.select([place[doc_id] for doc_id in question.doc_ids])
            try:
                prompt = decoder.prompt_ids(question.text, shown)
                answered, count = decoder.answered_ids(question.text, shown, question.answers[0])
                decoder.require_fit([prompt], self.max_new_tokens)
                decoder.require_fit([answered], 0)
            except PromptError as error:
                where = f"Question {question.id!r}, condition {condition.name!r}: "
                hint = " Or leave the documents' text out (--no-text)." if condition.name == "text" else ""
                raise PromptError(f"{where}{error}{hint}") from None
            made.append(_Prompt(prompt, answered, count, memory))
        return made


def _log_probs(decoder: Decoder, prompts: Sequence[_Prompt]) -> list[torch.Tensor]:
    return decoder.answer_log_probs(
        [p.answered for p in prompts], [p.answer_tokens for p in prompts], [p.memory for p in prompts]
    )


def _evaluated(
    condition: Condition,
    question: Question,
    text: str,
    prompt: _Prompt,
    expected: torch.Tensor,
    found: torch.Tensor,
) -> EvaluatedAnswer:
    scores = score(text, question.answers)
    labels = torch.tensor(prompt.answered[-prompt.answer_tokens :], device=found.device)
    return EvaluatedAnswer(
        id=question.id,
        condition=condition.name,
        stage=condition.stage,
        codec=condition.codec,
        question=question.text,
        answer=text,
        references=question.answers,
        match=scores.match,
        exact_match=scores.exact_match,
        f1=scores.f1,
        nll=-float(found.gather(1, labels[:, None]).double().mean()),
        kl=float(divergence(expected, found).mean()),
        answer_tokens=prompt.answer_tokens,
    )


def _missing(source: Source, absent: list[str]) -> MissingDocumentsError:
    return MissingDocumentsError(
        f"the store at {source.uri} does not hold {len(absent):,} of the documents that the questions are to be "
        f"answered from: {some(absent)}.",
        absent,
    )


def _documents_of(questions: Sequence[Question]) -> list[str]:
    return list(dict.fromkeys(doc_id for question in questions for doc_id in question.doc_ids))


def _batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    return (items[i : i + size] for i in range(0, len(items), size))
