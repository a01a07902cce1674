"""Access to the server: keys, its host names, and the headers that protect its page."""

import hashlib
import hmac
import time
from collections.abc import Collection
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ConfigError
from ..places import input_path
from .failures import ApiError, api_error
from .metrics import ServerMetrics

# Paths that need no key: probes, and the page, which holds nothing and asks for the key itself.
_PUBLIC = frozenset({"/", "/page.css", "/page.js", "/health", "/ready"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
# Shorter keys can be guessed.
_KEY_CHARACTERS = 16
# Status of a response that was never begun, because the client hung up.
_NOT_BEGUN = 499
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


class Keys:
    """The keys that clients may present. They are compared in constant time.

    Args:
        keys: the keys; none admits everyone.
    """

    def __init__(self, keys: Collection[str] = ()):
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def read(cls, path: str | Path) -> "Keys":
        """Read the keys in a file, one in each line.

        Raises:
            ConfigError: it cannot be read, has no key, or one that is too short.
        """
        try:
            lines = input_path(path, ConfigError).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: the file of keys cannot be read: {error}.") from None
        keys = [line.strip() for line in lines if line.strip()]
        if not keys or min(map(len, keys)) < _KEY_CHARACTERS:
            found = "a shorter one" if keys else "none"
            raise ConfigError(
                f"{path}: each line must hold a key of at least {_KEY_CHARACTERS} characters; found {found}. Make one: "
                "openssl rand -hex 32"
            )
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admits(self, authorization: str) -> bool:
        """Return True for a header ``Bearer KEY`` with one of the keys."""
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        # Every key is compared, so that the time does not tell which of them is near.
        matches = [hmac.compare_digest(given, each) for each in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Gate:
    """Lets requests in, counts them, and adds headers to their responses.

    Args:
        app: the application behind it.
        keys: keys that clients may present.
        metrics: counters.
        names: host names that requests without a key must name, so that no web page reaches a server of this machine
            through a name of its own; empty for any.
    """

    def __init__(self, app: ASGIApp, *, keys: Keys, metrics: ServerMetrics, names: Collection[str]):
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._names = frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = _NOT_BEGUN

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope["path"], Headers(scope=scope))
        app = self._app if refusal is None else refusal.response()
        try:
            await app(scope, receive, sending)
        except Exception as error:
            # Once a response has begun, all that can be done is to break the connection off.
            if status != _NOT_BEGUN:
                status = 500
                raise
            await api_error(error).response()(scope, receive, sending)
        finally:
            # Only known paths become labels, of which each costs memory.
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.request(path, status, time.monotonic() - began)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        if self._keys:
            if path in _PUBLIC or self._keys.admits(headers.get("authorization", "")):
                return None
            return ApiError(
                401,
                "Give a valid key in the header: Authorization: Bearer KEY.",
                "invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        name = _host_name(headers.get("host", ""))
        if self._names and name not in self._names:
            return ApiError(
                421,
                f"A server without keys answers to its own names only, not to {name!r:.80}. Let the proxy send "
                "Host: localhost, or start the server with --api-key-file.",
                "wrong_host",
            )
        return None


def own_names(host: str) -> frozenset[str]:
    """Return the host names that requests to an address of this machine may have; empty for others."""
    bracketed = f"[{host}]" if ":" in host else host
    return _LOOPBACK if bracketed in _LOOPBACK or host.startswith("127.") else frozenset()


def is_loopback(host: str) -> bool:
    """Return True if only this machine reaches an address."""
    return bool(own_names(host))


def _host_name(header: str) -> str:
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdigit() else header).lower()
