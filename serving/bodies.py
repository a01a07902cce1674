"""The bodies of requests: JSON of a limited size."""

import asyncio
from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from .failures import ApiError

# A question with a hundred ids of 512 bytes takes 51 kB.
BODY_BYTES = 1 << 20
"""Largest size of a request's body."""

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, model: type[M], deadline: float) -> M:
    """Return the checked body of a request.

    Args:
        request: the request.
        model: form of its body.
        deadline: time of the event loop at which a client that is still sending is given up.

    Raises:
        ApiError: it does not come in time, is too large, no JSON, or has another form than the model.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "The body must be JSON, with the header content-type: application/json.", "not_json")
    try:
        async with asyncio.timeout_at(deadline):
            body = await _received(request)
    except TimeoutError:
        # The rest of the body would keep the connection open.
        raise ApiError(504, "The body did not come in time. Send it at once.", "deadline_exceeded",
            headers={"connection": "close"}) from None  # fmt: skip
    try:
        return model.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.", "not_json") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        problem = first["msg"].removeprefix("Value error, ")
        raise ApiError(400, f"{param or 'The body'}: {problem}.", "invalid_value", param=param) from None


async def _received(request: Request) -> bytearray:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise ApiError(413, f"The body is larger than {BODY_BYTES:,} bytes.", "body_too_large")
    return body
