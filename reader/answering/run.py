"""Answer a file of questions into a file of answers, or continue such a file."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import xxhash
from orjson import dumps

from ...configs.names import DOCUMENTS, Dtype
from ...errors import (
    AnsweringInterruptedError,
    InputError,
    QuestionsError,
    StoreError,
    StoreUnreachableError,
    some,
)
from ...interrupt import Interrupt
from ...model.decoder import Decoder
from ...model.decoding.batches import default_token_budget
from ...model.device import choose_device
from ...model.families import Checkpoint, open_checkpoint
from ...model.loading.files import digest_weights
from ...places import input_path, local_path
from ...redaction import without_credentials
from ..compatibility import require_checkpoint
from ..memory_source import open_source
from ..questions import Question, Questions, RunFile, read_questions
from ..reader import Reader
from ..retriever import Retriever, StoreRetriever
from .answers_file import AnswersFile, is_begun, part_path, require_place
from .continued import read_settings, settings_path
from .engine import WINDOW, AnsweredQuestion, Answering
from .model_digest import digest_model_folder


@dataclass(frozen=True)
class AnswerReport:
    """Result of answering a file of questions.

    Attributes:
        path: file of the answers.
        form: form of the file of questions, as it was recognised.
        documents_from: origin of the documents: ``questions``, ``run`` or ``search``.
        questions: number of questions.
        before: number of questions that earlier runs have answered.
        failed: ids of the questions without an answer; their lines say why.
        missing: ids of the documents that the store does not hold, or without memory, and that were left out.
        memory_tokens: number of memory vectors in all prompts.
        text_tokens: number of tokens of text that they stand for.
        seconds: duration of this run, without loading the models.
        warnings: sentences about what was ignored in the files.
    """

    path: str
    form: str
    documents_from: str
    questions: int
    before: int
    failed: tuple[str, ...]
    missing: tuple[str, ...]
    memory_tokens: int
    text_tokens: int
    seconds: float
    warnings: tuple[str, ...]

    @property
    def questions_per_second(self) -> float:
        """Number of questions that this run has answered in a second."""
        return (self.questions - self.before) / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values that JSON can hold."""
        return asdict(self) | {"questions_per_second": self.questions_per_second}


@dataclass(frozen=True)
class AnswerSettings:
    """Settings of how questions are answered.

    Attributes:
        documents: number of documents of a question, best first; None for 5 of a run or search, or all that a question
            names.
        search: True to search the store for documents although the questions name some.
        dtype: dtype of the decoder.
        device: device of the models.
        max_new_tokens: largest number of tokens of an answer.
        repetition_penalty: factor by which tokens that an answer already has become less likely; 1.0 for none; None for
            what the checkpoint's family or the base decoder says.
        token_budget: largest number of tokens in a batch, padding and new tokens included; None for the decoder's own.
        window: number of questions whose prompts are sorted by length together.
    """

    documents: int | None = None
    search: bool = False
    dtype: Dtype = "bfloat16"
    device: str = "auto"
    max_new_tokens: int = 128
    repetition_penalty: float | None = None
    token_budget: int | None = None
    window: int = WINDOW


