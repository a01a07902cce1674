"""The endpoint ``/v1/chat/completions``: a question in, its answer out, as one body or as server-sent events."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..configs import ServeConfig
from ..reader.live.loop import LiveAnswering
from ..reader.live.question import Grounds, LiveQuestion, LiveResult
from .answering import Event, ask, until_gone
from .bodies import read_body
from .chat_request import ChatRequest
from .failures import ApiError, api_error
from .metrics import ServerMetrics
from .responses import JsonResponse
from .stores import Stores

_STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}


class Chat:
    """Answers chat completions.

    Args:
        stores: the served stores.
        live: the loop that answers.
        config: limits and defaults.
        metrics: counters.
    """

    def __init__(self, stores: Stores, live: LiveAnswering, config: ServeConfig, metrics: ServerMetrics):
        self._stores = stores
        self._live = live
        self._config = config
        self._metrics = metrics

    async def post(self, request: Request) -> Response:
        """Return the response that answers a request while it is sent."""
        deadline = asyncio.get_running_loop().time() + self._config.deadline_s
        # A server under too much load should spend no more on those that it refuses.
        self._live.require_room()
        asked = await read_body(request, ChatRequest, deadline)
        question = self._question(asked)
        return _Completion(asked, ask(self._live, question, deadline), self._live, self._metrics)

    def _question(self, asked: ChatRequest) -> LiveQuestion:
        text = asked.question()
        store = self._stores.get(asked.model)
        most = self._config.max_documents
        hits = asked.hits or min(self._config.documents, most)
        if max(hits, len(asked.documents or ())) > most:
            raise ApiError(
                400, f"At most {most} documents can be named or found for a question.", "too_many_documents",
                param="hits" if asked.documents is None else "documents",
            )  # fmt: skip
        if asked.documents is None and not store.is_searchable:
            raise ApiError(
                400, f"The store of model {store.name} has no search index. Name documents.", "not_searchable",
                param="documents",
            )  # fmt: skip
        tokens, limit = asked.new_tokens, self._config.max_tokens
        if tokens is not None and limit is not None and tokens > limit:
            raise ApiError(400, f"At most {limit} tokens can be asked for.", "too_many_tokens",
                param="max_completion_tokens" if asked.max_completion_tokens else "max_tokens")  # fmt: skip
        return LiveQuestion(
            index=store.index,
            text=text,
            doc_ids=None if asked.documents is None else tuple(asked.documents),
            hits=hits,
            max_new_tokens=tokens or min(self._config.max_new_tokens, limit or self._config.max_new_tokens),
            streams=bool(asked.stream),
        )


class _Completion(Response):
    """A response that asks its question when it is sent, and gives it up when the client hangs up."""

    def __init__(self, asked: ChatRequest, events: AsyncIterator[Event], live: LiveAnswering, metrics: ServerMetrics):
        super().__init__()
        self._asked = asked
        self._events = events
        self._live = live
        self._metrics = metrics
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer while the client waits."""
        answer = self._stream if self._asked.stream else self._whole
        tasks = [asyncio.ensure_future(each) for each in (answer(scope, receive, send), until_gone(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            self._metrics.load(self._live.queued, self._live.running)
        if isinstance(results[0], Exception):
            raise results[0]

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        grounds = None
        async with aclosing(self._events) as events:  # pyrefly: ignore
            async for event in events:
                if isinstance(event, Grounds):
                    grounds = event
                elif isinstance(event, LiveResult) and grounds is not None:
                    self._metrics.answer(grounds, event)
                    message = {"role": "assistant", "content": event.text}
                    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": event.reason}
                    body = self._body("chat.completion", [choice]) | _told(grounds, event)
                    await JsonResponse(body)(scope, receive, send)

    async def _stream(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the answer as events. An error before the documents are known has a status of its own."""
        grounds = None
        try:
            async with aclosing(self._events) as events:  # pyrefly: ignore
                async for event in events:
                    match event:
                        case Grounds():
                            grounds = event
                            await send(
                                {
                                    "type": "http.response.start",
                                    "status": 200,
                                    "headers": [(k.encode(), v.encode()) for k, v in _STREAM_HEADERS.items()],
                                }
                            )
                            first = self._chunk({"role": "assistant", "content": ""})
                            await self._send(send, first | {"documents": _documents(grounds)})
                        case str():
                            await self._send(send, self._chunk({"content": event}))
                        case LiveResult() if grounds is not None:
                            self._metrics.answer(grounds, event)
                            await self._send(send, self._chunk({}, event.reason))
                            if self._asked.includes_usage:
                                body = self._body("chat.completion.chunk", []) | _told(grounds, event)
                                await self._send(send, body)
        except Exception as error:
            if grounds is None:
                raise
            await self._send(send, api_error(error).to_dict())
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def _send(self, send: Send, body: Any) -> None:
        event = b"data: " + orjson.dumps(body) + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})

    def _chunk(self, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._body("chat.completion.chunk", [choice])

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._asked.model,
            "choices": choices,
        }


def _told(grounds: Grounds, result: LiveResult) -> dict[str, Any]:
    """Return what the end of an answer tells beside its text."""
    usage = {
        "prompt_tokens": grounds.prompt_tokens,
        "completion_tokens": result.tokens,
        "total_tokens": grounds.prompt_tokens + result.tokens,
        "memory_tokens": grounds.memory_tokens,
        "text_tokens": grounds.text_tokens,
        "saved_text_tokens": max(grounds.text_tokens - grounds.memory_tokens, 0),
    }
    timings = {name: round(seconds, 6) for name, seconds in asdict(result.timings).items()}
    return {"usage": usage, "documents": _documents(grounds), "timings": timings}


def _documents(grounds: Grounds) -> list[dict[str, Any]]:
    return [{"id": each.doc_id, "score": each.score, "memory_tokens": each.memory_tokens} for each in grounds.documents]
