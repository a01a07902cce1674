"""From a document's text to passages in the families that frame a text by tokens of their own.

A passage is the frame's first tokens, text, the frame's last tokens, then memory tokens. Its length without memory
tokens is at most a limit that the checkpoint sets.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..configs import CompressionConfig
from ..errors import ConfigError, PromptError
from .passages import TokenizedDocument, bare, encode_all, finished_document, special_tokens, tokenizer_chunks


@dataclass(frozen=True)
class Frame:
    """The tokens around a text.

    Attributes:
        encode: returns the ids of texts with their frame, not cut.
        first: number of the frame's tokens before a text.
        last: ids of the frame's tokens after a text.
        keeps_last: True if a text that is cut keeps the tokens after it.
    """

    encode: Callable[[Sequence[str]], list[Sequence[int]]]
    first: int
    last: tuple[int, ...]
    keeps_last: bool


@dataclass(frozen=True)
class _Encoder:
    """Encodes texts between two other texts. Unlike a closure, it can be sent to another process."""

    tokenizer: Any
    before: str
    after: str
    special: bool

    def __call__(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return encode_all(self.tokenizer, [self.before + text + self.after for text in texts], special=self.special)


def written_frame(tokenizer: Any, before: str, after: str) -> Frame:
    """Return a frame that is written as text around each text and cut with it, without the tokenizer's own specials."""
    (first,), (last,) = (encode_all(tokenizer, [text], special=False) for text in (before, after))
    return Frame(_Encoder(bare(tokenizer), before, after, special=False), len(first), tuple(last), keeps_last=False)


def default_frame(tokenizer: Any, heading: str = "") -> Frame:
    """Return the frame of the tokenizer's own special tokens, which a text that is cut keeps.

    Args:
        tokenizer: the tokenizer.
        heading: words before each text, which do not count as the frame's.
    """
    before, after = special_tokens(tokenizer)
    return Frame(_Encoder(bare(tokenizer), heading, "", special=True), len(before), tuple(after), keeps_last=True)


def pair_frame(tokenizer: Any, question: str) -> Frame:
    """Return the frame of a pair of a question and a text, by the tokenizer's own rule for pairs."""

    def encode(texts: Sequence[str]) -> list[Sequence[int]]:
        # Lists, since a plain empty text would be dropped together with the special token before it.
        return tokenizer([question] * len(texts), list(texts), truncation=False, padding=False)["input_ids"]

    ((bare,), (full,)) = encode_all(tokenizer, ["a"], special=False), encode(["a"])
    end = next((n for n in range(len(full), 0, -1) if full[n - len(bare) : n] == bare), len(full))
    return Frame(encode, end - len(bare), tuple(full[end:]), keeps_last=True)


@dataclass(frozen=True)
class WithMemory:
    """Appends the same memory tokens to every passage.

    Attributes:
        memory: ids of the memory tokens of a passage, in order.
    """

    memory: tuple[int, ...]

    def __call__(self, ids: list[int]) -> tuple[list[int], int]:
        """Return the ids with the memory tokens behind them, and their number."""
        return [*ids, *self.memory], len(self.memory)


@dataclass(frozen=True)
class Padded:
    """Fills up the last group of a passage's tokens; each group makes one vector.

    Attributes:
        pad_id: id of the token to fill up with.
        rate: number of tokens in a group.
    """

    pad_id: int
    rate: int

    def __call__(self, ids: list[int]) -> tuple[list[int], int]:
        """Return the ids of full groups, and their number."""
        groups = -(-len(ids) // self.rate)
        return ids + [self.pad_id] * (groups * self.rate - len(ids)), groups


def unchanged(text: str) -> str:
    """Return a text as it is."""
    return text


class SpecialTokens:
    """The special tokens of a tokenizer, to break up where a text spells them.

    Args:
        tokenizer: tokenizer that would read them as tokens.
    """

    def __init__(self, tokenizer: Any):
        tokens = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        tokens |= set(tokenizer.all_special_tokens)
        alternatives = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True) if len(token) > 1)
        self._pattern = re.compile(alternatives or r"(?!)")

    def break_up(self, text: str) -> str:
        """Return a text in which spaces keep special tokens from being read as such: ``<SEP>`` as ``< SEP >``."""
        return self._pattern.sub(_spaced, text)


