"""From a document's text to passages: token ids of at most a maximum length, followed by memory tokens.

The rules are those of family "pisco" (docs/checkpoints.md): literal memory tokens in a text are spelled apart, the
tokenizer's default special tokens count, and a passage of ``n`` tokens is followed by ``n // rate + 1`` memory tokens.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np

from ..configs import CompressionConfig

MEMORY_TOKEN = "<MEM>"  # noqa: S105
AUTOENCODING_TOKEN = "<AE>"  # noqa: S105
RETRIEVAL_TOKEN = "<RET>"  # noqa: S105

# Texts that are tokenized together, and their characters: enough to keep the tokenizer's threads busy, and few enough
# that the other threads of the process get their turn. A tokenizer takes up to 200 bytes for each character.
TOKENIZER_CHUNK = 256
TOKENIZER_CHARACTERS = 1 << 20
# Longest text that is tokenized as a whole, in characters. A longer one is tokenized in windows of this length, and
# two windows overlap by this many characters: by far more than what a tokenizer looks at around a token.
WINDOW = 1 << 18
OVERLAP = 1 << 13
# Largest number of tokens that the runs consist of at which windows are not joined.
_RUN = 4


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
    # A function of this module, because processes that verify a store get it pickled.
    return partial(_exact_bounds, limit=limit, rate=int(rate), n_mem=None if n_mem == GROUPED else int(n_mem))


def _exact_bounds(fed: np.ndarray, limit: int, rate: int, n_mem: int | None) -> Bounds:
    """Return the bounds for passages of up to ``limit`` tokens with ``n_mem`` memory tokens, or one per ``rate``."""
    # Every passage but the last one of a document is full.
    full = np.maximum(-(-fed // limit) - 1, 0)
    if n_mem is not None:
        return (full + 1) * n_mem, (full + 1) * n_mem
    exact = full * -(-limit // rate) + -(-(fed - full * limit) // rate)
    return exact, exact


@dataclass(frozen=True, slots=True)
class TokenizedDocument:
    """A document cut into passages.

    Attributes:
        passages: token ids of each passage, memory tokens appended; arrays if the document is longer than ``WINDOW``.
        n_mem: number of memory vectors of all passages.
        tokens_total: number of tokens of the whole text.
        tokens_fed: number of tokens in the passages, without memory tokens. It is less than ``tokens_total`` if the
            text was truncated, and more if passages overlap or repeat a title.
    """

    passages: tuple[Sequence[int], ...]
    n_mem: int
    tokens_total: int
    tokens_fed: int

    def beginning(self, vectors: int, memory_token_ids: Sequence[int]) -> "TokenizedDocument":
        """Return the document cut off after the passage with which it has at least this many memory vectors.

        Args:
            vectors: number of memory vectors.
            memory_token_ids: ids of the memory tokens in the passages; empty if every token is one.
        """
        if self.n_mem <= vectors:
            return self
        passages, n_mem = [], 0
        for passage in self.passages:
            if n_mem >= vectors:
                break
            passages.append(passage)
            n_mem += int(np.isin(passage, memory_token_ids).sum()) if memory_token_ids else len(passage)
        return replace(self, passages=tuple(passages), n_mem=n_mem, tokens_fed=sum(map(len, passages)) - n_mem)

    def fed_text(self, text: str) -> str:
        """Return the part of the document's text that is in the passages, judged by the numbers of tokens."""
        return text[: len(text) * self.tokens_fed // max(self.tokens_total, 1)]


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


@dataclass(frozen=True)
class BareTokenizer:
    """A tokenizer without the transformers class around it: it travels to a process that imports no transformers.

    Attributes:
        backend_tokenizer: the tokenizer (tokenizers).
    """

    backend_tokenizer: Any


def bare(tokenizer: Any) -> Any:
    """Return what ``encode_all`` needs of a tokenizer (transformers): all of one that is written in Python."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    return tokenizer if fast is None else BareTokenizer(fast)


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
        # Special tokens after a text, which truncation keeps.
        self._suffix = special_tokens(tokenizer)[1]
        if max_length <= len(self._suffix):
            raise ValueError(f"max_length {max_length} leaves no room for the {len(self._suffix)} closing tokens")
        self.rate = rate
        self.max_length = max_length
        self.on_long = on_long
        self.overlap = overlap
        self.memory_token_id: int = tokenizer.convert_tokens_to_ids(MEMORY_TOKEN)
        self.memory_token_ids = (self.memory_token_id,)
        self._tokenizer = bare(tokenizer)

    def tokenize(self, texts: Sequence[str], repeated: Sequence[str] | None = None) -> Iterator[TokenizedDocument]:
        """Yield the passages of each text, in order.

        Args:
            texts: texts to cut.
            repeated: beginning of every passage after the first, for each text; at most half a passage of it is used.
        """
        for chunk in tokenizer_chunks(texts, repeated):
            cleaned = [(clean_text(text), clean_text(heading)) for text, heading in chunk]
            encoded = encode_all(self._tokenizer, [text for text, _ in cleaned], special=True)
            for ids, (_, heading) in zip(encoded, cleaned, strict=True):
                yield self._cut(ids, self._heading(heading) if heading and len(ids) > self.max_length else [])

    def _heading(self, text: str) -> list[int]:
        (ids,) = encode_all(self._tokenizer, [text], special=True)
        return list(ids[: len(ids) - len(self._suffix)][: (self.max_length - self.overlap) // 2])

    def _cut(self, ids: Sequence[int], heading: list[int]) -> TokenizedDocument:
        return finished_document(ids, self._pieces(ids, heading), self._with_memory)

    def _pieces(self, ids: Sequence[int], heading: list[int]) -> Iterator[list[int]]:
        if len(ids) <= self.max_length:
            yield list(ids)
        elif self.on_long == "truncate":
            yield [*ids[: self.max_length - len(self._suffix)], *self._suffix]
        else:
            yield list(ids[: self.max_length])
            room = self.max_length - len(heading)
            for start in range(self.max_length - self.overlap, len(ids) - self.overlap, room - self.overlap):
                yield [*heading, *ids[start : start + room]]

    def _with_memory(self, ids: list[int]) -> tuple[list[int], int]:
        count = memory_length(len(ids), self.rate)
        return ids + [self.memory_token_id] * count, count


def finished_document(
    ids: Sequence[int], pieces: Iterable[list[int]], finish: Callable[[list[int]], tuple[list[int], int]]
) -> TokenizedDocument:
    """Return a document of the pieces of its ids. Only one piece at a time is a list, if the ids are an array.

    Args:
        ids: token ids of the whole text, as ``encode_all`` returns them.
        pieces: token ids of each passage, without memory tokens.
        finish: returns a passage's ids with its memory tokens, and their number of vectors.
    """
    passages: list[Sequence[int]] = []
    vectors = fed = 0
    for piece in pieces:
        passage, count = finish(piece)
        passages.append(array("i", passage) if isinstance(ids, array) else passage)
        vectors, fed = vectors + count, fed + len(piece)
    return TokenizedDocument(tuple(passages), vectors, len(ids), fed)


def tokenizer_chunks(texts: Sequence[str], repeated: Sequence[str] | None) -> Iterator[list[tuple[str, str]]]:
    """Yield texts, each with the beginning of its further passages, in the groups that are tokenized together."""
    chunk: list[tuple[str, str]] = []
    characters = 0
    for text, heading in zip(texts, [""] * len(texts) if repeated is None else repeated, strict=True):
        if chunk and (len(chunk) == TOKENIZER_CHUNK or characters + len(text) > TOKENIZER_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append((text, heading))
        characters += len(text)
    if chunk:
        yield chunk


def encode_all(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[Sequence[int]]:
    """Return the token ids of texts, not cut and not padded. Those of a text longer than ``WINDOW`` are an array."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        return tokenizer(list(texts), add_special_tokens=special, truncation=False, padding=False)["input_ids"]
    # A tokenizer.json may turn truncation or padding on, which would change the passages silently.
    fast.no_truncation()
    fast.no_padding()
    # Calling the transformers tokenizer holds the GIL for 100 ms at a time; this call releases it.
    short = [text for text in texts if len(text) <= WINDOW]
    encoded = iter(fast.encode_batch_fast(short, add_special_tokens=special))
    return [next(encoded).ids if len(text) <= WINDOW else _encode_long(tokenizer, text, special) for text in texts]


@dataclass(frozen=True, eq=False)
class _Window:
    """The tokens of a part of a text, ``(n,)`` int32, and where each begins and ends in the text, ``(n, 2)`` int64."""

    ids: np.ndarray
    spans: np.ndarray
    stop: int

    @classmethod
    def of(cls, fast: Any, text: str, start: int, size: int) -> "_Window":
        (encoding,) = fast.encode_batch([text[start : start + size]], add_special_tokens=False)
        spans = np.array(encoding.offsets, np.int64).reshape(-1, 2) + start
        return cls(np.array(encoding.ids, np.int32), spans, min(start + size, len(text)))

    def tokens_between(self, start: int, stop: int) -> slice:
        """Return which tokens begin in a part of the text."""
        return slice(*np.searchsorted(self.spans[:, 0], [start, stop]).tolist())


def _encode_long(tokenizer: Any, text: str, special: bool) -> array:
    """Return the token ids that a text has as a whole, from windows of it.

    A tokenizer looks at a bounded part of the text around a token. So two windows give the same tokens within their
    overlap, except near its ends, and are joined in its middle. If they do not, or the text only repeats itself there,
    the first window is doubled, up to the whole text. Only of two splits with the same score, a Unigram model may take
    another one: it adds up scores from the beginning of what it is given.
    """
    fast = tokenizer.backend_tokenizer
    before, after = special_tokens(tokenizer) if special else ([], [])
    ids = array("i", before)
    start, size, first = 0, WINDOW, 0
    window = _Window.of(fast, text, start, size)
    while window.stop < len(text):
        begin = window.stop - OVERLAP
        following = _Window.of(fast, text, begin, WINDOW)
        if (seam := _seam(window, following, begin + OVERLAP // 2)) is None:
            size *= 2
            window = _Window.of(fast, text, start, size)
            continue
        ids.frombytes(window.ids[first : seam[0]].tobytes())
        window, start, size, first = following, begin, WINDOW, seam[1]
    ids.frombytes(window.ids[first:].tobytes())
    ids.extend(after)
    return ids


def _seam(window: _Window, following: _Window, middle: int) -> tuple[int, int] | None:
    """Return the token of each window at which to join them; None if they cannot be joined around a place."""
    tokens = further = slice(0)
    for start, stop in ((middle - OVERLAP // 4, middle), (middle, middle + OVERLAP // 4)):
        tokens, further = (each.tokens_between(start, stop) for each in (window, following))
        is_equal = np.array_equal(window.ids[tokens], following.ids[further])
        is_equal = is_equal and np.array_equal(window.spans[tokens], following.spans[further])
        if not is_equal or _repeats(window.ids[tokens]):
            return None
    return tokens.start, further.start


def _repeats(ids: np.ndarray) -> bool:
    """Return True if tokens only repeat a few. How a run is cut can depend on its end, however far that is."""
    return len(ids) < 2 * _RUN or any(np.array_equal(ids[n:], ids[:-n]) for n in range(1, _RUN + 1))


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts before a text (BOS, for some) and after it (EOS)."""
    bare, full = (list(*encode_all(tokenizer, ["a"], special=special)) for special in (False, True))
    start = next((n for n in range(len(full)) if full[n : n + len(bare)] == bare), 0)
    return full[:start], full[start + len(bare) :]


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
