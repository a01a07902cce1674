"""The decoder's prompt: text around memory slots."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from ..errors import CheckpointError
from .passages import MEMORY_TOKEN, clean_text

SYSTEM = (
    "You are a helpful assistant. Your task is to extract relevant information from provided documents and to answer "
    "to questions as briefly as possible."
)


def user_text(question: str, lengths: Sequence[int]) -> str:
    """The user's turn: ``Document {j}:`` and a memory slot for each of its vectors, then the question."""
    documents = "".join(f"Document {j}:{MEMORY_TOKEN * n}" for j, n in enumerate(lengths))
    return f"\n\nBackground:{documents}\n Question: {clean_text(question)}"


def prompt_text(tokenizer: Any, question: str, lengths: Sequence[int], *, answer: str | None = None) -> str:
    """The prompt through the decoder's chat template.

    Args:
        tokenizer: the checkpoint's decoder tokenizer.
        question: spelled apart where it holds literal memory tokens.
        lengths: memory tokens of each document.
        answer: None leaves the assistant's turn open, for generation; a text closes it, for training.

    Raises:
        CheckpointError: if the tokenizer has no chat template, or it fails.
    """
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the decoder's tokenizer has no chat template; add chat_template.jinja to it."
        )
    user = user_text(question, lengths)
    with_system = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
    without_system = [{"role": "user", "content": f"{SYSTEM}\n{user}"}]
    failure = None
    # Some templates refuse a system turn: its text then opens the user's.
    for turns in (with_system, without_system):
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        try:
            return tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=answer is None, enable_thinking=False
            )
        except TemplateError as error:
            failure = error
    raise CheckpointError(f"{tokenizer.name_or_path}: the chat template fails: {failure}.") from failure