def _spaced(match: re.Match[str]) -> str:
    token = match[0]
    return f"{token[0]} {token[1:-1]} {token[-1]}" if len(token) > 2 else " ".join(token)


class FramedPassageTokenizer:
    """Cuts texts into framed passages.

    Args:
        frame: tokens around each text.
        limit: largest number of tokens of a passage, frame included, memory tokens not.
        finish: returns a passage's ids with its memory tokens, and their number of vectors.
        clean: breaks up what must not stand in a text.
        on_long: ``"chunk"`` cuts a longer text into passages, each with a frame; ``"truncate"`` keeps its beginning.
        overlap: number of tokens that a chunk repeats from the chunk before it.
        memory_token_ids: ids of the memory tokens that ``finish`` appends.

    Raises:
        ConfigError: the limit leaves no room for text, or no more than the overlap.
    """

    def __init__(
        self,
        frame: Frame,
        limit: int,
        finish: Callable[[list[int]], tuple[list[int], int]],
        clean: Callable[[str], str],
        *,
        on_long: Literal["chunk", "truncate"] = "chunk",
        overlap: int = 0,
        memory_token_ids: tuple[int, ...] = (),
    ):
        self.memory_token_ids = memory_token_ids
        self._frame, self._limit, self._finish, self._clean = frame, limit, finish, clean
        self._on_long, self._overlap = on_long, overlap
        self._room = limit - frame.first - len(frame.last)
        if self._on_long == "chunk" and self._room <= overlap:
            raise ConfigError(
                f"compression: {limit} tokens in a passage leave room for {max(self._room, 0)} tokens of text, which "
                f"must be more than the overlap {overlap}."
            )

    def require_room(self, question: str) -> None:
        """Check that a question in the frame leaves room for a text.

        Raises:
            PromptError: it does not.
        """
        (empty,) = self._frame.encode([""])
        tokens = len(empty) - (0 if self._frame.keeps_last else len(self._frame.last))
        if tokens >= self._limit:
            raise PromptError(
                f"The question {question[:60]!r} leaves no room for a document: the compressor takes "
                f"{self._limit} tokens, and the question has {tokens} with the words around it. Ask a "
                "shorter question, or raise query_extra."
            )

    def tokenize(self, texts: Sequence[str], repeated: Sequence[str] | None = None) -> Iterator[TokenizedDocument]:
        """Yield the passages of each text, in order.

        Args:
            texts: texts to cut.
            repeated: beginning of every passage after the first, for each text; at most half a passage of it is used.
        """
        for chunk in tokenizer_chunks(texts, repeated):
            encoded = self._frame.encode([self._clean(text) for text, _ in chunk])
            for ids, (_, heading) in zip(encoded, chunk, strict=True):
                yield self._document(ids, heading)

    def _document(self, ids: Sequence[int], heading: str) -> TokenizedDocument:
        return finished_document(ids, self._pieces(ids, heading), self._finish)

    def _pieces(self, ids: Sequence[int], heading: str) -> Iterator[list[int]]:
        if len(ids) <= self._limit:
            yield list(ids)
        elif self._on_long == "truncate":
            last = self._frame.last if self._frame.keeps_last else ()
            yield [*ids[: self._limit - len(last)], *last]
        else:
            yield from self._chunks(ids, heading)

    def _chunks(self, ids: Sequence[int], heading: str) -> Iterator[list[int]]:
        first, last = ids[: self._frame.first], list(self._frame.last)
        text = ids[len(first) : len(ids) - len(last)]
        repeated = self._heading(heading) if heading else []
        room = self._room - len(repeated)
        starts = range(self._room - self._overlap, len(text) - self._overlap, room - self._overlap)
        yield [*first, *text[: self._room], *last]
        for start in starts:
            yield [*first, *repeated, *text[start : start + room], *last]

    def _heading(self, text: str) -> list[int]:
        (ids,) = self._frame.encode([self._clean(text)])
        return list(ids[self._frame.first : len(ids) - len(self._frame.last)][: (self._room - self._overlap) // 2])


def passage_limit(compression: CompressionConfig, tokens: int, extra: int) -> int:
    """Return the largest number of tokens of a passage.

    Args:
        compression: settings, whose ``max_length`` counts text; a smaller one than the checkpoint's is used.
        tokens: limit that the checkpoint sets, extra tokens included.
        extra: tokens that the checkpoint allows beyond its length for text.
    """
    return min(compression.max_length + extra, tokens)