def answer_file(
    uri: str | Path,
    checkpoint: str | Path | Checkpoint,
    questions: str | Path,
    out: str | Path,
    *,
    run: str | Path | None = None,
    settings: AnswerSettings = AnswerSettings(),
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> AnswerReport:
    """Answer a file of questions into a file with one JSON line each, or continue where an earlier run was stopped.

    The documents come from the run; without one from the questions, if any names some; otherwise from a search of the
    store. A continued file is answered from the version of the store that it was begun with.

    Args:
        uri: folder or object-store URI of the store.
        checkpoint: checkpoint that the store was built with, opened, or its folder.
        questions: file of questions, see ``read_questions``; they need no answers and no documents.
        out: file of the answers. ``FILE.settings.json`` beside it says how they were made.
        run: run to take the documents from.
        settings: settings that determine the answers.
        overwrite: True to begin anew. The answers that the file holds are dropped when the first batch is answered.
        progress: callback that is given the number of questions answered and the total.

    Raises:
        QuestionsError: if the questions or the run cannot be read.
        InputError: if the file was begun with other settings, holds something else than answers, is the file of the
            questions, or cannot be written.
        FingerprintMismatchError: if the store was built with another checkpoint.
        StoreError: if the store cannot be read, or has no search index and one is needed.
        AnsweringInterruptedError: if a signal came. The same call continues.
    """
    out = local_path(out)
    if run is not None and settings.search:
        raise InputError("A run and a search both name documents. Give one of the two.")
    require_place(out)
    _require_apart(out, questions, run)
    read = read_questions(questions, answered=False, documented=False)
    listed = None if run is None else RunFile(run, depth=settings.documents or DOCUMENTS)
    opened = open_checkpoint(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
    with Interrupt() as interrupt, _reader(uri, out, overwrite) as reader:
        require_checkpoint(reader, opened)
        retriever = _retriever(reader, read.asked, listed, settings)
        device = choose_device(settings.device)
        if settings.token_budget is None:
            settings = replace(settings, token_budget=default_token_budget(device))
        determined = _determined(reader, opened, read.asked, listed, retriever, device, settings)
        determined["questions_file"] = str(input_path(questions, QuestionsError).absolute())
        texts = {question.id: question.text for question in read.asked}
        ids = [question.id for question in read.asked]
        with AnswersFile(out, determined, ids, texts=texts, overwrite=overwrite) as file, _naming(out):
            tally = _Tally(before=len(file.before) + len(file.known))
            for answered in file.before:
                tally.add(answered)
            if len(file.before) < len(ids):
                answering = _answering(reader, opened, retriever, device, settings)
                tally.began = time.monotonic()
                for answered in answering.answer(
                    read.asked,
                    start=len(file.before),
                    known=file.known,
                    keep=file.keep,
                    progress=progress,
                    should_stop=lambda: interrupt.requested,
                ):
                    file.append(answered)
                    tally.add(answered)
    return tally.report(out, read, determined["documents_from"], listed)


def _require_apart(out: Path, questions: str | Path, run: str | Path | None) -> None:
    """Check that the files to read are files, and that none of them is written."""
    for path in (input_path(each, QuestionsError) for each in (questions, run) if each is not None):
        if path.exists() and not path.is_file():
            raise QuestionsError(f"{path}: this is not a regular file. Save what it gives in a file, and name that.")
        written = [each for each in (out, settings_path(out), part_path(out)) if each.exists() and path.exists()]
        if any(each.samefile(path) for each in written):
            raise InputError(f"{out}: the questions or the run would be overwritten by answers. Name another file.")


def _reader(uri: str | Path, out: Path, overwrite: bool) -> Reader:
    """Open the store at the version that the answers in a file were made from; at the latest if there are none."""
    version = None if overwrite or not is_begun(out) else read_settings(out).get("store_version")
    if not isinstance(version, int):
        return Reader(uri)
    try:
        return Reader(uri, version=version)
    except StoreUnreachableError:
        raise
    except StoreError as error:
        # If the store as a whole cannot be read, that is the error.
        with Reader(uri) as latest:
            raise StoreError(
                f"{out}: the file was begun with version {version} of the store at {latest.uri}, which was cleaned up "
                "or replaced since. Begin anew with --overwrite, or name another file."
            ) from error


def _retriever(
    reader: Reader, questions: Sequence[Question], run: RunFile | None, settings: AnswerSettings
) -> Retriever | None:
    """Return the retriever of documents; None if the questions name them."""
    if run is not None:
        if not any(question.id in run.queries for question in questions):
            raise QuestionsError(
                f"The run has documents for none of the {len(questions):,} questions, but for "
                f"{some(list(run.queries), 3)}. Its first column must hold the questions' ids."
            )
        return run
    if not settings.search and any(question.doc_ids for question in questions):
        return None
    # A store without an index is reported before the models are loaded.
    reader.require_index()
    return StoreRetriever(reader)


def _answering(
    reader: Reader, checkpoint: Checkpoint, retriever: Retriever | None, device: str, settings: AnswerSettings
) -> Answering:
    source = open_source(reader, checkpoint, device)
    decoder = Decoder.load(
        checkpoint,
        dtype=getattr(torch, settings.dtype),
        device=device,
        repetition_penalty=settings.repetition_penalty,
    )
    if settings.token_budget is not None:
        decoder.token_budget = settings.token_budget
    return Answering(
        source,
        decoder,
        retriever,
        hits=settings.documents,
        max_new_tokens=settings.max_new_tokens,
        window=settings.window,
    )


def _determined(
    reader: Reader,
    checkpoint: Checkpoint,
    questions: Sequence[Question],
    run: RunFile | None,
    retriever: Retriever | None,
    device: str,
    settings: AnswerSettings,
) -> dict[str, Any]:
    """Return all that determines the answers, as JSON values."""
    asked = [(each.id, each.text, each.doc_ids if retriever is None else ()) for each in questions]
    files = sorted(path for path in checkpoint.path.rglob("*") if path.is_file())
    origin = "run" if run is not None else "questions" if retriever is None else "search"
    return {
        "pisco_index": metadata.version("pisco-index"),
        "store": without_credentials(reader.uri),
        "store_version": reader.version,
        "store_created_at": reader.meta.created_at.isoformat(),
        "fingerprint": reader.meta.fingerprint.digest,
        "checkpoint": digest_weights(files),
        "decoder_base": checkpoint.decoder_base,
        "decoder_base_digest": digest_model_folder(checkpoint.decoder_folder),
        "query_extra": getattr(checkpoint, "query_extra", None),
        "questions": xxhash.xxh3_128_hexdigest(dumps(asked)),
        "documents_from": origin,
        "run": None if run is None else run.digest,
        **{name: value for name, value in asdict(settings).items() if name != "search"},
        "device": torch.device(device).type,
    }


@dataclass
class _Tally:
    """Sums over the answers of a file.

    Attributes:
        before: number of answers that the file held.
        began: time at which this run began to answer.
    """

    before: int
    began: float | None = None
    _questions: int = 0
    _memory_tokens: int = 0
    _text_tokens: int = 0
    _failed: list[str] = field(default_factory=list)
    _missing: dict[str, None] = field(default_factory=dict)

    def add(self, answered: AnsweredQuestion) -> None:
        self._questions += 1
        self._memory_tokens += answered.memory_tokens
        self._text_tokens += answered.text_tokens
        self._missing |= dict.fromkeys(answered.missing)
        if answered.answer is None:
            self._failed.append(answered.id)

    def report(self, path: Path, read: Questions, documents_from: str, run: RunFile | None) -> AnswerReport:
        return AnswerReport(
            path=str(path),
            form=read.form,
            documents_from=documents_from,
            questions=self._questions,
            before=self.before,
            failed=tuple(self._failed),
            missing=tuple(self._missing),
            memory_tokens=self._memory_tokens,
            text_tokens=self._text_tokens,
            seconds=0.0 if self.began is None else time.monotonic() - self.began,
            warnings=(*read.warnings, *(() if run is None else run.warnings)),
        )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the file to the error that a signal causes."""
    try:
        yield
    except AnsweringInterruptedError as error:
        raise AnsweringInterruptedError(f"{path}: {error}") from None
