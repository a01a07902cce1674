"""Fetching memory by document id."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch

from ..errors import CorruptStoreError, StoreError
from ..model.connector import Connector
from ..model.memory import Memory
from ..store import CONNECTOR_ASSET, Rows, Store, StoreMeta


class Reader:
    """Reads the memory of documents from a store, at one version of it.

    Threads may share a reader. It can be pickled, for data loaders that spawn their workers; it does not survive a
    fork, because Lance does not.

    Args:
        uri: the store's folder or object-store URI.
        version: of the store; the latest by default. Later commits are not seen: open another reader.

    Raises:
        StoreError: if there is no store, or it cannot be read.
    """

    def __init__(self, uri: str | Path, *, version: int | None = None):
        self._opened: Store | None = Store.open(uri, version)
        # By codec and calibration: the connector with what undoes them.
        self._folded: dict[tuple[int, int], Connector] = {}

    def fetch(self, doc_ids: Sequence[str], *, missing: Literal["error", "skip"] = "error") -> Memory:
        """The memory of documents, in request order, at the stage at which it is stored.

        Args:
            doc_ids: an id may be asked for twice.
            missing: ids that the store does not hold are named in an error, or left out (see ``Memory.doc_ids``).

        Returns:
            Memory in fp32 on the CPU; iterating over it gives one ``(n_mem, dim)`` tensor an id.

        Raises:
            MissingDocumentsError: naming all ids that are not there.
            CorruptStoreError: if stored bytes fail their checks.
            StoreError: for a document that failed in the build, and for a store that cannot be read.
        """
        return self._memory(self._rows(doc_ids, missing))

    @torch.inference_mode()
    def embeddings(self, doc_ids: Sequence[str], *, missing: Literal["error", "skip"] = "error") -> Memory:
        """The memory of documents at stage ``"embedding"``: ``connector.connect(fetch(doc_ids))``, up to rounding.

        Where all documents asked for are stored by one codec with one calibration, what undoes that codec's
        normalisation, rotation or transform is part of the connector's first layer, computed once, and decoding is no
        more than look-up and scales.

        Arguments and errors are those of ``fetch``.
        """
        rows = self._rows(doc_ids, missing)
        latents = rows.latents() if self.meta.stage == "hidden" else None
        inverse = None if latents is None else latents.codec.inverse(latents.calibration)
        if latents is None or inverse is None:
            return self.connector.connect(self._memory(rows))
        assert latents.calibration is not None
        kind = latents.codec.codec_id, latents.calibration.reference
        if kind not in self._folded:
            self._folded[kind] = self.connector.fold(*map(torch.from_numpy, inverse))
        values = self._folded[kind](torch.from_numpy(latents.values))
        return Memory(values, tuple(latents.lengths.tolist()), "embedding", self._digest, rows.doc_ids)

    def _rows(self, doc_ids: Sequence[str], missing: Literal["error", "skip"]) -> Rows:
        if isinstance(doc_ids, str):
            raise TypeError(f"a list of ids is needed, not the string {doc_ids!r}")
        if strange := [doc_id for doc_id in doc_ids if not isinstance(doc_id, str)]:
            raise TypeError(f"ids are strings, not {strange[0]!r}")
        return self._store.fetch(doc_ids, missing=missing)

    def read(self, start: int, stop: int) -> Memory:
        """The memory of the documents in some of the store's rows, in their order; as ``fetch`` gives it.

        Args:
            start: number of the first row, from 0.
            stop: number of the row after the last, at most ``len(reader)``. Documents that failed in the build have no
                memory and are left out.

        Raises:
            CorruptStoreError: if stored bytes fail their checks.
            StoreError: if the store cannot be read.
        """
        return self._memory(self._store.read(start, stop))

    def missing(self, doc_ids: Sequence[str]) -> list[str]:
        """Which of some ids the store does not hold, in order."""
        return self._store.missing(doc_ids)

    def memory_tokens(self) -> int:
        """Memory tokens of all documents together."""
        return self._store.memory_tokens()

    def _memory(self, rows: Rows) -> Memory:
        if rows.doc_ids:
            values, lengths = rows.memory()
            if values.shape[1] != self.meta.dim:
                raise CorruptStoreError(
                    f"the store at {self._store.uri} holds vectors {values.shape[1]} wide; its description says "
                    f"{self.meta.dim}."
                )
            tensor = torch.from_numpy(values)
        else:
            tensor, lengths = torch.empty(0, self.meta.dim), []
        return Memory(tensor, tuple(int(n) for n in lengths), self.meta.stage, self._digest, rows.doc_ids)

    @property
    def _digest(self) -> str:
        return self.meta.fingerprint.components.get("connector", "")

    @property
    def _store(self) -> Store:
        if self._opened is None:
            raise StoreError("The reader is closed; open another one.")
        return self._opened

    @cached_property
    def connector(self) -> Connector:
        """The connector kept in the store, in fp32: what turns stage ``"hidden"`` into a decoder's embeddings.

        Raises:
            CorruptStoreError: it cannot be read, or is not the one that the store was made with.
        """
        digest = self.meta.fingerprint.components.get("connector", "")
        origin = f"the store at {self._store.uri}"
        connector = Connector.from_bytes(self._store.asset(CONNECTOR_ASSET), digest, origin)
        width = connector.in_dim if self.meta.stage == "hidden" else connector.out_dim
        if width != self.meta.dim:
            raise CorruptStoreError(
                f"{origin}: its connector is for vectors {width} wide; its own are {self.meta.dim}."
            )
        return connector

    @property
    def meta(self) -> StoreMeta:
        """What the store says of itself: fingerprint, stage, width, codec."""
        return self._store.meta

    @property
    def version(self) -> int:
        """The version that is read."""
        return self._store.version

    def ids(self) -> Iterator[str]:
        """All ids, in the order of the store's rows."""
        return self._store.ids()

    def __len__(self) -> int:
        return self._store.count

    def close(self) -> None:
        """Let go of the store; reading after this is an error."""
        self._opened = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._store.uri, self._store.version)


def _reopen(uri: str, version: int) -> Reader:
    return Reader(uri, version=version)
