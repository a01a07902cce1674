"""The decoder's prompt: a question and its documents, each document as memory tokens or as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import CheckpointError
from .passages import MEMORY_TOKEN, clean_text

SYSTEM = (
    "You are a helpful assistant. Your task is to extract relevant information from provided documents and to answer "
    "to questions as briefly as possible."
)


class Prompt(Protocol):
    """The prompt of a checkpoint family."""

    @property
    def memory_token(self) -> str:
        """Token that stands for one memory vector, in the decoder's vocabulary."""
        ...

    def clean(self, text: str) -> str:
        """Return a text in which no literal special token stands for memory."""
        ...

    def __call__(self, question: str, documents: Sequence[int | str], *, answer: str | None = None) -> str:
        """Return the prompt's text.

        Args:
            question: question to answer.
            documents: number of memory vectors of each document, or its text.
            answer: text that closes the assistant's turn; None leaves the turn open, for generation.
        """
        ...


@dataclass(frozen=True)
class PiscoPrompt:
    """The prompt of family "pisco" (see ``prompt_text``).

    Attributes:
        tokenizer: the decoder's tokenizer, whose chat template is used.
    """

    tokenizer: Any

    memory_token = MEMORY_TOKEN

    def clean(self, text: str) -> str:
        """Return a text with its literal memory tokens spelled apart."""
        return clean_text(text)

    def __call__(self, question: str, documents: Sequence[int | str], *, answer: str | None = None) -> str:
        """Return the prompt's text."""
        return prompt_text(self.tokenizer, question, documents, answer=answer)


def prompt_text(
    tokenizer: Any,
    question: str,
    documents: Sequence[int | str],
    *,
    answer: str | None = None,
    further: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the prompt of family "pisco".

    Args:
        tokenizer: the decoder's tokenizer, whose chat template is used.
        question: question to answer.
        documents: number of memory vectors of each document, or its text.
        answer: text that closes the assistant's turn, for training; None leaves the turn open, for generation.
        further: questions and answers that follow in the same conversation, for training.

    Raises:
        CheckpointError: the tokenizer has no chat template, or the template fails.
    """
    messages = [_message("system", SYSTEM), _message("user", user_text(question, documents))]
    if answer is not None:
        messages.append(_message("assistant", answer))
    for further_question, further_answer in further:
        messages.append(_message("user", f" Question: {clean_text(further_question)}"))
        messages.append(_message("assistant", further_answer))
    return chat_text(tokenizer, messages)


def user_text(question: str, documents: Sequence[int | str]) -> str:
    """Return the user's message: ``Document {j}:`` and the content of each document, then the question.

    Args:
        question: question to answer; literal memory tokens in it are spelled apart.
        documents: number of memory vectors of each document, or its text, which is cleaned like the question.
    """
    contents = (clean_text(d) if isinstance(d, str) else MEMORY_TOKEN * d for d in documents)
    background = "".join(f"Document {j}:{content}" for j, content in enumerate(contents))
    return f"\n\nBackground:{background}\n Question: {clean_text(question)}"


def chat_text(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """Return a conversation as the tokenizer's chat template writes it, with thinking off.

    The assistant's turn is left open unless the last message is the assistant's.

    Args:
        tokenizer: the decoder's tokenizer.
        messages: ``role`` and ``content`` of each message. The first is the system's and the second the user's; if the
            template refuses a system message, its text is put before the user's.

    Raises:
        CheckpointError: the tokenizer has no chat template, or the template fails.
    """
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the decoder's tokenizer has no chat template; add chat_template.jinja to it."
        )
    system, user, *rest = messages
    without_system = [_message("user", f"{system['content']}\n{user['content']}"), *rest]
    is_open = messages[-1]["role"] != "assistant"
    failure = None
    for attempt in (messages, without_system):
        try:
            return tokenizer.apply_chat_template(
                list(attempt), tokenize=False, add_generation_prompt=is_open, enable_thinking=False
            )
        # A template is a program in a sandbox, and may fail in any way that a program does.
        except Exception as error:  # noqa: BLE001
            failure = error
    lines = str(failure).splitlines() or [type(failure).__name__]
    raise CheckpointError(f"{tokenizer.name_or_path}: the chat template fails: {lines[0][:300]}.") from failure


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
