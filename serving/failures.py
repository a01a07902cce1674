"""Errors in OpenAI's form. No message names a path of this machine, and none has a stack trace."""

import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..errors import DeadlineError, EngineError, MissingDocumentsError, PromptError, QueueFullError
from .responses import JsonResponse

# Seconds after which a client whose question found no place may ask again.
_RETRY_AFTER = "1"

_log = logging.getLogger(__name__)


class ApiError(Exception):
    """A request that is refused.

    Args:
        status: HTTP status.
        message: what is wrong and what to do.
        code: word for programs.
        param: name of the parameter that is wrong.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        """Return the error in OpenAI's form."""
        kind = {401: "authentication_error"}.get(self.status, "invalid_request_error")
        kind = "server_error" if self.status >= 500 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Return the response to the client."""
        return JsonResponse(self.to_dict(), self.status, headers=self.headers)


def api_error(error: Exception) -> ApiError:
    """Return the error to tell the client. Others than a client's own are logged, and told in general words."""
    match error:
        case ApiError():
            return error
        case HTTPException():
            code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
            return ApiError(error.status_code, f"{error.detail}.", code, headers=error.headers)
        case MissingDocumentsError():
            return ApiError(404, str(error), "document_not_found", param="documents")
        case PromptError():
            return ApiError(400, str(error), "unusable_prompt", param="messages")
        case QueueFullError():
            return ApiError(503, str(error), "queue_full", headers={"retry-after": _RETRY_AFTER})
        case DeadlineError():
            return ApiError(504, str(error), "deadline_exceeded")
        case EngineError():
            _log.error("the engine failed: %s", error)
            return ApiError(502, "The engine that generates answers failed. The server's log says more.", "engine")
    _log.error("a request failed", exc_info=error)
    return ApiError(500, "The server failed at this request. Its log says more.", "internal_error")


def failure_response(_request: Request, error: Exception) -> Response:
    """Return the response to a request that raised an error."""
    return api_error(error).response()
