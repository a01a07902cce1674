"""Configuration of a server."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Config, Flag
from .names import DOCUMENTS


class ServeConfig(Config):
    """Settings of a server that answers questions over HTTP."""

    host: Annotated[str, Flag(metavar="ADDRESS")] = Field(
        "127.0.0.1", description="Address to listen at. Any but this machine's own needs a key, or --open."
    )
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen at; 0 takes a free one.")
    api_key_file: Annotated[str | None, Flag(metavar="FILE")] = Field(
        None, description="File with the keys that clients may present, one in each line."
    )
    open: Annotated[bool, Flag(names=("--open",))] = Field(
        False, description="Serve everyone who reaches the address, without a key."
    )
    cors: Annotated[tuple[str, ...], Flag(names=("--cors",), metavar="ORIGIN")] = Field(
        (), description="Origin of web pages that may use the server, for example https://example.org."
    )
    workers: int = Field(1, ge=1, description="Number of processes, each with its own decoder and queue.")
    engine: Literal["local", "vllm"] = Field(
        "local", description="Engine that generates: the decoder in this process, or a vLLM server."
    )
    engine_url: Annotated[str | None, Flag(metavar="URL")] = Field(
        None, description="Address of the vLLM server, for example http://127.0.0.1:8001."
    )
    queue: int = Field(256, ge=1, description="Largest number of questions that wait; more get status 503.")
    wait_ms: float = Field(
        4.0, ge=0, description="Milliseconds that a question waits for others, to be read together with them."
    )
    token_budget: int | None = Field(
        None, ge=1, description="Largest number of tokens in progress; default: 16,384 on a CPU, 32,768 on a GPU."
    )
    deadline_s: float = Field(120.0, gt=0, description="Seconds after which an unfinished request gets status 504.")
    documents: Annotated[int, Flag(names=("--documents", "--hits", "-n"))] = Field(
        DOCUMENTS, ge=1, description="Number of documents to find for a question that names none."
    )
    max_documents: int = Field(100, ge=1, description="Largest number of documents that a request may name or find.")
    max_new_tokens: int = Field(128, ge=1, description="Largest number of tokens of an answer that asks for no other.")
    max_tokens: int | None = Field(
        None, ge=1, description="Largest number of tokens that a request may ask for; default: the decoder's context."
    )

    @model_validator(mode="after")
    def _check(self) -> "ServeConfig":
        if self.engine == "vllm" and self.engine_url is None:
            raise ValueError("the engine vllm is a server. Give its address (--engine-url).")
        if self.engine == "local" and self.engine_url is not None:
            raise ValueError("the engine local has no address. Leave out --engine-url, or give --engine vllm.")
        return self
