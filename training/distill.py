"""Distillation: a teacher reads documents as text and answers questions about them, as data for fine-tuning.

The file that is written holds a JSON object a line, ``{"id", "documents": [{"title", "text"}], "question", "answer"}``,
in the order in which they are answered: the longest prompts first, so that what does not fit in memory fails at once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import orjson
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, GenerationConfig

from ..configs import CompressionConfig, CorpusConfig
from ..corpus import Document, open_corpus
from ..errors import PromptError, TrainingError, some
from ..model.device import choose_device
from ..model.families.pisco import load_model, load_tokenizer
from ..model.prompt import prompt_text
from ..reader.questions import Question, read_questions

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Distillation:
    """What was done.

    Attributes:
        written: answers added to the file.
        before: answers that it held already.
        empty: questions that the teacher answered with nothing, and which are left out.
        unfinished: questions whose answer did not end within ``max_new_tokens``, and which are left out.
    """

    written: int
    before: int
    empty: int
    unfinished: int


def distill(
    questions: str | Path,
    corpus: Sequence[str | Path],
    teacher: str | Path,
    out: str | Path,
    *,
    run: str | Path | None = None,
    documents: int | None = None,
    corpus_config: CorpusConfig = CorpusConfig(),  # noqa: B008  (frozen)
    max_new_tokens: int = 128,
    batch_size: int = 16,
    dtype: str = "bfloat16",
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Distillation:
    """Write a teacher's answers to questions about documents; called again, it goes on.

    Args:
        questions: file of questions, see ``read_questions``; they need no answers.
        corpus: files and folders with the documents.
        teacher: a causal LM's folder, with a chat template; it reads the decoder's prompt with text for memory.
        out: file of JSON lines to write. Lines that it holds are kept and their questions not asked again.
        run: TREC run that names the documents of each question; without it the questions do.
        documents: take the first so many of each question; by default 5 of a run, and all that a question names.
        corpus_config: how the corpus is read.
        max_new_tokens: longest answer, its end counted; a longer one is left out.
        batch_size: questions that are answered together.
        dtype: the teacher's arithmetic.
        device: where it computes.
        progress: told how many of how many questions are done.

    Raises:
        QuestionsError: if the questions or the run cannot be read.
        CorpusError: if the corpus cannot.
        TrainingError: if documents are not in the corpus, naming them, or ``out`` holds something else or is itself
            read from.
        CheckpointError: if the teacher cannot be loaded or has no chat template.
        PromptError: if a question with its documents does not fit the teacher, naming the question.
    """
    out = Path(out)
    _require_other_file(out, [questions, *corpus, *([] if run is None else [run])])
    asked = read_questions(questions, run=run, documents=documents, answered=False).asked
    done = _answered(out, {question.id: question for question in asked})
    remaining = [question for question in asked if question.id not in done]
    if not remaining:
        return Distillation(0, len(done), 0, 0)
    found = _find(remaining, corpus, corpus_config)
    model = _Teacher(teacher, found, dtype=dtype, device=device, max_new_tokens=max_new_tokens)
    lengths = model.prompt_lengths(remaining)
    order = sorted(range(len(remaining)), key=lengths.__getitem__, reverse=True)
    written = empty = unfinished = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("ab") as file:
        for picks in _chunks(order, batch_size):
            batch = [remaining[i] for i in picks]
            for question, answer in zip(batch, model.answer(batch), strict=True):
                if not answer:
                    unfinished += answer is None
                    empty += answer is not None
                    continue
                read = [_record(found[doc_id]) for doc_id in question.doc_ids]
                line = {"id": question.id, "documents": read, "question": question.text, "answer": answer}
                file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
                written += 1
            file.flush()
            if progress is not None:
                progress(len(done) + written + empty + unfinished, len(asked))
    return Distillation(written, len(done), empty, unfinished)


def _require_other_file(out: Path, inputs: Sequence[str | Path]) -> None:
    for path in map(Path, inputs):
        if out.exists() and path.exists() and out.samefile(path):
            raise TrainingError(f"{out}: is read from, and cannot be written. Name another file to write.")


def _answered(out: Path, asked: Mapping[str, Question]) -> set[str]:
    """Ids of the questions that a file answers already; a last line that was not finished is cut off."""
    if not out.exists():
        return set()
    done: set[str] = set()
    whole = 0
    torn = b""
    with out.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{out}, line {number}"
            if line.endswith(b"\n"):
                whole += len(line)
                done.add(_answered_id(line, where, asked))
                continue
            torn = line
            # Only what a distillation of these questions would have begun with.
            begun = (orjson.dumps({"id": question_id, "documents": []})[: -len("]}")] for question_id in asked)
            if not any(torn.startswith(each) or each.startswith(torn) for each in begun):
                raise _foreign(where)
    if torn:
        with out.open("r+b") as file:
            file.truncate(whole)
    return done


def _answered_id(line: bytes, where: str, asked: Mapping[str, Question]) -> str:
    try:
        record = orjson.loads(line)
        question_id, question = record["id"], record["question"]
        known = asked.get(question_id)
        complete = isinstance(record["documents"], list) and isinstance(record["answer"], str)
    except (orjson.JSONDecodeError, TypeError, KeyError):
        raise _foreign(where) from None
    if not complete:
        raise _foreign(where)
    if known is None or known.text != question:
        raise TrainingError(
            f"{where}: answers {question!r} as {question_id!r}, which the questions do not ask. Go on with the "
            "questions it was begun with, or name another file to write."
        )
    return known.id


def _foreign(where: str) -> TrainingError:
    return TrainingError(f"{where}: no line of a distillation. Name another file to write.")


def _find(questions: Sequence[Question], paths: Sequence[str | Path], config: CorpusConfig) -> dict[str, Document]:
    """The documents that questions name, from one reading of the corpus."""
    needed = {doc_id for question in questions for doc_id in question.doc_ids}
    found: dict[str, Document] = {}
    for source in open_corpus(paths, config).sources:
        for document in source.read(0, None):
            if document.doc_id in needed and document.text.strip():
                found[document.doc_id] = document
                if len(found) == len(needed):
                    return found
    missing = sorted(needed - found.keys())
    raise TrainingError(
        f"{len(missing)} of the {len(needed)} documents that are asked about are not in the corpus, or have no text: "
        f"{some(missing)}. Give the corpus that the ids are of."
    )


class _Teacher:
    """A causal LM that answers from documents' text, greedily."""

    def __init__(
        self, folder: str | Path, found: Mapping[str, Document], *, dtype: str, device: str, max_new_tokens: int
    ):
        self.found = found
        self.max_new_tokens = max_new_tokens
        self.tokenizer = load_tokenizer(folder)
        self.device = choose_device(device)
        self.model = load_model(AutoModelForCausalLM, str(folder), getattr(torch, dtype)).to(self.device)
        settings = self.model.generation_config
        end = settings.eos_token_id if settings else None
        if end is None:
            end = self.tokenizer.eos_token_id
        self.ends: list[int] = end if isinstance(end, list) else [] if end is None else [end]
        # generate() would fill what is not said from here: a repetition penalty, beams, sampling.
        self.model.generation_config = GenerationConfig()

    def prompt_lengths(self, questions: Sequence[Question]) -> list[int]:
        """Tokens of each prompt.

        Raises:
            PromptError: naming the first question whose prompt does not fit.
        """
        limit = getattr(self.model.config, "max_position_embeddings", None)
        lengths = []
        for question in questions:
            length = len(self._prompt_ids(question))
            if limit is not None and length + self.max_new_tokens > limit:
                raise PromptError(
                    f"The question {question.id!r} with its {len(question.doc_ids)} documents is a prompt of {length} "
                    f"tokens; it and an answer of up to {self.max_new_tokens} do not fit the teacher's context of "
                    f"{limit}. Give fewer documents (--documents) or new tokens, or leave the question out."
                )
            lengths.append(length)
        return lengths

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question]) -> list[str | None]:
        """Answer questions together; None stands for an answer that did not come to its end."""
        prompts = [torch.tensor(self._prompt_ids(question), device=self.device) for question in questions]
        pad = self.tokenizer.pad_token_id or 0
        ids = pad_sequence(prompts, batch_first=True, padding_value=pad, padding_side="left")
        mask = pad_sequence([torch.ones_like(each) for each in prompts], batch_first=True, padding_side="left")
        settings = GenerationConfig(
            max_new_tokens=self.max_new_tokens, do_sample=False, eos_token_id=self.ends or None, pad_token_id=pad
        )
        output = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        return [self._finished(said) for said in output[:, ids.shape[1] :].tolist()]

    def _finished(self, said: Sequence[int]) -> str | None:
        """An answer up to its end; what fills its row is behind that."""
        for place, token in enumerate(said):
            if token in self.ends:
                return self.tokenizer.decode(said[: place + 1], skip_special_tokens=True).strip()
        return None

    def _prompt_ids(self, question: Question) -> list[int]:
        texts = [_text(self.found[doc_id]) for doc_id in question.doc_ids]
        prompt = prompt_text(self.tokenizer, question.text.strip(), texts)
        return self.tokenizer(prompt, add_special_tokens=False)["input_ids"]


def _text(document: Document) -> str:
    return CompressionConfig().input_text(document.text, document.title)


def _record(document: Document) -> dict[str, Any]:
    return {"title": document.title, "text": document.text}


def _chunks(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk
