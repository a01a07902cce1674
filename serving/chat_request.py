"""The body of a chat completion: what is asked for, and what is refused."""

import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from .failures import ApiError

# Values of OpenAI's parameters that ask for nothing but one greedy answer. Others are refused. ``seed`` may have any
# value, since every answer to a question is the same.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "temperature": (0,),
    "top_p": (1,),
    "n": (1,),
    "stop": ([],),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
_WITHOUT_EFFECT = frozenset({"seed", "user", "safety_identifier", "prompt_cache_key"})


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of a request to ``/v1/chat/completions``.

    Attributes:
        model: name of the store.
        messages: one message of the user, with the question.
        documents: ids of the documents to answer from, best first; None to search for them.
        hits: number of documents to find; not beside ``documents``, which leave nothing to find.
        max_tokens: largest number of tokens of the answer; ``max_completion_tokens`` is the same.
        stream: True to get the answer as server-sent events.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    documents: list[str] | None = None
    hits: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @field_validator("documents")
    @classmethod
    def _named(cls, documents: list[str] | None) -> list[str] | None:
        if documents == []:
            raise ValueError("name at least one document, or leave this out to search for them")
        return documents

    @field_validator("hits")
    @classmethod
    def _found(cls, hits: int | None, info: ValidationInfo) -> int | None:
        if hits is not None and info.data.get("documents") is not None:
            raise ValueError("give documents, or the number of documents to find, not both")
        return hits

    @property
    def includes_usage(self) -> bool:
        """True if the stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def new_tokens(self) -> int | None:
        """Largest number of tokens of the answer, if it is given."""
        return self.max_completion_tokens or self.max_tokens

    def question(self) -> str:
        """Return the question, after a check that nothing is asked for that is not supported.

        Raises:
            ApiError: naming the parameter that is not supported.
        """
        for name, value in (self.model_extra or {}).items():
            if value is None or name in _WITHOUT_EFFECT:
                continue
            if name not in _NEUTRAL:
                raise _unsupported(name, f"The parameter {name} is not supported. Leave it out.")
            if value not in _NEUTRAL[name]:
                allowed = " or ".join(map(repr, _NEUTRAL[name]))
                # A client's value may be nested more deeply than repr can follow.
                raise _unsupported(
                    name,
                    f"{name} {reprlib.repr(value)} is not supported: answers are greedy, one a request, in text. "
                    f"Leave {name} out, or give {allowed}.",
                )
        return _question_of(self.messages)


def _question_of(messages: list[dict[str, Any]]) -> str:
    roles = [role if isinstance(role := message.get("role"), str) else reprlib.repr(role) for message in messages]
    if roles != ["user"]:
        raise _unsupported(
            "messages",
            "Give one message with the role user: the question. System messages and earlier turns are not supported, "
            f"because the decoder was trained on single questions. Found: {', '.join(roles)[:200]}.",
        )
    (message,) = messages
    if others := [name for name in message.keys() - {"role", "content", "name"} if message[name] is not None]:
        raise _unsupported("messages", f"A message's {others[0]} is not supported. Leave it out.")
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts) or not parts:
        raise ApiError(400, "The message's content must be a string or a list of parts.", "invalid_value",
            param="messages.0.content")  # fmt: skip
    for part in parts:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise _unsupported(
                "messages.0.content", f"Parts of type {reprlib.repr(part.get('type'))} are not supported: give text."
            )
    return "".join(part["text"] for part in parts)


def _unsupported(param: str, message: str) -> ApiError:
    return ApiError(400, message, "unsupported_value", param=param)
