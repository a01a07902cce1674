"""Evaluate a store: answer the same questions under every condition, and score the answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import torch
import xxhash
from orjson import dumps

from ..configs.names import Dtype, Stage
from ..errors import MissingDocumentsError, PromptError, some
from ..model.decoder import Decoder
from ..model.decoding.sensitivity import kl_divergence
from ..model.device import choose_device
from ..model.families import Checkpoint, open_checkpoint
from ..model.loading.files import digest_weights
from ..model.memory import Memory
from ..places import local_path
from ..reader.answering.model_digest import digest_model_folder
from ..reader.questions import Question, read_questions
from .conditions import Condition, EvaluatedStore, ShownDocuments, conditions
from .kept import Answers, KeptBatches
from .measures import score
from .results import EvaluatedAnswer, Evaluation, summarise

# Limits the documents that are in memory while all prompts are checked.
_CHECKED_AT_ONCE = 256
_Item = TypeVar("_Item")


def evaluate(
    uri: str | Path,
    checkpoint: str | Path | Checkpoint,
    questions: str | Path,
    *,
    run: str | Path | None = None,
    documents: int | None = None,
    reference: str | Path | None = None,
    codecs: Sequence[str] = (),
    stage: Stage | None = None,
    text: bool = True,
    decoder_base: str | None = None,
    compressor_base: str | None = None,
    dtype: Dtype = "bfloat16",
    device: str = "auto",
    max_new_tokens: int = 128,
    repetition_penalty: float | None = None,
    batch_size: int = 32,
    keep: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Answer questions from a store's memory and from everything that could stand in its place; score the answers.

    Args:
        uri: folder or object-store URI of the store.
        checkpoint: checkpoint that the store was built with, opened, or its folder.
        questions: file of questions, see ``read_questions``.
        run: TREC run that names the documents of each question; by default the questions name them.
        documents: number of documents to take of each question; by default 5 of a run, or all that a question names.
        reference: store of the same checkpoint with uncompressed memory. KL is measured against its memory, and recoded
            memory is made from it. By default the store itself.
        codecs: codecs to recode to; by default all.
        stage: stage to recode at; by default every available stage.
        text: True to answer from the documents' text too, if the store keeps it.
        decoder_base: base decoder to use in place of the one that the checkpoint names.
        compressor_base: base of the compressor to use in place of the one that the checkpoint names.
        dtype: dtype of the decoder.
        device: device of the models.
        max_new_tokens: largest number of tokens of an answer.
        repetition_penalty: factor by which tokens that an answer already has become less likely; 1.0 for none; by
            default what the checkpoint's family or the base decoder says.
        batch_size: number of questions that are answered together.
        keep: file in which finished batches are kept. The same call continues from it after a stop. Delete it when the
            evaluation is saved. By default nothing is kept.
        progress: called with the number of answers so far and in all, first before the models are loaded.

    Raises:
        InputError: if the file to continue from was begun with other settings, or cannot be written.
        QuestionsError: if the questions or the run cannot be read.
        FingerprintMismatchError: if a store was built with another checkpoint.
        MissingDocumentsError: naming the documents that a store does not hold.
        PromptError: naming a question that, with its documents, does not fit the decoder.
        StoreError: if a store cannot be read, a codec is unknown, or a stage is not available.
    """
    read = read_questions(questions, run=run, documents=documents)
    opened = checkpoint
    if isinstance(opened, str | Path):
        opened = open_checkpoint(opened, decoder_base=decoder_base, compressor_base=compressor_base)
    device = choose_device(device)
    measured = EvaluatedStore(uri, opened, device)
    compared = measured if reference is None else EvaluatedStore(reference, opened, device)
    chosen = conditions(measured, compared, codecs, stage, text)
    settings = {
        "questions": xxhash.xxh3_128_hexdigest(dumps([asdict(question) for question in read.asked])),
        "conditions": [f"{each.name} {each.stage} {each.codec}" for each in chosen],
        "store": [measured.meta.created_at.isoformat(), measured.version],
        "reference": [compared.meta.created_at.isoformat(), compared.version],
        "checkpoint": digest_weights(sorted(path for path in opened.path.rglob("*") if path.is_file())),
        "decoder_base": opened.decoder_base,
        "decoder_base_digest": digest_model_folder(opened.decoder_folder),
        "query_extra": getattr(opened, "query_extra", None),
        "dtype": dtype,
        "device": torch.device(device).type,
        "max_new_tokens": max_new_tokens,
        "repetition_penalty": repetition_penalty,
        "batch_size": batch_size,
        "pisco_index": metadata.version("pisco-index"),
    }
    kept = KeptBatches(None if keep is None else local_path(keep), settings)
    if progress is not None:
        progress(0, len(read.asked) * len(chosen))
    decoder = Decoder.load(opened, dtype=getattr(torch, dtype), device=device, repetition_penalty=repetition_penalty)
    measured.decoder = compared.decoder = decoder
    evaluator = _Evaluator(decoder, measured, compared, chosen, max_new_tokens)
    answers, rows = [], []
    for found, sizes in evaluator.run(read.asked, batch_size, kept, progress):
        answers += found
        rows.append(summarise(found, sizes))
    return Evaluation(
        uri=measured.uri,
        reference=compared.uri,
        questions=len(read.asked),
        documents=len(_documents_of(read.asked)),
        ignored_queries=read.ignored_queries,
        form=read.form,
        warnings=read.warnings,
        rows=tuple(rows),
        answers=tuple(answers),
    )


