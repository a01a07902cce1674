"""Read and tokenize a shard. What is read travels between processes as a few arrays and lists of strings."""

import time
from array import array
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...configs import CompressionConfig
from ...corpus import Document, OnRejected, RejectedRecord, is_cut
from ...errors import CorpusError
from ...model.passages import DocumentTokenizer, TokenizedDocument, tokenize_documents
from ..planning.plan import Shard
from ..planning.reading import Shared, open_sources, read_shard

# Documents read or tokenized between two steps.
STEP_DOCUMENTS = 256


@dataclass(frozen=True)
class Reading:
    """Everything that reading requires, as values that any process can receive.

    Attributes:
        sources: descriptions from which the plan's sources are opened.
        compression: settings that turn documents into passages.
        tokenizer: tokenizer that cuts documents into passages.
    """

    sources: tuple[Mapping[str, Any], ...]
    compression: CompressionConfig
    tokenizer: DocumentTokenizer


@dataclass(frozen=True, eq=False)
class Tokens:
    """The passages of some documents.

    Attributes:
        ids: token ids of all passages, one passage after another, ``(Σ length,)`` int32.
        lengths: number of tokens of each passage, ``(passages,)`` int64.
        n_mem: number of memory vectors of each document, ``(documents,)`` int64.
        total: number of tokens of each document's text, ``(documents,)`` int64.
        fed: number of tokens in each document's passages, without memory tokens, ``(documents,)`` int64.
    """

    ids: np.ndarray
    lengths: np.ndarray
    n_mem: np.ndarray
    total: np.ndarray
    fed: np.ndarray

    @classmethod
    def of(cls, tokenized: Sequence[TokenizedDocument]) -> "Tokens":
        """Make arrays of tokenized documents."""
        ids, lengths = array("i"), array("q")
        for document in tokenized:
            for passage in document.passages:
                ids.extend(passage)
                lengths.append(len(passage))
        counts = [(document.n_mem, document.tokens_total, document.tokens_fed) for document in tokenized]
        n_mem, total, fed = np.array(counts, np.int64).reshape(-1, 3).T
        return cls(np.array(ids, np.int32), np.array(lengths, np.int64), n_mem, total, fed)

    def __len__(self) -> int:
        return len(self.n_mem)


@dataclass(frozen=True, eq=False)
class ReadShard:
    """The documents of a shard, in order.

    Attributes:
        doc_ids: id of each document.
        titles: title of each document, None for one without.
        texts: text of each document.
        tokens: passages of the documents that are compressed.
        rejected: records that the plan rejected.
        seconds: time that reading took.
    """

    doc_ids: list[str]
    titles: list[str | None]
    texts: list[str]
    tokens: Tokens
    rejected: list[RejectedRecord]
    seconds: float


class NoPassages:
    """Gives every text no passage and no memory."""

    memory_token_ids: tuple[int, ...] = ()

    def tokenize(self, texts: Sequence[str], repeated: Sequence[str] | None = None) -> Iterator[TokenizedDocument]:  # noqa: ARG002
        """Yield an empty document for each text."""
        return (TokenizedDocument((), 0, 0, 0) for _ in texts)


class ShardReader:
    """Reads and tokenizes shards in the calling thread.

    Args:
        reading: everything that reading requires.
        on_step: callback after every 256 documents.
    """

    def __init__(self, reading: Reading, on_step: Callable[[], None]):
        self._reading = reading
        self._sources = open_sources(reading.sources)
        self._shared = Shared()
        self._on_step = on_step

    def read(self, shard: Shard, left_out: Container[int] = ()) -> ReadShard:
        """Read a shard.

        Args:
            shard: shard to read.
            left_out: places of the documents that are not compressed.

        Raises:
            CorpusError: the corpus cannot be read as it was planned.
        """
        began = time.perf_counter()
        rejected: list[RejectedRecord] = []
        documents = self.documents(shard, rejected.append)
        tokens = Tokens.of(self.tokenize([each for place, each in enumerate(documents) if place not in left_out]))
        return ReadShard(
            [document.doc_id for document in documents],
            [document.title for document in documents],
            [document.text for document in documents],
            tokens,
            rejected,
            time.perf_counter() - began,
        )

    def documents(self, shard: Shard, on_rejected: OnRejected = bool) -> list[Document]:
        """Return the documents of a shard.

        Raises:
            CorpusError: the corpus cannot be read as it was planned.
        """
        documents = []
        for document in read_shard(shard, self._sources, on_rejected, self._shared):
            documents.append(document)
            if len(documents) % STEP_DOCUMENTS == 0:
                self._on_step()
        self._require_planned(shard, documents)
        return documents

    def tokenize(self, documents: Sequence[Document]) -> list[TokenizedDocument]:
        """Return the passages of each document."""
        tokenized = []
        for document in tokenize_documents(self._reading.tokenizer, documents, self._reading.compression):
            tokenized.append(document)
            if len(tokenized) % STEP_DOCUMENTS == 0:
                self._on_step()
        return tokenized

    def _require_planned(self, shard: Shard, documents: Sequence[Document]) -> None:
        # The plan of a new store does not know the number of documents if records are cut into several. The documents
        # of an update were counted when they were read.
        cut = any(is_cut(self._reading.sources[part.source]) for part in shard.slices)
        if shard.selection is None and not cut and len(documents) != shard.records:
            names = ", ".join(self._sources[part.source].name for part in shard.slices)
            raise CorpusError(
                f"shard {shard.number} was planned with {shard.records} documents, but {names} now has "
                f"{len(documents)} there. The corpus changed while it was read: run the build again."
            )
