"""The text of an answer's tokens, whole or piece by piece as the tokens come."""

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


def answer_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of an answer, without special tokens and the white space around it."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


class TextStream:
    """The text of an answer whose tokens come one after another. The pieces together are its ``answer_text``.

    A piece ends before white space and before a character whose other bytes are still to come.

    Args:
        tokenizer: the decoder's tokenizer, of the kind that the library tokenizers computes.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._told = ""
        self._held = ""

    def add(self, ids: Sequence[int]) -> str:
        """Return the text that is certain after further tokens, beyond what was returned before."""
        self._ids += ids
        for token in ids:
            self._held += self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
        text = self._held if self._told else self._held.lstrip()
        piece = text.rstrip()
        self._held = text[len(piece) :]
        self._told += piece
        return piece

    def end(self) -> str:
        """Return the rest of the text, after the last token."""
        whole = answer_text(self._tokenizer, self._ids)
        return whole.removeprefix(self._told) if whole.startswith(self._told) else ""
