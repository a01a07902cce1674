"""Fetching memory by document id."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors.torch import load as load_tensors

from ..errors import StoreError
from ..model.connector import Connector
from ..model.memory import Memory
from ..store import CONNECTOR_ASSET, Store, StoreMeta


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
        if isinstance(doc_ids, str):
            raise TypeError(f"fetch takes a list of ids, not the string {doc_ids!r}")
        if strange := [doc_id for doc_id in doc_ids if not isinstance(doc_id, str)]:
            raise TypeError(f"ids are strings, not {strange[0]!r}")
        rows = self._store.fetch(doc_ids, missing=missing)
        if rows.doc_ids:
            values, lengths = rows.memory()
            tensor = torch.from_numpy(values)
        else:
            tensor, lengths = torch.empty(0, self.meta.dim), []
        digest = self.meta.fingerprint.components["connector"]
        return Memory(tensor, tuple(int(n) for n in lengths), self.meta.stage, digest, rows.doc_ids)

    @property
    def _store(self) -> Store:
        if self._opened is None:
            raise StoreError("The reader is closed; open another one.")
        return self._opened

    @cached_property
    def connector(self) -> Connector:
        """The connector kept in the store, in fp32: what turns stage ``"hidden"`` into a decoder's embeddings."""
        return Connector.from_state(load_tensors(self._store.asset(CONNECTOR_ASSET)), self._store.uri)

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
