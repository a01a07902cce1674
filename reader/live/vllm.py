"""A vLLM server as the engine: prompts with their memory are sent to it as embeddings."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import orjson
import torch

from ...errors import ConfigError, EngineError, PromptError
from ...model.decoder import Decoder
from ...model.decoding.live import LiveAnswer, Take
from ...model.decoding.text import TextStream, answer_text

# Seconds between two looks for answers to begin and for answers that nobody wants any more.
_LOOK = 0.02
# Seconds to reach the server, and between two tokens; the first token may wait for others.
_TIMEOUT = httpx.Timeout(600.0, connect=5.0)


class VllmEngine:
    """A vLLM server that was started with ``--enable-prompt-embeds`` and the checkpoint's exported decoder.

    Args:
        url: address of the server, for example ``http://127.0.0.1:8001``.
        embedder: decoder that embeds the prompts, in the dtype of the server; see ``load_embedder``.
        token_budget: see ``Engine``; default: the decoder's.

    Raises:
        ConfigError: the server does not answer or serves no model, or answers would have a repetition penalty.
    """

    def __init__(self, url: str, embedder: Decoder, token_budget: int | None = None):
        if embedder.generation.repetition_penalty != 1:
            # vLLM would count tokens of prompts that it does not know, and give other answers than this package.
            raise ConfigError(
                f"vLLM cannot apply the repetition penalty {embedder.generation.repetition_penalty:g} to prompts with "
                "memory. Do without it (--repetition-penalty 1), or let this process generate (--engine local)."
            )
        self._url = url.rstrip("/").removesuffix("/v1")
        self._embedder = embedder
        self.token_budget = token_budget or embedder.token_budget
        self.prompt_ids = embedder.prompt_ids
        try:
            models = httpx.get(f"{self._url}/v1/models", timeout=_TIMEOUT).raise_for_status().json()["data"]
            self._model, self._context = models[0]["id"], models[0].get("max_model_len")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"{url}: no vLLM server answers there ({type(error).__name__}). Start it, or correct --engine-url."
            ) from None

    def require_fit(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Check that every prompt fits the context of the decoder and of the server.

        Raises:
            PromptError: stating the length of the longest prompt.
        """
        self._embedder.require_fit(prompts, max_new_tokens)
        longest = max(map(len, prompts), default=0)
        if self._context is not None and longest + max_new_tokens > self._context:
            raise PromptError(
                f"A prompt of {longest} tokens and an answer of up to {max_new_tokens} do not fit the engine's context "
                f"of {self._context}. Give fewer documents, or a smaller number of new tokens."
            )

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of an answer."""
        return answer_text(self._embedder.tokenizer, ids)

    def stream(self) -> TextStream:
        """Return a maker of the text of one answer."""
        return TextStream(self._embedder.tokenizer)

    def problem(self) -> str | None:
        """Return the reason why the server cannot answer now; None if it can."""
        try:
            httpx.get(f"{self._url}/health", timeout=_TIMEOUT.connect).raise_for_status()
        except httpx.HTTPError as error:
            return f"The vLLM server does not answer: {type(error).__name__}."
        return None

    def run(self, take: Take) -> None:
        """Send prompts and receive tokens until ``take`` returns None."""
        asyncio.run(self._run(take))

    async def _run(self, take: Take) -> None:
        tasks: dict[LiveAnswer, asyncio.Task[None]] = {}
        # Any number of connections: the token budget limits the answers in progress.
        async with httpx.AsyncClient(timeout=_TIMEOUT, limits=httpx.Limits(max_connections=None)) as client:
            while True:
                for answer, task in list(tasks.items()):
                    if task.done():
                        del tasks[answer]
                        if not task.cancelled() and (error := task.exception()) is not None:
                            answer.fail(EngineError(f"vLLM cannot be asked: {type(error).__name__}: {error}"))
                    elif not answer.is_wanted():
                        task.cancel()
                new = await asyncio.to_thread(take, list(tasks), _LOOK if tasks else None)
                if new is None:
                    break
                for answer in new:
                    tasks[answer] = asyncio.create_task(self._answer(client, answer))

    async def _answer(self, client: httpx.AsyncClient, answer: LiveAnswer) -> None:
        try:
            body = await asyncio.to_thread(self._body, answer)
            async with client.stream("POST", f"{self._url}/v1/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    problem = (await response.aread()).decode("utf-8", "replace")
                    raise EngineError(f"vLLM answers with status {response.status_code}: {problem[:300]}")
                await _tell(answer, response.aiter_lines())
        except (EngineError, PromptError) as error:
            answer.fail(error)
        except (httpx.HTTPError, ValueError, LookupError) as error:
            answer.fail(EngineError(f"vLLM failed: {type(error).__name__}: {error}"))

    def _body(self, answer: LiveAnswer) -> dict[str, Any]:
        embeddings = self._embedder.embed(answer.prompt, answer.memory)
        file = io.BytesIO()
        # A copy: a view would be written with all that it is a view of.
        torch.save(embeddings.clone(), file)
        return {
            "model": self._model,
            "prompt_embeds": base64.b64encode(file.getvalue()).decode(),
            "max_tokens": answer.limit,
            "temperature": 0,
            "repetition_penalty": 1,
            "stop_token_ids": list(self._embedder.generation.stop_token_ids),
            "stream": True,
            "return_token_ids": True,
        }


async def _tell(answer: LiveAnswer, lines: AsyncIterator[str]) -> None:
    """Tell an answer the tokens of server-sent events."""
    async for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        event = orjson.loads(data)
        if "choices" not in event:
            raise EngineError(f"vLLM failed: {str(event)[:300]}")
        for choice in event["choices"]:
            if tokens := choice.get("token_ids"):
                answer.add(tokens)
            if (reason := choice.get("finish_reason")) in ("stop", "length"):
                answer.end(reason)
                return
            if reason is not None:
                raise EngineError(f"vLLM ended an answer: {reason}")
    raise EngineError("vLLM ended an answer before its last token.")
