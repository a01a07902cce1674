"""The seam between documents and their memory: ``MemorySource``, what is stored or made fresh, and a fake for tests."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from ..configs.names import Stage
from ..errors import MissingDocumentsError, some
from ..model.compressor import Compressor
from ..model.families import Checkpoint
from ..model.memory import Memory
from ..model.passages import TokenizedDocument
from .reader import Reader


class MemorySource(Protocol):
    """Provides the memory of the documents that a question is answered from."""

    def memory(self, question: str, doc_ids: Sequence[str]) -> Memory:
        """Return the memory of documents, in request order.

        Args:
            question: the question. Memory may depend on it.
            doc_ids: ids of the documents. An id may be given twice.

        Raises:
            MissingDocumentsError: naming every id that the source does not hold.
        """
        ...

    def text_tokens(self, doc_ids: Sequence[str]) -> list[int]:
        """Return the number of tokens of each document's text that its memory stands for, in request order.

        Args:
            doc_ids: ids of documents whose memory the source has given.
        """
        ...


class StoredMemory:
    """A memory source that fetches memory from a store, where it is the same for every question.

    Args:
        reader: reader of the store.
        dtype: dtype of the decoder, which then gets its input embeddings (see ``Reader.embeddings``); None for memory
            at the stage at which the store keeps it, in fp32, which a decoder connects for many questions at once.
        device: device of the embeddings.
    """

    def __init__(self, reader: Reader, *, dtype: torch.dtype | None = None, device: str = "cpu"):
        self._reader = reader
        self._dtype = dtype
        self._device = device

    def memory(self, question: str, doc_ids: Sequence[str]) -> Memory:  # noqa: ARG002 stored memory fits any question
        """Return the documents' memory, from ``Reader.embeddings`` if there is a dtype, else from ``Reader.fetch``."""
        if self._dtype is None:
            return self._reader.fetch(doc_ids)
        return self._reader.embeddings(doc_ids, dtype=self._dtype, device=self._device)

    def text_tokens(self, doc_ids: Sequence[str]) -> list[int]:
        """Return the numbers of tokens that the store has recorded."""
        return self._reader.text_tokens(doc_ids)


class FreshMemory:
    """A memory source that compresses the text of documents, which a store keeps, together with the question.

    Args:
        reader: reader of the store.
        checkpoint: checkpoint whose compressor reads questions.
        compressor: the checkpoint's compressor.
    """

    def __init__(self, reader: Reader, checkpoint: Checkpoint, compressor: Compressor):
        self._reader = reader
        self._checkpoint = checkpoint
        self._compressor = compressor

    def memory(self, question: str, doc_ids: Sequence[str]) -> Memory:
        """Return the memory that the documents have for this question, compressed in one batch.

        Raises:
            MissingDocumentsError: naming every id that the store does not hold.
            StoreError: the store does not keep the documents' text.
            PromptError: the question is too long for the compressor.
            ConfigError: the checkpoint's compressor does not read questions.
        """
        texts = self._reader.texts(doc_ids)
        documents = self._checkpoint.query_passages(question, texts, self._reader.compression)
        return compress_documents(self._compressor, documents, doc_ids)

    def text_tokens(self, doc_ids: Sequence[str]) -> list[int]:
        """Return the numbers of tokens that the store has recorded, without the question's."""
        return self._reader.text_tokens(doc_ids)


def open_source(reader: Reader, checkpoint: Checkpoint, device: str) -> MemorySource:
    """Return the source of a store's memory: the store, or its texts if the checkpoint reads the question too.

    Args:
        reader: reader of the store.
        checkpoint: checkpoint that the store was built with.
        device: device of the compressor, if memory is made.

    Raises:
        StoreError: if the store holds neither memory nor text.
    """
    if reader.meta.holds_memory:
        return StoredMemory(reader)
    # Before the compressor is loaded, which may take minutes.
    reader.texts(())
    dtype = getattr(torch, reader.compression.dtype)
    # A few documents are computed faster than layers are compiled.
    return FreshMemory(reader, checkpoint, Compressor.load(checkpoint, dtype=dtype, device=device, compiled=False))


def compress_documents(
    compressor: Compressor, documents: Sequence[TokenizedDocument], doc_ids: Sequence[str]
) -> Memory:
    """Return the memory of tokenized documents, one entry per document, compressed in one batch."""
    memory = compressor.compress([passage for document in documents for passage in document.passages])
    return replace(memory, lengths=tuple(document.n_mem for document in documents), doc_ids=tuple(doc_ids))


class FakeMemorySource:
    """A memory source for tests, which holds its documents in a dict.

    Args:
        documents: ``(n_mem, dim)`` vectors of each document, by id; at least one document.
        stage: stage of the vectors.
        connector: digest of the connector that belongs to them.

    Attributes:
        asked: the questions and ids of all calls so far.
    """

    def __init__(self, documents: Mapping[str, torch.Tensor], *, stage: Stage = "embedding", connector: str = ""):
        self._documents = documents
        self._stage: Stage = stage
        self._connector = connector
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def memory(self, question: str, doc_ids: Sequence[str]) -> Memory:
        """Return the documents' vectors as they were given."""
        self.asked.append((question, tuple(doc_ids)))
        if missing := [doc_id for doc_id in doc_ids if doc_id not in self._documents]:
            raise MissingDocumentsError(f"the fake holds no {some(missing)}.", missing)
        none = next(iter(self._documents.values()))[:0]
        values = [self._documents[doc_id] for doc_id in doc_ids]
        lengths = tuple(map(len, values))
        return Memory(torch.cat([none, *values]), lengths, self._stage, self._connector, tuple(doc_ids))

    def text_tokens(self, doc_ids: Sequence[str]) -> list[int]:
        """Return 16 tokens for each vector of a document."""
        return [16 * len(self._documents[doc_id]) for doc_id in doc_ids]
