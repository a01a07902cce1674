"""Responses in JSON."""

from typing import Any

import orjson
from starlette.responses import Response


class JsonResponse(Response):
    """A response in JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return orjson.dumps(content)
