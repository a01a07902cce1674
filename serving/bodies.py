"""The bodies of requests: JSON of a limited size."""

from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from .failures import ApiError

# A question with a hundred ids of 512 bytes takes 51 kB.
BODY_BYTES = 1 << 20
"""Largest size of a request's body."""

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, model: type[M]) -> M:
    """Return the checked body of a request.

    Raises:
        ApiError: it is too large, no JSON, or has another form than the model.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "The body must be JSON, with the header content-type: application/json.", "not_json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise ApiError(413, f"The body is larger than {BODY_BYTES:,} bytes.", "body_too_large")
    try:
        return model.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.", "not_json") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        problem = first["msg"].removeprefix("Value error, ")
        raise ApiError(400, f"{param or 'The body'}: {problem}.", "invalid_value", param=param) from None
