"""Distillation: a teacher reads documents as text and answers questions about them, as data for fine-tuning.

The file that it writes holds JSON lines of ``{"id", "documents": [{"title", "text"}], "question", "answer",
"doc_ids"}``. ``FILE.settings.json`` beside it holds what determines the answers of all questions; a distillation with
other settings does not continue the file. The longest prompts are answered first, so that a batch that does not fit
into memory fails at once.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, GenerationConfig

from ..configs import CompressionConfig, CorpusConfig
from ..corpus import Document, find_documents, open_corpus
from ..errors import CheckpointError, PromptError, TrainingError, some
from ..model.device import choose_device
from ..model.loading.bases import local_folder
from ..model.loading.files import digest_weights
from ..model.loading.models import load_model, load_tokenizer
from ..model.prompt import prompt_text
from ..places import input_paths, local_path
from ..reader.answering.continued import WriterLock, read_settings, require_equal, settings_path, write_settings
from ..reader.answering.model_digest import digest_model_folder
from ..reader.questions import Question, read_questions
from .data import chunks


@dataclass(frozen=True)
class Distillation:
    """The result of a distillation.

    Attributes:
        written: number of answers added to the file.
        before: number of answers that the file held already.
        empty: number of questions left out because the teacher's answer was empty.
        unfinished: number of questions left out because the answer did not end within ``max_new_tokens``.
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
    """Write a teacher's answers to questions about documents. The same call again resumes.

    A file without settings beside it is one of an earlier version. It is continued, with the settings of this call.

    Args:
        questions: file of questions, see ``read_questions``; they need no answers.
        corpus: files and folders with the documents.
        teacher: folder of a causal LM with a chat template; it reads the decoder's prompt, with text instead of memory.
        out: file of JSON lines to write. Lines that it already holds are kept, and their questions not asked again.
        run: TREC run that names the documents of each question; default: the questions' own ``doc_ids``.
        documents: number of documents of each question, the first ones; default: 5 from a run, or all ``doc_ids``.
        corpus_config: settings for reading the corpus.
        max_new_tokens: largest number of tokens of an answer, its end included; longer answers are left out.
        batch_size: number of questions that are answered together.
        dtype: dtype of the teacher's weights and arithmetic.
        device: device of the teacher.
        progress: callback that is given the number of finished questions and the total.

    Raises:
        QuestionsError: the questions or the run cannot be read.
        CorpusError: the corpus cannot be read.
        TrainingError: documents are not in the corpus (the message names them), or ``out`` holds something else or is
            one of the files to read.
        InputError: ``out`` was begun with other settings (the message names them), another run is writing it, or its
            settings cannot be read or written.
        CheckpointError: the teacher cannot be loaded or has no chat template.
        PromptError: a question with its documents does not fit the teacher (the message names the question).
    """
    out = local_path(out, TrainingError)
    _require_other_file(out, [questions, *corpus, *([] if run is None else [run])])
    asked = read_questions(questions, run=run, documents=documents, answered=False).asked
    out.parent.mkdir(parents=True, exist_ok=True)
    with WriterLock(out):
        done, complete = _answered(out, {question.id: question for question in asked})
        remaining = [question for question in asked if question.id not in done]
        # A finished file needs neither corpus nor teacher.
        settings = _settings(corpus, corpus_config, out, teacher) | {"dtype": dtype} if remaining else {}
        _require_same_settings(out, complete, settings)
        if out.exists() and complete < out.stat().st_size:
            os.truncate(out, complete)
        if not remaining:
            return Distillation(0, len(done), 0, 0)
        found = _find(remaining, corpus, corpus_config)
        model = _Teacher(
            local_path(teacher, CheckpointError), found, dtype=dtype, device=device, max_new_tokens=max_new_tokens
        )
        lengths = model.prompt_lengths(remaining)
        order = sorted(range(len(remaining)), key=lengths.__getitem__, reverse=True)
        counts: Counter[str] = Counter()
        if not complete or not settings_path(out).exists():
            write_settings(out, settings)
        with out.open("ab") as file:
            for picks in chunks(order, batch_size):
                counts += _write_answers(file, model, [remaining[i] for i in picks])
                if progress is not None:
                    progress(len(done) + counts.total(), len(asked))
    return Distillation(counts["written"], len(done), counts["empty"], counts["unfinished"])


def _settings(corpus: Sequence[str | Path], config: CorpusConfig, out: Path, teacher: str | Path) -> dict[str, Any]:
    """Return the inputs that determine the answers, as JSON values: digests of them, and the settings of the corpus.

    The device and the size of a batch are left out: they change no more than the rounding. So is the length of answers,
    since all that were written have ended. Questions and their documents are compared line by line.
    """
    files = [Path(source.path) for source in open_corpus(corpus, config).sources]
    settings = {
        "pisco_index": metadata.version("pisco-index"),
        # The answers may be written into a folder of the corpus.
        "corpus": digest_weights([path for path in files if not (out.exists() and out.samefile(path))]),
        "corpus_settings": config.model_dump(mode="json"),
    }
    # Loading a missing teacher is an error of its own.
    with suppress(CheckpointError):
        settings["teacher"] = digest_model_folder(local_folder(local_path(teacher, CheckpointError)))
    return settings


