"""A store with its checkpoint: finds the documents for questions, and answers from their memory."""

from collections.abc import Collection, Sequence
from copy import copy
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Self

import torch

from ..configs.names import DOCUMENTS, Dtype
from ..errors import MissingDocumentsError, PromptError, some
from ..model.decoder import Decoder
from ..model.device import choose_device
from ..model.families import Checkpoint, open_checkpoint
from ..model.prompt import require_question, require_texts
from ..store import Hit
from .answering import AnsweredQuestion, Answering
from .answering.preparation import require_unicode
from .compatibility import require_checkpoint
from .memory_source import FreshMemory, StoredMemory, open_source
from .questions import Question
from .reader import Reader
from .retriever import StoreRetriever


class Index:
    """A store that is opened together with its checkpoint, to search it and to answer questions from it.

    The models are loaded when they are first needed. One thread at a time may ask for answers; any number may search.

    Args:
        uri: folder or object-store URI of the store.
        checkpoint: checkpoint that the store was built with, opened, or its folder.
        decoder_base: base decoder to use in place of the one that the checkpoint names.
        compressor_base: base of the compressor to use in place of the one that the checkpoint names.
        dtype: dtype of the decoder.
        device: device of the models.
        repetition_penalty: factor by which tokens that an answer already has become less likely; 1.0 for none; by
            default what the checkpoint's family or the base decoder says.

    Attributes:
        reader: reader of the store, for memory, titles and texts.

    Raises:
        StoreError: there is no store, or it cannot be read.
        CheckpointError: the checkpoint cannot be opened.
        FingerprintMismatchError: the store was built with another checkpoint.
    """

    def __init__(
        self,
        uri: str | Path,
        checkpoint: str | Path | Checkpoint,
        *,
        decoder_base: str | None = None,
        compressor_base: str | None = None,
        dtype: Dtype = "bfloat16",
        device: str = "auto",
        repetition_penalty: float | None = None,
    ):
        if isinstance(checkpoint, str | Path):
            checkpoint = open_checkpoint(checkpoint, decoder_base=decoder_base, compressor_base=compressor_base)
        self._checkpoint = checkpoint
        self._dtype = getattr(torch, dtype)
        self._device = choose_device(device)
        self._repetition_penalty = repetition_penalty
        self.reader = Reader(uri)
        require_checkpoint(self.reader, checkpoint)

    def search(self, question: str, hits: int = 10) -> list[Hit]:
        """Return the documents that full-text search finds for a question, best first (see ``Reader.search``).

        Raises:
            PromptError: the question is empty or not valid Unicode.
        """
        require_question(question)
        require_unicode(question)
        return self.reader.search(question, hits)

    def answer(
        self,
        questions: Sequence[str],
        *,
        doc_ids: Sequence[Sequence[str]] | None = None,
        hits: int = DOCUMENTS,
        max_new_tokens: int = 128,
    ) -> list[AnsweredQuestion]:
        """Answer questions from the memory of their documents, by greedy decoding.

        Args:
            questions: the questions.
            doc_ids: ids of each question's documents, best first; by default the store is searched for them.
            hits: largest number of documents to find for a question.
            max_new_tokens: largest number of tokens of an answer.

        Returns:
            The questions with their answers, in order. If nothing was found for a question, or its prompt does not
            fit the decoder, its ``answer`` is None, and ``error`` says why.

        Raises:
            MissingDocumentsError: naming the given ids that the store does not hold.
            StoreError: the store has no search index, or it cannot be read.
        """
        require_texts(questions, "questions")
        for name, value in (("hits", hits), ("max_new_tokens", max_new_tokens)):
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if doc_ids is not None:
            _require_lists(questions, doc_ids)
        retriever = None
        if doc_ids is None:
            # Loading the decoder may take minutes: a store that cannot be searched is reported before.
            self.reader.require_index()
            retriever, doc_ids = StoreRetriever(self.reader), [()] * len(questions)
        elif missing := self.reader.missing(list(dict.fromkeys(each for ids in doc_ids for each in ids))):
            raise MissingDocumentsError(
                f"The store does not hold {len(missing)} of the documents: {some(missing)}. Check the ids.", missing
            )
        asked = [
            Question(str(number), text, (), tuple(ids))
            for number, (text, ids) in enumerate(zip(questions, doc_ids, strict=True))
        ]
        answering = Answering(
            self.source,
            self.decoder,
            retriever,
            hits=None if retriever is None else hits,
            max_new_tokens=max_new_tokens,
        )
        return list(answering.answer(asked))

    @cached_property
    def decoder(self) -> Decoder:
        """The checkpoint's decoder, which is loaded here."""
        return Decoder.load(
            self._checkpoint, dtype=self._dtype, device=self._device, repetition_penalty=self._repetition_penalty
        )

    @cached_property
    def source(self) -> StoredMemory | FreshMemory:
        """The source of the documents' memory. If memory is made with each question, the compressor is loaded here."""
        return open_source(self.reader, self._checkpoint, self._device)

    def reopen(self) -> "Index":
        """Return this index at the latest version of its store. Both share the models that are loaded.

        This one stays open, for the questions that it is answering.

        Raises:
            StoreError: the store cannot be read.
            FingerprintMismatchError: another store stands there now, which was built with another checkpoint.
        """
        newer = copy(self)
        newer.reader = Reader(self.reader.uri)
        require_checkpoint(newer.reader, self._checkpoint)
        if "source" in vars(self):
            newer.source = self.source.over(newer.reader)
        return newer

    def close(self) -> None:
        """Release the store. Searching and answering after this are errors."""
        self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _require_lists(questions: Sequence[str], doc_ids: Sequence[Sequence[str]]) -> None:
    if isinstance(doc_ids, str) or not isinstance(doc_ids, Collection):
        raise TypeError(f"doc_ids must be a list of ids for each question, not {doc_ids!r:.80}")
    for ids in doc_ids:
        require_texts(ids, "doc_ids of a question")
    if len(doc_ids) != len(questions):
        raise ValueError(f"{len(questions)} questions, but {len(doc_ids)} lists of documents")