@dataclass(frozen=True)
class _Prompt:
    """A question's prompts and the memory in them.

    Attributes:
        open: token ids of the prompt that is to be continued.
        answered: token ids of the prompt with the first reference answer.
        answer_tokens: number of tokens at the end of ``answered`` that are the answer.
        memory: memory of the question's documents.
    """

    open: list[int]
    answered: list[int]
    answer_tokens: int
    memory: Memory


@dataclass(frozen=True)
class _Evaluator:
    """Answers questions with one decoder under each of some conditions."""

    decoder: Decoder
    measured: EvaluatedStore
    reference: EvaluatedStore
    conditions: list[Condition]
    max_new_tokens: int

    def run(
        self,
        questions: Sequence[Question],
        batch_size: int,
        kept: KeptBatches,
        progress: Callable[[int, int], None] | None,
    ) -> Iterator[tuple[list[EvaluatedAnswer], list[int]]]:
        """Answer all questions; yield the answers and the sizes of the documents, condition by condition."""
        lengths = self._check(questions)
        # Prompts of similar length share a batch, so that little is padded. The longest come first, so that memory that
        # does not suffice is noticed at once.
        order = sorted(range(len(questions)), key=lengths.__getitem__, reverse=True)
        answers: dict[tuple[Condition, int], EvaluatedAnswer] = {}
        sizes: dict[Condition, dict[str, int]] = {condition: {} for condition in self.conditions}
        for picks in _batches(order, batch_size):
            batch: list[Answers] = []
            known = kept.get(picks[0])
            for condition, found in zip(
                self.conditions, known or self._answer([questions[i] for i in picks]), strict=True
            ):
                batch.append(found)
                answers |= {(condition, i): answer for i, answer in zip(picks, found.answers, strict=True)}
                sizes[condition] |= found.sizes
                if progress is not None:
                    progress(len(answers), len(questions) * len(self.conditions))
            if known is None:
                kept.keep(picks[0], batch)
        for condition in self.conditions:
            yield [answers[condition, i] for i in range(len(questions))], list(sizes[condition].values())

    def _check(self, questions: Sequence[Question]) -> list[int]:
        """Find every document and try every prompt, before anything is computed.

        Returns:
            Length of each question's prompt in tokens, with memory for its documents.
        """
        lengths: list[int] = []
        tried = [condition for condition in self.conditions if condition.name != "recoded"]
        missing: dict[EvaluatedStore, list[str]] = {self.measured: [], self.reference: []}
        for chunk in _batches(questions, _CHECKED_AT_ONCE):
            ids = _documents_of(chunk)
            rows = {store: store.fetch(ids, missing="skip") for store in missing}
            for store, found in rows.items():
                held = set(found.doc_ids)
                missing[store] += [doc_id for doc_id in ids if doc_id not in held]
            # Prompts need all documents. The remaining chunks are read to report every missing one.
            if any(missing.values()):
                continue
            for condition in tried:
                shown = self.measured.show(rows[self.measured], condition, chunk, is_trial=True)
                self._prompts(chunk, condition, shown)
            own = self.reference.own
            shown = self.reference.show(rows[self.reference], own, chunk, is_trial=True)
            lengths += [len(prompt.open) for prompt in self._prompts(chunk, own, shown)]
        for store, absent in missing.items():
            if absent := list(dict.fromkeys(absent)):
                raise MissingDocumentsError(
                    f"the store at {store.uri} does not hold {len(absent):,} of the documents that the questions are "
                    f"to be answered from: {some(absent)}.",
                    absent,
                )
        return lengths

    def _answer(self, questions: Sequence[Question]) -> Iterator[Answers]:
        """Yield the answers to some questions under each condition."""
        decoder = self.decoder
        ids = _documents_of(questions)
        rows = {store: store.fetch(ids) for store in {self.measured, self.reference}}
        own = self.reference.own
        uncompressed = self.reference.show(rows[self.reference], own, questions)
        expected = self._log_probs(self._prompts(questions, own, uncompressed))
        for condition in self.conditions:
            store = self.reference if condition.name == "recoded" else self.measured
            is_reference = condition == own and self.measured is self.reference
            shown = uncompressed if is_reference else store.show(rows[store], condition, questions)
            prompts = self._prompts(questions, condition, shown)
            found = expected if is_reference else self._log_probs(prompts)
            generated = decoder.generate(
                [p.open for p in prompts], [p.memory for p in prompts], max_new_tokens=self.max_new_tokens
            )
            texts = [decoder.tokenizer.decode(each, skip_special_tokens=True).strip() for each in generated]
            scored = zip(questions, texts, prompts, expected, found, strict=True)
            sizes = dict(zip(ids, shown.sizes, strict=False))
            yield Answers([_scored(condition, *each) for each in scored], sizes)

    def _prompts(self, questions: Sequence[Question], condition: Condition, shown: ShownDocuments) -> list[_Prompt]:
        """Return the questions' prompts under a condition.

        Args:
            questions: the questions.
            condition: the condition, for messages.
            shown: the documents of these questions under that condition.

        Raises:
            PromptError: naming the first question whose prompt does not fit the decoder.
        """
        decoder = self.decoder
        prompts = []
        for number, question in enumerate(questions):
            documents, memory = shown.of(number)
            try:
                prompt = decoder.prompt_ids(question.text, documents)
                answered, count = decoder.answered_ids(question.text, documents, question.answers[0])
                decoder.require_fit([prompt], self.max_new_tokens)
                decoder.require_fit([answered], 0)
            except PromptError as error:
                where = f"Question {question.id!r}, condition {condition.name!r}: "
                hint = " Or leave out the documents' text (--no-text)." if condition.name == "text" else ""
                raise PromptError(f"{where}{error}{hint}") from None
            prompts.append(_Prompt(prompt, answered, count, memory))
        return prompts

    def _log_probs(self, prompts: Sequence[_Prompt]) -> list[torch.Tensor]:
        return self.decoder.answer_log_probs(
            [p.answered for p in prompts], [p.answer_tokens for p in prompts], [p.memory for p in prompts]
        )


def _scored(
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
        kl=float(kl_divergence(expected, found).mean()),
        answer_tokens=prompt.answer_tokens,
    )


def _documents_of(questions: Sequence[Question]) -> list[str]:
    return list(dict.fromkeys(doc_id for question in questions for doc_id in question.doc_ids))


def _batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    return (items[i : i + size] for i in range(0, len(items), size))
