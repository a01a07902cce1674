"""The stores that a server answers from, by name; each can be opened anew while it is read."""

import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import PiscoIndexError, StoreError
from ..reader.index import Index
from ..store import StoreInfo, Version, describe, versions
from .failures import ApiError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A version of a store that is served. Requests keep the version that they began with.

    Attributes:
        name: name of the store, which is the model's name in requests.
        index: the opened store.
    """

    name: str
    index: Index

    @cached_property
    def is_searchable(self) -> bool:
        """True if documents can be found in the store."""
        try:
            self.index.reader.require_index()
        except StoreError:
            return False
        return True

    @cached_property
    def info(self) -> StoreInfo:
        """The store in numbers. Counting takes seconds in a large store."""
        return describe(self.index.reader.store)

    @cached_property
    def history(self) -> list[Version]:
        """The last versions of the store."""
        return versions(self.index.reader.store)

    def to_dict(self) -> dict[str, Any]:
        """Return the store as OpenAI describes a model."""
        reader = self.index.reader
        return {
            "id": self.name,
            "object": "model",
            "created": int(reader.meta.created_at.timestamp()),
            "owned_by": "pisco-index",
            "documents": len(reader),
            "version": reader.version,
            "searchable": self.is_searchable,
        }

    def warm(self) -> None:
        """Read a document, so that no request waits for the map of ids to be loaded."""
        reader = self.index.reader
        _ = self.is_searchable
        reader.sizes([doc_id for doc_id, _ in zip(reader.ids(), range(1), strict=False)])


class Stores:
    """The served stores.

    Args:
        indexes: opened stores by name.
    """

    def __init__(self, indexes: Mapping[str, Index]):
        self._served = {name: Served(name, index) for name, index in indexes.items()}
        self._lock = threading.Lock()
        for served in self:
            served.warm()

    def __iter__(self) -> Iterator[Served]:
        return iter(list(self._served.values()))

    def get(self, name: str | None) -> Served:
        """Return a store by name; None stands for the only one.

        Raises:
            ApiError: there is no such store, or none is named of several.
        """
        names = ", ".join(self._served)
        if name is None:
            if len(self._served) > 1:
                raise ApiError(400, f"Name the model: one of {names}.", "model_missing", param="model")
            return next(iter(self))
        if name not in self._served:
            raise ApiError(404, f"There is no model {name!r:.80}. Models: {names}.", "model_not_found", param="model")
        return self._served[name]

    def close(self) -> None:
        """Release the served versions."""
        for served in self:
            served.index.close()

    def reload(self) -> list[dict[str, Any]]:
        """Open the latest version of each store, and return them; a store that cannot be opened keeps its version."""
        with self._lock:
            return [self._reloaded(served) for served in self]

    def _reloaded(self, served: Served) -> dict[str, Any]:
        before = served.index.reader.version
        try:
            newer = Served(served.name, served.index.reopen())
            newer.warm()
        except PiscoIndexError:
            _log.exception("the store %s cannot be opened anew, and its version %d stays", served.name, before)
            return {"id": served.name, "version": before, "version_before": before, "error": "cannot be opened anew"}
        # The former version is released when the last of its questions is answered.
        self._served[served.name] = newer
        return {"id": served.name, "version": newer.index.reader.version, "version_before": before, "error": None}