def _require_same_settings(out: Path, complete: int, settings: Mapping[str, Any]) -> None:
    """Check that a file whose complete lines have a number of bytes was begun with the same settings."""
    if complete and settings_path(out).exists():
        begun = read_settings(out, "Name another file.")
        names = [name for name in settings if name in begun and name != "pisco_index"]
        require_equal(out, begun, settings, names, "or name another file.")


def _write_answers(file: BinaryIO, teacher: "_Teacher", questions: Sequence[Question]) -> Counter[str]:
    """Answer questions, write the answers, and return the numbers of written, empty and unfinished ones."""
    counts: Counter[str] = Counter()
    for question, answer in zip(questions, teacher.answer(questions), strict=True):
        if not answer:
            counts["unfinished" if answer is None else "empty"] += 1
            continue
        read = [_record(teacher.found[doc_id]) for doc_id in question.doc_ids]
        line: dict[str, Any] = {"id": question.id, "documents": read, "question": question.text, "answer": answer}
        line["doc_ids"] = question.doc_ids
        file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        counts["written"] += 1
    file.flush()
    return counts


def _require_other_file(out: Path, inputs: Sequence[str | Path]) -> None:
    written = [each for each in (out, settings_path(out)) if each.exists()]
    for path in (path for place in inputs for path in input_paths(place)[1] if path.exists()):
        for each in written:
            if each.samefile(path):
                raise TrainingError(
                    f"{each}: is one of the files to read, so it cannot be written. Name another file to write."
                )


def _answered(out: Path, asked: Mapping[str, Question]) -> tuple[set[str], int]:
    """Return the ids of the questions that a file answers already, and the size of its finished lines in bytes."""
    if not out.exists():
        return set(), 0
    done: set[str] = set()
    complete = 0
    with out.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{out}, line {number}"
            if line.endswith(b"\n"):
                complete += len(line)
                done.add(_answered_id(line, where, asked))
                continue
            # Cut off only a line that a distillation of these questions could have begun.
            begun = (orjson.dumps({"id": question_id, "documents": []})[: -len("]}")] for question_id in asked)
            if not any(line.startswith(each) or each.startswith(line) for each in begun):
                raise _foreign(where)
    return done, complete


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
            f"{where}: answers {question!r} as {question_id!r}, which the questions do not ask. Give the questions "
            "that the file was begun with, or name another file to write."
        )
    # Earlier versions wrote no ids.
    if (doc_ids := record.get("doc_ids")) is not None and doc_ids != [*known.doc_ids]:
        raise TrainingError(
            f"{where}: answers {question_id!r} from {some(doc_ids)}, but its documents are now {some(known.doc_ids)}. "
            "Give the run, or the number of documents, that the file was begun with, or name another file to write."
        )
    return known.id


def _foreign(where: str) -> TrainingError:
    return TrainingError(f"{where}: not a line that a distillation wrote. Name another file to write.")


def _find(questions: Sequence[Question], paths: Sequence[str | Path], config: CorpusConfig) -> dict[str, Document]:
    """Return the documents that questions name, from one pass over the corpus."""
    needed = {doc_id for question in questions for doc_id in question.doc_ids}
    found = {each.doc_id: each for each in find_documents(paths, config, needed) if each.text.strip()}
    if missing := sorted(needed - found.keys()):
        raise TrainingError(
            f"{len(missing)} of the {len(needed)} documents of the questions are not in the corpus, or have no text: "
            f"{some(missing)}. Give the corpus that these ids belong to."
        )
    return found


class _Teacher:
    """A causal LM that answers questions greedily, from the text of their documents."""

    def __init__(self, folder: Path, found: Mapping[str, Document], *, dtype: str, device: str, max_new_tokens: int):
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
        # generate() would take settings that are not given from here: a repetition penalty, beams, sampling.
        self.model.generation_config = GenerationConfig()

    def prompt_lengths(self, questions: Sequence[Question]) -> list[int]:
        """Return the number of tokens of each prompt.

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
                    f"tokens, which does not fit the teacher's context of {limit} together with an answer of up to "
                    f"{self.max_new_tokens}. Give fewer documents (--documents) or new tokens (--max-new-tokens), or "
                    "leave the question out."
                )
            lengths.append(length)
        return lengths

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question]) -> list[str | None]:
        """Answer questions together. An answer that does not end within ``max_new_tokens`` is None."""
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
        """Return the answer up to its end, without the padding behind it; None if it has no end."""
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
