"""The decoder's prompt: text around memory slots."""

from collections.abc import Sequence
from typing import Any

from ..errors import CheckpointError
from .passages import MEMORY_TOKEN, clean_text

SYSTEM = (
    "You are a helpful assistant. Your task is to extract relevant information from provided documents and to answer "
    "to questions as briefly as possible."
)


def user_text(question: str, documents: Sequence[int | str]) -> str:
    """The user's turn: ``Document {j}:`` with what stands for each document, then the question.

    Args:
        question: spelled apart where it holds literal memory tokens, as a document's text is.
        documents: how many memory vectors stand for a document, or its text.
    """
    contents = (clean_text(d) if isinstance(d, str) else MEMORY_TOKEN * d for d in documents)
    background = "".join(f"Document {j}:{content}" for j, content in enumerate(contents))
    return f"\n\nBackground:{background}\n Question: {clean_text(question)}"


def prompt_text(
    tokenizer: Any,
    question: str,
    documents: Sequence[int | str],
    *,
    answer: str | None = None,
    further: Sequence[tuple[str, str]] = (),
) -> str:
    """The prompt through the decoder's chat template.

    Args:
        tokenizer: the checkpoint's decoder tokenizer.
        question: what is asked.
        documents: memory tokens of each document, or its text (see ``user_text``).
        answer: None leaves the assistant's turn open, for generation; a text closes it, for training.
        further: questions and answers that follow in the same conversation.

    Raises:
        CheckpointError: if the tokenizer has no chat template, or it fails.
    """
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the decoder's tokenizer has no chat template; add chat_template.jinja to it."
        )
    user = user_text(question, documents)
    with_system = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
    without_system = [{"role": "user", "content": f"{SYSTEM}\n{user}"}]
    failure = None
    # Some templates refuse a system turn: its text then opens the user's.
    for turns in (with_system, without_system):
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        for asked, answered in further:
            turns.append({"role": "user", "content": f" Question: {clean_text(asked)}"})
            turns.append({"role": "assistant", "content": answered})
        try:
            return tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=answer is None, enable_thinking=False
            )
        # A template is a program in a sandbox, and may fail in any way that programs do.
        except Exception as error:  # noqa: BLE001
            failure = error
    lines = str(failure).splitlines() or [type(failure).__name__]
    raise CheckpointError(f"{tokenizer.name_or_path}: the chat template fails: {lines[0][:300]}.") from failure
