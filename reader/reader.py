"""Read the memory of documents from a store, by id."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from ..configs import CompressionConfig
from ..configs.names import MissingIds, Stage
from ..errors import CorruptStoreError, MissingTextError, StoreError, some
from ..model.connector import Connector
from ..model.device import to_device
from ..model.memory import DocumentSize, Memory
from ..store import CONNECTOR_ASSET, CONTENTS, Hit, Rows, Searcher, Store, StoreMeta
from .tensors import Embedder, stored_tensor

# Documents that are read at once: their bytes and numbers stay in the processor's cache.
_TOGETHER = 160


class Reader:
    """Reads the memory of documents from one version of a store.

    Threads may share a reader. It can be pickled, for data loaders that spawn their workers. It does not survive a
    fork, because Lance does not.

    Args:
        uri: folder or object-store URI of the store.
        version: version of the store; by default the latest. Later commits are not seen: open another reader.

    Raises:
        StoreError: if there is no store, or it cannot be read.
    """

    def __init__(self, uri: str | Path, *, version: int | None = None):
        self._opened: Store | None = Store.open(uri, version)
        self._searcher: Searcher | None = None
        self._embedder = Embedder(lambda: self.connector)

    def fetch(self, doc_ids: Sequence[str], *, missing: MissingIds = "error") -> Memory:
        """Return the memory of documents, in request order, at the stage at which it is stored.

        Args:
            doc_ids: ids of the documents. An id may be given twice.
            missing: ``"error"`` to report ids that the store does not hold, ``"skip"`` to leave them out;
                ``Memory.doc_ids`` then lists the ids that were found.

        Returns:
            Memory in fp32 on the CPU. Iterating over it gives one ``(n_mem, dim)`` tensor per id.

        Raises:
            MissingDocumentsError: naming every id that the store does not hold.
            CorruptStoreError: if stored bytes fail their checks.
            StoreError: if a document failed in the build, the store holds texts only, or it cannot be read.
        """
        store = self.store
        if len(doc_ids) > _TOGETHER:
            return self._memory(self._rows(doc_ids, missing))
        with store.turn():
            return self._memory(self._rows(doc_ids, missing))

    def fetch_many(self, lists: Sequence[Sequence[str]], *, missing: MissingIds = "error") -> list[Memory]:
        """Return the memory of several lists of documents, each like ``fetch``, but read together.

        This is faster than a fetch for each list. The tensors of neighbouring lists share one block of memory.

        Args:
            lists: ids of the documents of each list. An id may be in several lists.
            missing: as in ``fetch``; one error names the missing ids of all lists.

        Raises:
            MissingDocumentsError, CorruptStoreError, StoreError: as ``fetch`` raises them.
        """
        for doc_ids in lists:
            _require_ids(doc_ids)
        memories: list[Memory] = []
        start = 0
        while start < len(lists):
            stop, count = start + 1, len(lists[start])
            while stop < len(lists) and count + len(lists[stop]) <= _TOGETHER:
                count += len(lists[stop])
                stop += 1
            memories += self._fetch_together(lists[start:stop])
            start = stop
        if missing == "error" and (absent := _absent(lists, memories)):
            # This raises the error, which names them all.
            self.fetch(absent)
        return memories

    def _fetch_together(self, lists: Sequence[Sequence[str]]) -> list[Memory]:
        together = self.fetch([doc_id for doc_ids in lists for doc_id in doc_ids], missing="skip")
        found = set(together.doc_ids)
        return together.split([sum(doc_id in found for doc_id in doc_ids) for doc_ids in lists])

    def embeddings(
        self,
        doc_ids: Sequence[str],
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        missing: MissingIds = "error",
    ) -> Memory:
        """Return the memory of documents at stage ``"embedding"``, in the dtype and on the device of a decoder.

        In fp32 the values are those of ``connector.connect(fetch(doc_ids))``, up to rounding. Other dtypes hold the
        fp32 values, rounded. The connector computes on the device. Memory of a family without a connector is returned
        as it is.

        Args:
            doc_ids: ids of the documents. An id may be given twice.
            dtype: dtype of the values, usually the decoder's: ``torch.float32`` or ``torch.bfloat16``.
            device: device of the values. A GPU gets them by a copy from pinned memory that is not waited for.
            missing: as in ``fetch``.

        Raises:
            MissingDocumentsError, CorruptStoreError, StoreError: as ``fetch`` raises them.
        """
        rows, to = self._rows(doc_ids, missing), torch.device(device)
        if self.meta.stage == "embedding" or not self.meta.has_connector:
            return self._as_memory(to_device(self._stored(rows, dtype), to), rows, self.meta.stage)
        if rows.doc_ids:
            values = self._read(rows, lambda: self._embedder.embed(rows, dtype, to))
        else:
            values = torch.empty(0, self.connector.out_dim, dtype=dtype, device=to)
        return self._as_memory(values, rows, "embedding")

    def read(self, start: int, stop: int) -> Memory:
        """Return the memory of the documents in a range of rows, in the order of the rows; otherwise like ``fetch``.

        Documents that failed in the build have no memory and are left out.

        Args:
            start: number of the first row, from 0.
            stop: number of the row after the last, at most ``len(reader)``.

        Raises:
            CorruptStoreError: if stored bytes fail their checks.
            StoreError: if the store cannot be read.
        """
        return self._memory(self.store.read(range(start, stop)))

    def search(self, question: str, hits: int = 10) -> list[Hit]:
        """Return the best documents for a question by full-text search (BM25), best first.

        Documents of equal score are ordered by id. Documents that failed in the build are never found. A question
        without a word that is searched, for example of stop words only, has none.

        Args:
            question: plain words. Nothing in it is an operator, and a repeated word counts once.
            hits: largest number of documents.

        Raises:
            StoreError: if the store has no search index, the index is damaged, or the version was cleaned up.
        """
        return self._search.search(question, hits)

    def search_many(self, questions: Sequence[str], hits: int = 10, threads: int | None = None) -> list[list[Hit]]:
        """Return the best documents for each question, in the order of the questions.

        Args:
            questions: the questions; see ``search``.
            hits: largest number of documents of a question.
            threads: number of questions to search for at the same time; by default as many as suit the machine.

        Raises:
            StoreError: as ``search`` raises it.
        """
        return self._search.search_many(questions, hits, threads)

    def texts(self, doc_ids: Sequence[str], *, missing: MissingIds = "error") -> list[str]:
        """Return the texts that documents are compressed from, title included, in request order.

        Arguments and errors are those of ``fetch``.

        Raises:
            MissingTextError: if the store does not keep the text of one of the documents.
        """
        _require_ids(doc_ids)
        kept = self.store.kept_columns
        if not kept & {CONTENTS, "text"}:
            raise MissingTextError(
                f"The store at {self.store.uri} keeps no text. Build it with --keep text, or add the texts: "
                f"pisco-index index {self.store.uri} CORPUS"
            )
        first = [CONTENTS] if CONTENTS in kept else sorted(kept)
        rows = self.store.columns(doc_ids, [*first, "error"], missing=missing)
        if failed := [doc_id for doc_id, row in rows.items() if row["error"] is not None]:
            # This raises the error, which names them all.
            self.store.fetch(failed)
        if {CONTENTS, "text"} <= kept and (rest := [doc_id for doc_id, row in rows.items() if row[CONTENTS] is None]):
            rows |= self.store.columns(rest, sorted(kept - {CONTENTS}))
        compression = self.compression
        texts: dict[str, Any] = {
            doc_id: row.get(CONTENTS)
            if row.get("text") is None
            else compression.input_text(row["text"], row.get("title"))
            for doc_id, row in rows.items()
        }
        if absent := [doc_id for doc_id, text in texts.items() if text is None]:
            raise MissingTextError(f"The store at {self.store.uri} keeps no text of {some(absent)}.")
        return [texts[doc_id] for doc_id in doc_ids if doc_id in texts]

    def sizes(self, doc_ids: Sequence[str]) -> list[DocumentSize | None]:
        """Return the sizes of documents in request order, without their memory; None for one that has no memory.

        A store of texts records no vectors: there ``memory`` is 0.

        Raises:
            StoreError: if the store cannot be read.
        """
        _require_ids(doc_ids)
        rows = self.store.columns(doc_ids, ["n_mem", "tokens_fed", "error"], missing="skip")
        sizes = {
            doc_id: DocumentSize(row["n_mem"], row["tokens_fed"])
            for doc_id, row in rows.items()
            if row["error"] is None
        }
        return list(map(sizes.get, doc_ids))

    def titles(self, doc_ids: Sequence[str], *, missing: MissingIds = "error") -> list[str | None]:
        """Return the titles of documents, in request order; None for a document without a title.

        All titles are None if the store keeps none. Failed documents have titles too.

        Args:
            doc_ids: ids of the documents. An id may be given twice.
            missing: ``"error"`` to report ids that the store does not hold, ``"skip"`` to leave them out.

        Raises:
            MissingDocumentsError: naming every id that the store does not hold.
            StoreError: if the store cannot be read.
        """
        _require_ids(doc_ids)
        names = ["title"] if "title" in self.meta.optional_columns else []
        found = self.store.columns(doc_ids, names, missing=missing)
        return [found[doc_id].get("title") for doc_id in doc_ids if doc_id in found]

    def require_index(self) -> None:
        """Check that the store can be searched.

        Raises:
            StoreError: if it has no search index, or one with unknown settings.
        """
        _ = self._search

    @property
    def compression(self) -> CompressionConfig:
        """The settings that documents are compressed with."""
        return CompressionConfig.of(self.meta.fingerprint.components)

    def missing(self, doc_ids: Sequence[str]) -> list[str]:
        """Return the ids that the store does not hold, in order."""
        return self.store.missing(doc_ids)

    def memory_tokens(self) -> int:
        """Return the number of memory tokens of all documents."""
        return self.store.memory_tokens()

    def ids(self) -> Iterator[str]:
        """Yield the ids of all documents, in the order of the store's rows."""
        return self.store.ids()

    @cached_property
    def connector(self) -> Connector:
        """The connector that the store keeps, in fp32. It turns stage ``"hidden"`` into a decoder's embeddings.

        Raises:
            StoreError: if the store's memory has none, because it has the decoder's width as it is.
            CorruptStoreError: if it cannot be read, or is not the one that the store was made with.
        """
        if not self.meta.has_connector:
            self.meta.require_memory(self.store.uri)
            raise StoreError(
                f"The store at {self.store.uri} has no connector: its memory has the decoder's width. Use it as it is."
            )
        origin = f"the store at {self.store.uri}"
        connector = Connector.from_bytes(self.store.asset(CONNECTOR_ASSET), self._connector_digest, origin)
        width = connector.dim(self.meta.stage)
        if width != self.meta.dim:
            raise CorruptStoreError(
                f"{origin}: its connector is for vectors of width {width}, but it holds vectors of width "
                f"{self.meta.dim}."
            )
        return connector

    @property
    def meta(self) -> StoreMeta:
        """The store's description of itself: fingerprint, stage, width, codec."""
        return self.store.meta

    @property
    def uri(self) -> str:
        """Absolute path or object-store URI of the store."""
        return self.store.uri

    @property
    def version(self) -> int:
        """Version of the store that is read."""
        return self.store.version

    def close(self) -> None:
        """Release the store. Reading after this is an error."""
        self._opened = self._searcher = None

    def _rows(self, doc_ids: Sequence[str], missing: MissingIds) -> Rows:
        _require_ids(doc_ids)
        return self.store.fetch(doc_ids, missing=missing)

    def _memory(self, rows: Rows) -> Memory:
        return self._as_memory(self._stored(rows, torch.float32), rows, self.meta.stage)

    def _stored(self, rows: Rows, dtype: torch.dtype) -> torch.Tensor:
        self.meta.require_memory(self.store.uri)
        return (
            self._read(rows, lambda: stored_tensor(rows, dtype))
            if rows.doc_ids
            else torch.empty(0, self.meta.dim, dtype=dtype)
        )

    def _read(self, rows: Rows, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return what a function reads from rows, at least one. Errors about damage get the store's address."""
        try:
            if rows.dim != self.meta.dim:
                raise CorruptStoreError(
                    f"it holds vectors of width {rows.dim}, and its description says {self.meta.dim}."
                )
            return read()
        except CorruptStoreError as error:
            raise CorruptStoreError(
                f"the store at {self.uri} is damaged: {error} See: pisco-index verify {self.uri}"
            ) from error

    def _as_memory(self, values: torch.Tensor, rows: Rows, stage: Stage) -> Memory:
        return Memory(values, tuple(rows.n_mem.tolist()), stage, self._connector_digest, rows.doc_ids)

    @property
    def _connector_digest(self) -> str:
        return self.meta.fingerprint.components.get("connector", "")

    @property
    def _search(self) -> Searcher:
        store = self.store
        # No lock: it does no harm if two threads both make a searcher.
        if self._searcher is None:
            self._searcher = Searcher(store)
        return self._searcher

    @property
    def store(self) -> Store:
        """The store, opened at the version that is read."""
        if self._opened is None:
            raise StoreError("the reader is closed. Open another one.")
        return self._opened

    def __len__(self) -> int:
        return self.store.count

    def __contains__(self, doc_id: object) -> bool:
        return isinstance(doc_id, str) and not self.missing([doc_id])

    def __repr__(self) -> str:
        if self._opened is None:
            return "Reader(closed)"
        meta = self.meta
        return (
            f"Reader({self.store.uri!r}, version={self.version}, documents={len(self)}, stage={meta.stage!r}, "
            f"dim={meta.dim}, codec={meta.codec!r})"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.store.uri, self.store.version)


def _absent(lists: Sequence[Sequence[str]], memories: Sequence[Memory]) -> list[str]:
    """Return the ids in lists that are not in the memory of their list."""
    short = [(ids, set(found.doc_ids)) for ids, found in zip(lists, memories, strict=True) if len(ids) > len(found)]
    return list(dict.fromkeys(each for ids, found in short for each in ids if each not in found))


def _require_ids(doc_ids: Sequence[str]) -> None:
    if isinstance(doc_ids, str):
        raise TypeError(f"doc_ids must be a list of ids, not the string {doc_ids!r}")
    if strange := [doc_id for doc_id in doc_ids if not isinstance(doc_id, str)]:
        raise TypeError(f"ids must be strings, not {strange[0]!r}")


def _reopen(uri: str, version: int) -> Reader:
    return Reader(uri, version=version)
