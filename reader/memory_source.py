"""The seam between documents and their memory: ``MemorySource``, what is stored or made fresh, and a fake for tests."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from ..configs.names import Stage
from ..errors import MissingDocumentsError, some
from ..model.compressor import Compressor
from ..model.families import Checkpoint
from ..model.memory import DocumentSize, Memory
from ..model.passages import TokenizedDocument
from .reader import Reader

Request = tuple[str, Sequence[str]]
"""A question, and the ids of the documents to answer it from. Memory may depend on the question."""


class MemorySource(Protocol):
    """Provides the memory of the documents that questions are answered from."""

    def sizes(self, requests: Sequence[Request]) -> Iterator[list[DocumentSize | None]]:
        """Yield the sizes of each question's documents, in request order; None for one that has no memory.

        Args:
            requests: the questions, each with the ids of its documents. An id may be given twice.

        Raises:
            PromptError: a question is too long for the compressor.
        """
        ...

    def memories(self, requests: Sequence[Request]) -> Iterator[Memory]:
        """Yield the memory of each question's documents, in request order.

        Args:
            requests: the questions, each with the ids of its documents. An id may be given twice.

        Raises:
            MissingDocumentsError: naming ids that the source does not hold.
            CorruptStoreError: if stored bytes fail their checks.
        """
        ...


class StoredMemory:
    """A memory source that fetches memory from a store, where it is the same for every question.

    Args:
        reader: reader of the store.
    """

    def __init__(self, reader: Reader):
        self._reader = reader

    def over(self, reader: Reader) -> "StoredMemory":
        """Return the source of another version of the store."""
        return StoredMemory(reader)

    def sizes(self, requests: Sequence[Request]) -> Iterator[list[DocumentSize | None]]:
        """Yield the sizes that the store has recorded, read together."""
        ids = list(dict.fromkeys(doc_id for _, doc_ids in requests for doc_id in doc_ids))
        found = dict(zip(ids, self._reader.sizes(ids), strict=True))
        yield from ([found[doc_id] for doc_id in doc_ids] for _, doc_ids in requests)

    def memories(self, requests: Sequence[Request]) -> Iterator[Memory]:
        """Yield memory as ``Reader.fetch_many`` reads it, at the stage at which it is stored."""
        yield from self._reader.fetch_many([doc_ids for _, doc_ids in requests])


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

    def over(self, reader: Reader) -> "FreshMemory":
        """Return the source of another version of the store, which shares the compressor."""
        return FreshMemory(reader, self._checkpoint, self._compressor)

    def sizes(self, requests: Sequence[Request]) -> Iterator[list[DocumentSize | None]]:
        """Yield the numbers of memory tokens after each text with its question, and of the text's tokens without it.

        Raises:
            StoreError: the store does not keep the documents' text.
            PromptError: a question is too long for the compressor.
            ConfigError: the checkpoint's compressor does not read questions.
        """
        for question, doc_ids in requests:
            stored = dict(zip(doc_ids, self._reader.sizes(doc_ids), strict=True))
            held = [doc_id for doc_id in stored if stored[doc_id] is not None]
            made = {doc_id: each.n_mem for doc_id, each in zip(held, self._passages(question, held), strict=True)}
            yield [
                None if (size := stored[doc_id]) is None else size._replace(memory=made[doc_id]) for doc_id in doc_ids
            ]

    def memories(self, requests: Sequence[Request]) -> Iterator[Memory]:
        """Yield the memory that documents have for each question, compressed in one batch.

        Raises:
            MissingDocumentsError: naming the ids that the store does not hold.
            StoreError, PromptError, ConfigError: as ``sizes`` raises them.
        """
        for question, doc_ids in requests:
            yield compress_documents(self._compressor, self._passages(question, doc_ids), doc_ids)

    def _passages(self, question: str, doc_ids: Sequence[str]) -> list[TokenizedDocument]:
        return self._checkpoint.query_passages(question, self._reader.texts(doc_ids), self._reader.compression)


def open_source(reader: Reader, checkpoint: Checkpoint, device: str) -> StoredMemory | FreshMemory:
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
        asked: the questions and ids whose memory was asked for so far.
    """

    def __init__(self, documents: Mapping[str, torch.Tensor], *, stage: Stage = "embedding", connector: str = ""):
        self._documents = documents
        self._stage: Stage = stage
        self._connector = connector
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def sizes(self, requests: Sequence[Request]) -> Iterator[list[DocumentSize | None]]:
        """Yield the numbers of vectors that were given, and 16 tokens of text for each vector."""
        sizes = {doc_id: DocumentSize(len(values), 16 * len(values)) for doc_id, values in self._documents.items()}
        yield from (list(map(sizes.get, doc_ids)) for _, doc_ids in requests)

    def memories(self, requests: Sequence[Request]) -> Iterator[Memory]:
        """Yield the documents' vectors as they were given."""
        none = next(iter(self._documents.values()))[:0]
        for question, doc_ids in requests:
            self.asked.append((question, tuple(doc_ids)))
            if missing := [doc_id for doc_id in doc_ids if doc_id not in self._documents]:
                raise MissingDocumentsError(f"the fake holds no {some(missing)}.", missing)
            values = [self._documents[doc_id] for doc_id in doc_ids]
            lengths = tuple(map(len, values))
            yield Memory(torch.cat([none, *values]), lengths, self._stage, self._connector, tuple(doc_ids))
