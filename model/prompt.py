"""The decoder's prompt: a question and its documents, each document as memory tokens or as text."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from ..errors import CheckpointError, PromptError
from .framed_passages import SpecialTokens
from .passages import MEMORY_TOKEN, clean_text

SYSTEM = (
    "You are a helpful assistant. Your task is to extract relevant information from provided documents and to answer "
    "to questions as briefly as possible."
)


class Prompt(Protocol):
    """The prompt of a checkpoint family."""

    @property
    def memory_tokens(self) -> tuple[str, ...]:
        """Tokens of the decoder's vocabulary that stand for one memory vector each."""
        ...

    @property
    def adds_special_tokens(self) -> bool:
        """True if the tokenizer puts its default special tokens around the prompt's text."""
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

    memory_tokens = (MEMORY_TOKEN,)
    adds_special_tokens = False

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
    messages = [message("system", SYSTEM), message("user", user_text(question, documents))]
    if answer is not None:
        messages.append(message("assistant", answer))
    for further_question, further_answer in further:
        messages.append(message("user", f" Question: {clean_text(further_question)}"))
        messages.append(message("assistant", further_answer))
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


def chat_text(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    *,
    options: Mapping[str, Any] = MappingProxyType({"enable_thinking": False}),
) -> str:
    """Return a conversation as the tokenizer's chat template writes it, by default with thinking off.

    The assistant's turn is left open unless the last message is the assistant's.

    Args:
        tokenizer: the decoder's tokenizer.
        messages: ``role`` and ``content`` of each message. The first is the system's and the second the user's; if the
            template refuses a system message, its text is put before the user's.
        options: variables of the template.

    Raises:
        CheckpointError: the tokenizer has no chat template, or the template fails.
    """
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the decoder's tokenizer has no chat template; add chat_template.jinja to it."
        )
    system, user, *rest = messages
    without_system = [message("user", f"{system['content']}\n{user['content']}"), *rest]
    is_open = messages[-1]["role"] != "assistant"
    failure = None
    for attempt in (messages, without_system):
        try:
            return tokenizer.apply_chat_template(
                list(attempt), tokenize=False, add_generation_prompt=is_open, **options
            )
        # A template is a program in a sandbox, and may fail in any way that a program does.
        except Exception as error:  # noqa: BLE001
            failure = error
    lines = str(failure).splitlines() or [type(failure).__name__]
    raise CheckpointError(f"{tokenizer.name_or_path}: the chat template fails: {lines[0][:300]}.") from failure


def message(role: str, content: str) -> dict[str, str]:
    """Return a message of a conversation."""
    return {"role": role, "content": content}


@dataclass(frozen=True)
class CocomPrompt:
    """The prompt of families "cocom" and "oscar": memory tokens and a separator for each passage, in a chat.

    Attributes:
        tokenizer: the decoder's tokenizer, whose chat template is used.
        memory_tokens: the memory tokens of a passage, in order; one token may stand several times.
        separator: token after the memory tokens of a passage.
        special: special tokens to break up in questions and texts.
    """

    tokenizer: Any
    memory_tokens: tuple[str, ...]
    separator: str
    special: SpecialTokens

    adds_special_tokens = False

    def clean(self, text: str) -> str:
        """Return a text in which no special token is spelled."""
        return self.special.break_up(text)

    def __call__(self, question: str, documents: Sequence[int | str], *, answer: str | None = None) -> str:
        """Return the prompt's text.

        Raises:
            PromptError: a document's number of vectors is no multiple of that of a passage.
            CheckpointError: the tokenizer has no chat template, or the template fails.
        """
        background = "".join(self._content(document) for document in documents)
        user = f"Background:\n{background}\n\nQuestion:{self.clean(question)}"
        messages = [message("system", SYSTEM), message("user", user)]
        if answer is not None:
            messages.append(message("assistant", answer))
        return chat_text(self.tokenizer, messages, options={})

    def _content(self, document: int | str) -> str:
        if isinstance(document, str):
            return self.clean(document) + self.separator
        return passage_slots(self.memory_tokens, document, self.separator)


@dataclass(frozen=True)
class CocomV1Prompt:
    """The prompt of family "cocom-v1": memory tokens of each document, then the question between fixed words.

    Attributes:
        tokenizer: the decoder's tokenizer.
        memory_tokens: the memory tokens of a passage, in order; a single one if passages differ in length.
        separator: token after the memory tokens of a passage, or an empty string.
        special: special tokens to break up in questions and texts.
        adds_special_tokens: True for a second BOS before the prompt's own, as the released model is called; False for
            one BOS, as it was trained.
    """

    tokenizer: Any
    memory_tokens: tuple[str, ...]
    separator: str
    special: SpecialTokens
    adds_special_tokens: bool = True

    def clean(self, text: str) -> str:
        """Return a text in which no special token is spelled."""
        return self.special.break_up(text)

    def __call__(self, question: str, documents: Sequence[int | str], *, answer: str | None = None) -> str:
        """Return the prompt's text.

        Raises:
            PromptError: a document's number of vectors is no multiple of that of a passage.
        """
        background = "".join(self._content(document) for document in documents)
        beginning, end = self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""
        closing = "" if answer is None else f"{answer}{end}"
        return f"{beginning}{background}[INST]{self.clean(question)}\n[/INST]\n{closing}"

    def _content(self, document: int | str) -> str:
        if isinstance(document, str):
            return self.clean(document) + self.separator
        if len(self.memory_tokens) == 1:
            # Passages of any length: nothing says where one ends.
            return self.memory_tokens[0] * document + self.separator
        return passage_slots(self.memory_tokens, document, self.separator)


def passage_slots(tokens: Sequence[str], vectors: int, separator: str) -> str:
    """Return the text of a document whose passages have a fixed number of vectors.

    Args:
        tokens: the memory tokens of a passage, in order.
        vectors: number of vectors of the document.
        separator: token after each passage.

    Raises:
        PromptError: the number is no multiple of that of a passage.
    """
    passages, rest = divmod(vectors, len(tokens))
    if rest:
        raise PromptError(f"A document has {vectors} vectors, which are no passages of {len(tokens)} vectors each.")
    return ("".join(tokens) + separator) * passages


def require_question(question: str) -> None:
    """Check that a question has words.

    Raises:
        PromptError: it is empty, or blank only.
        TypeError: it is no string.
    """
    if not isinstance(question, str):
        raise TypeError(f"a question must be a string; found {question!r:.80}")
    if not question.strip():
        raise PromptError("The question is empty.")


def require_texts(texts: Collection[str], what: str) -> None:
    """Check that a list of strings is one.

    Raises:
        TypeError: it is a string itself, or no list, or an entry is no string.
    """
    if isinstance(texts, str) or not isinstance(texts, Collection):
        raise TypeError(f"{what} must be a list of strings, not {texts!r:.80}")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{what} must be a list of strings; found {text!r:.80} in it")
