"""The endpoints that show what stores hold: models, documents, a search, and a store in numbers."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from ..configs import ServeConfig
from ..store import describe_documents
from .bodies import read_body
from .failures import ApiError
from .responses import JsonResponse
from .stores import Served, Stores
from .workers import reload_all

# Documents of a page at most: each is read with its text.
_PAGE = 100
# Readings of stores at the same time, and those that wait for their turn.
_THREADS = 4
_WAITING = 128

T = TypeVar("T")


class RetrieveRequest(BaseModel):
    """The body of a request to ``/v1/retrieve``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: str = Field(min_length=1)
    model: str | None = None
    hits: int | None = Field(None, ge=1)


class Browsing:
    """Shows what stores hold.

    Args:
        stores: the served stores.
        config: limits and defaults.
    """

    def __init__(self, stores: Stores, config: ServeConfig):
        self._stores = stores
        self._config = config
        self._limiter = CapacityLimiter(_THREADS)

    async def models(self, _request: Request) -> Response:
        """List the stores."""
        return JsonResponse({"object": "list", "data": [served.to_dict() for served in self._stores]})

    async def model(self, request: Request) -> Response:
        """Return a store as OpenAI describes a model."""
        return JsonResponse(self._stores.get(request.path_params["name"]).to_dict())

    async def store(self, request: Request) -> Response:
        """Return a store in numbers, with its history."""
        served = self._stores.get(request.path_params["name"])
        return JsonResponse(await self._read(lambda: _store(served)))

    async def document(self, request: Request) -> Response:
        """Return a document with its text, if the store keeps it."""
        served = self._stores.get(request.query_params.get("model"))
        doc_id = request.path_params["doc_id"]
        (document,) = await self._read(lambda: _documents(served, [doc_id]))
        return JsonResponse(document)

    async def documents(self, request: Request) -> Response:
        """Return a page of documents in the order of the store, or those that a search finds, without their texts."""
        served = self._stores.get(request.query_params.get("model"))
        offset, limit = _number(request, "offset", 0), min(_number(request, "limit", 20), _PAGE)
        search = request.query_params.get("search", "").strip()
        if search and not served.is_searchable:
            raise _not_searchable(served, "search")

        def read() -> list[dict[str, Any]]:
            return _found(served, search, offset, limit) if search else _page(served, offset, limit)

        found = await self._read(read)
        return JsonResponse(
            {"object": "list", "model": served.name, "total": len(served.index.reader), "offset": offset, "data": found}
        )

    async def retrieve(self, request: Request) -> Response:
        """Return the documents that the search finds for a question."""
        deadline = asyncio.get_running_loop().time() + self._config.deadline_s
        asked = await read_body(request, RetrieveRequest, deadline)
        served = self._stores.get(asked.model)
        hits = asked.hits or self._config.documents
        if hits > self._config.max_documents:
            most = self._config.max_documents
            raise ApiError(400, f"At most {most} documents can be found.", "too_many_documents", param="hits")
        if not served.is_searchable:
            raise _not_searchable(served, "model")

        def search() -> list[dict[str, Any]]:
            found = served.index.search(asked.query, hits)
            titles = served.index.reader.titles([hit.doc_id for hit in found])
            return [
                {"id": hit.doc_id, "score": hit.score, "title": title} for hit, title in zip(found, titles, strict=True)
            ]

        return JsonResponse({"object": "list", "model": served.name, "data": await self._read(search)})

    async def reload(self, request: Request) -> Response:
        """Open the latest version of each store while questions are answered."""
        # Browsers let a page of another site send a form here, without a key or a permission.
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise ApiError(403, "A page of another site cannot reload the stores.", "wrong_origin")
        reload_all()
        return JsonResponse({"object": "list", "data": await run_sync(self._stores.reload)})

    async def _read(self, read: Callable[[], T]) -> T:
        """Return what a function reads from a store, in a thread."""
        if self._limiter.statistics().tasks_waiting >= _WAITING:
            raise ApiError(503, "Too many requests read the stores. Ask again later.", "busy",
                headers={"retry-after": "1"})  # fmt: skip
        return await run_sync(read, limiter=self._limiter)


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isdecimal() or len(text) > 12:
        raise ApiError(
            400, f"{name} must be a whole number of at least 0, not {text!r:.40}.", "invalid_value", param=name
        )
    return int(text)


def _not_searchable(served: Served, param: str) -> ApiError:
    return ApiError(400, f"The store of model {served.name} has no search index.", "not_searchable", param=param)


def _page(served: Served, offset: int, limit: int) -> list[dict[str, Any]]:
    store = served.index.reader.store
    end = min(offset + limit, store.count)
    ids = store.take(range(offset, end), ["doc_id"]).column(0).to_pylist() if offset < end else []
    return _documents(served, ids, with_text=False) if ids else []


def _found(served: Served, search: str, offset: int, limit: int) -> list[dict[str, Any]]:
    """Return the document whose id is searched for, and those whose text has the words."""
    reader = served.index.reader
    most = min(offset + limit, 1000)
    found = [search] if search in reader else []
    found += [hit.doc_id for hit in reader.search(search, most) if hit.doc_id != search]
    return _documents(served, found[offset:most], with_text=False)


def _documents(served: Served, doc_ids: Sequence[str], *, with_text: bool = True) -> list[dict[str, Any]]:
    shown = []
    for each in describe_documents(served.index.reader.store, doc_ids):
        document = {
            "id": each["doc_id"],
            "object": "document",
            "model": served.name,
            "title": each.get("title"),
            "tokens": each["tokens_total"],
            "tokens_compressed": each["tokens_fed"],
            "memory_tokens": each["n_mem"],
            "memory_bytes": each["payload_bytes"],
            "codec": each["codec"],
            "error": each["error"],
        }
        if with_text:
            # The text of the corpus, or with its title as it was compressed.
            document["text"] = each.get("text") or each.get("contents")
        shown.append(document)
    return shown


def _store(served: Served) -> dict[str, Any]:
    info = served.info
    described = info.to_dict()
    kept = (
        "version", "stage", "dim", "codec", "documents", "failed_documents", "rejected_records", "tokens_total",
        "tokens_fed", "n_mem", "payload_bytes", "table_bytes", "compression", "payload_bytes_per_document",
        "searchable", "format_version",
    )  # fmt: skip
    history = [asdict(version) | {"time": version.time.isoformat()} for version in served.history]
    return {"id": served.name, "object": "store", **{name: described[name] for name in kept}, "history": history}
