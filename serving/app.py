"""The application: which path is answered by which function."""

from collections.abc import Collection
from pathlib import Path

from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..configs import ServeConfig
from ..errors import PiscoIndexError
from ..reader.live.loop import LiveAnswering
from .access import Gate, Keys
from .browsing import Browsing
from .chat import Chat
from .failures import ApiError, failure_response
from .metrics import ServerMetrics
from .responses import JsonResponse
from .stores import Stores

_PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def make_app(
    stores: Stores,
    live: LiveAnswering,
    config: ServeConfig,
    keys: Keys,
    *,
    names: Collection[str] = (),
) -> Starlette:
    """Return the application that answers from stores.

    Args:
        stores: the stores by name.
        live: the running loop that answers.
        config: limits and defaults.
        keys: keys that clients may present; none admits everyone.
        names: host names that requests without a key must name (see ``Gate``).
    """
    metrics = ServerMetrics()
    chat, browsing = Chat(stores, live, config, metrics), Browsing(stores, config)

    async def health(_request: Request) -> Response:
        return JsonResponse({"status": "ok"})

    async def ready(_request: Request) -> Response:
        # A look at an engine elsewhere waits for it.
        problem = await run_sync(live.problem)
        return JsonResponse({"status": "ready" if problem is None else "not ready"}, 200 if problem is None else 503)

    async def numbers(_request: Request) -> Response:
        metrics.load(live.queued, live.running)
        return metrics.response()

    routes = [
        Route("/v1/chat/completions", chat.post, methods=["POST"]),
        Route("/v1/models", browsing.models),
        Route("/v1/models/{name:path}", browsing.model),
        Route("/v1/documents", browsing.documents),
        Route("/v1/documents/{doc_id:path}", browsing.document),
        Route("/v1/stores/{name:path}", browsing.store),
        Route("/v1/retrieve", browsing.retrieve, methods=["POST"]),
        Route("/reload", browsing.reload, methods=["POST"]),
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", numbers),
        *(_page_route(path, *file) for path, file in _PAGE_FILES.items()),
    ]
    middleware = [Middleware(Gate, keys=keys, metrics=metrics, names=names)]
    if config.cors:
        allowed = {"allow_methods": ["GET", "POST"], "allow_headers": ["authorization", "content-type"]}
        middleware.insert(0, Middleware(CORSMiddleware, allow_origins=config.cors, **allowed))
    failures = dict.fromkeys((ApiError, HTTPException, PiscoIndexError, Exception), failure_response)
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=failures)
    app.router.redirect_slashes = False
    return app


def _page_route(path: str, file: str, media_type: str) -> Route:
    content = (_PAGE / file).read_bytes()

    async def page(_request: Request) -> Response:
        return Response(content, media_type=media_type)

    return Route(path, page)
