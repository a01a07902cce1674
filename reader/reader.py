"""Read the memory of documents from a store, by id."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from ..configs import CompressionConfig
from ..configs.names import MissingIds
from ..errors import CorruptStoreError, StoreError
from ..model.connector import Connector
from ..model.memory import Memory
from ..store import CONNECTOR_ASSET, Rows, Store, StoreMeta


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
        # The connector with a codec's inverse folded into it, by codec and calibration.
        self._folded: dict[tuple[int, int], Connector] = {}

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
        return self._memory(self._rows(doc_ids, missing))

    @torch.inference_mode()
    def embeddings(self, doc_ids: Sequence[str], *, missing: MissingIds = "error") -> Memory:
        """Return the memory of documents at stage ``"embedding"``.

        The result is ``connector.connect(fetch(doc_ids))``, up to rounding; memory of a family without a connector is
        returned as it is. If all documents have the
        same codec and calibration, the inverse of the codec's normalisation, rotation or transform is folded into the
        connector's first layer, once. Decoding is then only a look-up and a scaling.

        Arguments and errors are those of ``fetch``.
        """
        rows = self._rows(doc_ids, missing)
        if not self.meta.has_connector:
            return self._memory(rows)
        with _store_named(self._store.uri):
            latents = rows.latents() if self.meta.stage == "hidden" else None
        inverse = None if latents is None else latents.codec.inverse(latents.calibration)
        if latents is None or inverse is None:
            return self.connector.connect(self._memory(rows))
        assert latents.calibration is not None
        kind = latents.codec.codec_id, latents.calibration.reference
        if kind not in self._folded:
            self._folded[kind] = self.connector.fold(*map(torch.from_numpy, inverse))
        values = self._folded[kind](torch.from_numpy(latents.values))
        return Memory(values, tuple(latents.lengths.tolist()), "embedding", self._connector_digest, rows.doc_ids)

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
        return self._memory(self._store.read(range(start, stop)))

    def texts(self, doc_ids: Sequence[str], *, missing: MissingIds = "error") -> list[str]:
        """Return the texts that documents are compressed from, title included, in request order.

        Arguments and errors are those of ``fetch``.

        Raises:
            StoreError: if the store does not keep the documents' text.
        """
        kept = self.meta.optional_columns
        if "text" not in kept:
            raise StoreError(
                f"The store at {self._store.uri} keeps no text, from which memory could be made. Build it with --keep "
                "text."
            )
        rows = self._rows(doc_ids, missing, columns=kept)
        titles = rows.columns.get("title", [None] * len(rows))
        return list(map(self.compression.input_text, rows.columns["text"], titles))

    @property
    def compression(self) -> CompressionConfig:
        """The settings that documents are compressed with."""
        return CompressionConfig.of(self.meta.fingerprint.components)

    def missing(self, doc_ids: Sequence[str]) -> list[str]:
        """Return the ids that the store does not hold, in order."""
        return self._store.missing(doc_ids)

    def memory_tokens(self) -> int:
        """Return the number of memory tokens of all documents."""
        return self._store.memory_tokens()

    def ids(self) -> Iterator[str]:
        """Yield the ids of all documents, in the order of the store's rows."""
        return self._store.ids()

    @cached_property
    def connector(self) -> Connector:
        """The connector that the store keeps, in fp32. It turns stage ``"hidden"`` into a decoder's embeddings.

        Raises:
            StoreError: if the store's memory has none, because it has the decoder's width as it is.
            CorruptStoreError: if it cannot be read, or is not the one that the store was made with.
        """
        if not self.meta.has_connector:
            self.meta.require_memory(self._store.uri)
            raise StoreError(
                f"The store at {self._store.uri} has no connector: its memory has the decoder's width. Use it as it is."
            )
        origin = f"the store at {self._store.uri}"
        connector = Connector.from_bytes(self._store.asset(CONNECTOR_ASSET), self._connector_digest, origin)
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
        return self._store.meta

    @property
    def version(self) -> int:
        """Version of the store that is read."""
        return self._store.version

    def close(self) -> None:
        """Release the store. Reading after this is an error."""
        self._opened = None

    def _rows(self, doc_ids: Sequence[str], missing: MissingIds, columns: Sequence[str] = ()) -> Rows:
        if isinstance(doc_ids, str):
            raise TypeError(f"doc_ids must be a list of ids, not the string {doc_ids!r}")
        if strange := [doc_id for doc_id in doc_ids if not isinstance(doc_id, str)]:
            raise TypeError(f"ids must be strings, not {strange[0]!r}")
        return self._store.fetch(doc_ids, columns=columns, missing=missing)

    def _memory(self, rows: Rows) -> Memory:
        self.meta.require_memory(self._store.uri)
        if rows.doc_ids:
            with _store_named(self._store.uri):
                values, lengths = rows.memory()
            if values.shape[1] != self.meta.dim:
                raise CorruptStoreError(
                    f"the store at {self._store.uri} holds vectors of width {values.shape[1]}; its description says "
                    f"{self.meta.dim}."
                )
            tensor = torch.from_numpy(values)
        else:
            tensor, lengths = torch.empty(0, self.meta.dim), []
        return Memory(tensor, tuple(int(n) for n in lengths), self.meta.stage, self._connector_digest, rows.doc_ids)

    @property
    def _connector_digest(self) -> str:
        return self.meta.fingerprint.components.get("connector", "")

    @property
    def _store(self) -> Store:
        if self._opened is None:
            raise StoreError("the reader is closed. Open another one.")
        return self._opened

    def __len__(self) -> int:
        return self._store.count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._store.uri, self._store.version)


@contextmanager
def _store_named(uri: str) -> Iterator[None]:
    """Add the store and a remedy to an error about damaged bytes, which names only the document."""
    try:
        yield
    except CorruptStoreError as error:
        raise CorruptStoreError(f"the store at {uri} is damaged: {error} See: pisco-index verify {uri}") from error


def _reopen(uri: str, version: int) -> Reader:
    return Reader(uri, version=version)