def ask(
    uri: str | Path,
    checkpoint: str | Path | Checkpoint,
    question: str,
    doc_ids: Sequence[str] | None = None,
    *,
    hits: int = DOCUMENTS,
    decoder_base: str | None = None,
    compressor_base: str | None = None,
    dtype: Dtype = "bfloat16",
    device: str = "auto",
    max_new_tokens: int = 128,
    repetition_penalty: float | None = None,
) -> AnsweredQuestion:
    """Open a store and a checkpoint and answer one question from the memory of documents.

    For more than one question, keep an ``Index``.

    Args:
        uri: folder or object-store URI of the store.
        checkpoint: checkpoint that the store was built with, opened, or its folder.
        question: the question.
        doc_ids: ids of the documents, best first; by default the store is searched for them.
        hits: largest number of documents to find.
        decoder_base: base decoder to use in place of the one that the checkpoint names.
        compressor_base: base of the compressor to use in place of the one that the checkpoint names.
        dtype: dtype of the decoder.
        device: device of the models.
        max_new_tokens: largest number of tokens of the answer.
        repetition_penalty: see ``Index``.

    Raises:
        FingerprintMismatchError: if the store was built with another checkpoint.
        MissingDocumentsError: naming the ids that the store does not hold.
        PromptError: if nothing is found for the question, or the prompt does not fit the decoder.
    """
    bases = {"decoder_base": decoder_base, "compressor_base": compressor_base}
    with Index(uri, checkpoint, **bases, dtype=dtype, device=device, repetition_penalty=repetition_penalty) as index:
        given = None if doc_ids is None else [doc_ids]
        (answer,) = index.answer([question], doc_ids=given, hits=hits, max_new_tokens=max_new_tokens)
    if answer.error is not None:
        raise PromptError(answer.error)
    return answer
