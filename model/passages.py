"""From a document's text to passages: token ids with memory tokens behind them.

The rules are those of the "pisco" checkpoint family (docs/checkpoints.md): literal memory tokens in a text are
spelled apart, the tokenizer's default special tokens count, and a passage of ``n`` tokens is followed by
``n // rate + 1`` memory tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

MEMORY_TOKEN = "<MEM>"  # noqa: S105
AUTOENCODING_TOKEN = "<AE>"  # noqa: S105
RETRIEVAL_TOKEN = "<RET>"  # noqa: S105

# Large enough to keep the tokenizer's threads busy, small enough that other threads of the process get their turn.
TOKENIZER_CHUNK = 256


def clean_text(text: str) -> str:
    """Spell literal ``<MEM>`` and ``<RET>`` apart, so that a text cannot open memory slots."""
    return text.replace(MEMORY_TOKEN, "< MEM >").replace(RETRIEVAL_TOKEN, "< RET >")


def memory_length(tokens: int, rate: int) -> int:
    """Memory tokens of a passage of ``tokens`` tokens: ``tokens // rate + 1``."""
    return tokens // rate + 1


@dataclass(frozen=True, slots=True)
class TokenizedDocument:
    """A document cut into passages.

    Attributes:
        passages: token ids of each passage, memory tokens appended.
        n_mem: memory tokens of all passages together.
        tokens_total: tokens of the whole text.
        tokens_fed: tokens that the passages hold; fewer than ``tokens_total`` where the text was truncated, more
            where passages overlap or repeat a heading.
    """

    passages: tuple[list[int], ...]
    n_mem: int
    tokens_total: int
    tokens_fed: int


class PassageTokenizer:
    """Tokenizes documents for a compressor.

    Args:
        tokenizer: the checkpoint's compressor tokenizer (transformers).
        rate: compression rate, source tokens per memory token.
        max_length: most tokens of a passage, memory tokens not counted.
        on_long: ``"chunk"`` cuts a longer document into passages, ``"truncate"`` keeps its beginning.
        overlap: tokens that a chunk repeats from the one before it.
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
            raise ValueError(f"max_length {max_length} leaves no room beside the {len(self._suffix)} closing tokens")
        self.rate = rate
        self.max_length = max_length
        self.on_long = on_long
        self.overlap = overlap
        self.memory_token_id: int = tokenizer.convert_tokens_to_ids(MEMORY_TOKEN)
        self._tokenizer = tokenizer
        self._fast = getattr(tokenizer, "backend_tokenizer", None)
        if self._fast is not None:
            # Truncation or padding kept in a tokenizer.json would change what is fed, silently.
            self._fast.no_truncation()
            self._fast.no_padding()

    def tokenize(self, texts: Sequence[str], repeated: Sequence[str] | None = None) -> Iterator[TokenizedDocument]:
        """Yield each text's passages, in order.

        Args:
            texts: what is cut.
            repeated: what each further passage of each text begins with; of this, too, at most half a passage.
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
        # The call of transformers holds the GIL for 100 ms at a time; this one releases it.
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


def _closing_tokens(tokenizer: Any) -> list[int]:
    """Special tokens that the tokenizer puts behind a text (EOS, for some): truncation keeps them."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[start + len(bare) :]
    return []
