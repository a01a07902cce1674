"""From a document's text to passages: token ids of at most a maximum length, followed by memory tokens.

The rules are those of family "pisco" (docs/checkpoints.md): literal memory tokens in a text are spelled apart, the
tokenizer's default special tokens count, and a passage of ``n`` tokens is followed by ``n // rate + 1`` memory tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np

from ..configs import CompressionConfig

MEMORY_TOKEN = "<MEM>"  # noqa: S105
AUTOENCODING_TOKEN = "<AE>"  # noqa: S105
RETRIEVAL_TOKEN = "<RET>"  # noqa: S105

# Texts that are tokenized together: enough to keep the tokenizer's threads busy, and few enough that the other threads
# of the process get their turn.
TOKENIZER_CHUNK = 256


def clean_text(text: str) -> str:
    """Break up literal ``<MEM>`` and ``<RET>``, so that a text cannot open memory slots."""
    return text.replace(MEMORY_TOKEN, "< MEM >").replace(RETRIEVAL_TOKEN, "< RET >")


def memory_length(tokens: int, rate: int) -> int:
    """Return the number of memory tokens of a passage of ``tokens`` tokens: ``tokens // rate + 1``."""
    return tokens // rate + 1


def memory_bounds(fed: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest number of memory tokens that documents can have, whatever their passages are.

    Rounding up in each passage adds memory tokens, so a document in one passage has the fewest: ``memory_length(fed)``.
    Passages of one token have the most: two memory tokens each at rate 1, and fewer at any other rate. Only a document
    in a single passage can have no token at all, and then has one memory token. So ``2 * fed + 1`` is never exceeded.

    Args:
        fed: number of tokens in all passages of each document, ``(k,)`` int64.
        rate: compression rate, source tokens per memory token.

    Returns:
        Both bounds, ``(k,)`` int64 each.
    """
    return fed // rate + 1, 2 * fed + 1


Bounds = tuple[np.ndarray, np.ndarray]
"""Least and largest number of memory vectors of each document, ``(k,)`` int64 each."""

GROUPED = "grouped"
"""Value of the component ``n_mem`` if ``rate`` consecutive tokens make one vector."""


def memory_bounds_of(components: Mapping[str, str]) -> Callable[[np.ndarray], Bounds] | None:
    """Return the bounds of the number of memory vectors of documents, by the components of a store's fingerprint.

    The returned function takes the number of tokens in all passages of each document, ``(k,)`` int64.

    Returns:
        None if the components state no rule that this version knows.
    """
    rate, n_mem = components.get("rate", ""), components.get("n_mem")
    if not rate.isdecimal() or int(rate) == 0:
        return None
    if n_mem is None:
        return partial(memory_bounds, rate=int(rate))
    numbers = [components.get(name, "") for name in ("passage_tokens", "passage_extra", "max_length")]
    if not all(map(str.isdecimal, numbers)) or not (n_mem == GROUPED or n_mem.isdecimal()):
        return None
    tokens, extra, max_length = map(int, numbers)
    limit = max(min(max_length + extra, tokens), 1)

    def bounds(fed: np.ndarray) -> Bounds:
        # Every passage but the last one of a document is full.
        full = np.maximum(-(-fed // limit) - 1, 0)
        if n_mem == GROUPED:
            exact = full * -(-limit // int(rate)) + -(-(fed - full * limit) // int(rate))
        else:
            exact = (full + 1) * int(n_mem)
        return exact, exact

    return bounds


@dataclass(frozen=True, slots=True)
class TokenizedDocument:
    """A document cut into passages.

    Attributes:
        passages: token ids of each passage, memory tokens appended.
        n_mem: number of memory vectors of all passages.
        tokens_total: number of tokens of the whole text.
        tokens_fed: number of tokens in the passages, without memory tokens. It is less than ``tokens_total`` if the
            text was truncated, and more if passages overlap or repeat a title.
    """

    passages: tuple[list[int], ...]
    n_mem: int
    tokens_total: int
    tokens_fed: int


class DocumentTokenizer(Protocol):
    """Cuts texts into passages by the rule of a checkpoint family."""

    def tokenize(self, texts: Sequence[str], repeated: Sequence[str] | None = None) -> Iterator[TokenizedDocument]:
        """Yield the passages of each text, in order.

        Args:
            texts: texts to cut.
            repeated: beginning of every passage after the first, for each text; default: none.
        """
        ...

    @property
    def memory_token_ids(self) -> tuple[int, ...]:
        """Ids of the memory tokens in the passages."""
        ...


class PassageTokenizer:
    """Cuts texts into passages by the rule of family "pisco".

    Args:
        tokenizer: the checkpoint's compressor tokenizer (transformers).
        rate: compression rate, in source tokens per memory token.
        max_length: largest number of tokens of a passage, memory tokens not counted.
        on_long: ``"chunk"`` cuts a longer text into passages, ``"truncate"`` keeps its beginning.
        overlap: number of tokens that a chunk repeats from the chunk before it.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        rate: int,
        max_length: int,
        on_long: Literal["chunk", "truncate"] = "chunk",
        overlap: int = 0,
    ):
        if not 0 <= overlap < max_length:
            raise ValueError(f"overlap {overlap} must be at least 0 and less than max_length {max_length}")
        self._suffix = _closing_tokens(tokenizer)
        if max_length <= len(self._suffix):
            raise ValueError(f"max_length {max_length} leaves no room for the {len(self._suffix)} closing tokens")
        self.rate = rate
        self.max_length = max_length
        self.on_long = on_long
        self.overlap = overlap
        self.memory_token_id: int = tokenizer.convert_tokens_to_ids(MEMORY_TOKEN)
        self.memory_token_ids = (self.memory_token_id,)
        self._tokenizer = tokenizer
        self._fast = getattr(tokenizer, "backend_tokenizer", None)
        if self._fast is not None:
            # A tokenizer.json may turn truncation or padding on, which would change the passages silently.
            self._fast.no_truncation()
            self._fast.no_padding()

    def tokenize(self, texts: Sequence[str], repeated: Sequence[str] | None = None) -> Iterator[TokenizedDocument]:
        """Yield the passages of each text, in order.

        Args:
            texts: texts to cut.
            repeated: beginning of every passage after the first, for each text; at most half a passage of it is used.
        """
        remaining = zip(texts, [""] * len(texts) if repeated is None else repeated, strict=True)
        while chunk := list(islice(remaining, TOKENIZER_CHUNK)):
            cleaned = [(clean_text(text), clean_text(heading)) for text, heading in chunk]
            for ids, (_, heading) in zip(self._encode([text for text, _ in cleaned]), cleaned, strict=True):
                yield self._cut(ids, self._heading(heading) if heading and len(ids) > self.max_length else [])

    def _heading(self, text: str) -> list[int]:
        (ids,) = self._encode([text])
        return ids[: len(ids) - len(self._suffix)][: (self.max_length - self.overlap) // 2]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if self._fast is None:
            return self._tokenizer(texts, truncation=False, padding=False)["input_ids"]
        # Calling the transformers tokenizer holds the GIL for 100 ms at a time; this call releases it.
        return [encoding.ids for encoding in self._fast.encode_batch_fast(texts, add_special_tokens=True)]

    def _cut(self, ids: list[int], heading: list[int]) -> TokenizedDocument:
        if len(ids) <= self.max_length:
            pieces = [ids]
        elif self.on_long == "truncate":
            kept = self.max_length - len(self._suffix)
            pieces = [ids[:kept] + self._suffix]
        else:
            room = self.max_length - len(heading)
            starts = range(self.max_length - self.overlap, len(ids) - self.overlap, room - self.overlap)
            pieces = [ids[: self.max_length], *(heading + ids[start : start + room] for start in starts)]
        counts = [memory_length(len(piece), self.rate) for piece in pieces]
        return TokenizedDocument(
            passages=tuple(piece + [self.memory_token_id] * count for piece, count in zip(pieces, counts, strict=True)),
            n_mem=sum(counts),
            tokens_total=len(ids),
            tokens_fed=sum(map(len, pieces)),
        )


class HasText(Protocol):
    """The title and text of a document."""

    @property
    def text(self) -> str:
        """Text of the document, without its title."""
        ...

    @property
    def title(self) -> str | None:
        """Title of the document, or None."""
        ...


def tokenize_documents(
    tokenizer: DocumentTokenizer, documents: Sequence[HasText], compression: CompressionConfig
) -> Iterator[TokenizedDocument]:
    """Yield the passages of each document, in order: title and text are joined by the template, then cut."""
    texts = [compression.input_text(document.text, document.title) for document in documents]
    repeated = [compression.repeated_heading(document.title) for document in documents]
    return tokenizer.tokenize(texts, repeated)


def _closing_tokens(tokenizer: Any) -> list[int]:
    """Return the special tokens that the tokenizer puts after a text (EOS, for some). Truncation keeps them."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[start + len(bare) :]
    return []
