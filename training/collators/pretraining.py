"""Collators of the first stage: restore a text from its memory, or continue it behind its memory."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from typing import Any

import torch

from ...configs import CompressionConfig
from ...configs.training import CONTINUED
from ...errors import TrainingError
from ...model.families import Checkpoint
from ...model.passages import AUTOENCODING_TOKEN, clean_text
from ...model.trainable import IGNORED
from .base import Collator, Record, Sample, input_text


class TooShortError(TrainingError):
    """A text has fewer tokens, or characters, than the pieces that a continuation is cut into."""


class Autoencoding(Collator):
    """Restores a text from its memory: ``<MEM>`` × n ``<AE>`` text, with the loss on the text and its end.

    A text of more than ``max_length`` tokens is restored from the memory of several passages. A longer text
    than the window is cut to a random piece of the window's size.

    Args:
        checkpoint: see ``Collator``.
        compression: see ``Collator``.
        windows: largest numbers of compressor tokens of a text, special tokens included. One of them is drawn for each
            batch, so that the texts of a batch are about equally long and need little padding.
        options: see ``Collator``.
    """

    def __init__(
        self, checkpoint: Checkpoint, compression: CompressionConfig, *, windows: Sequence[int], **options: Any
    ):
        super().__init__(checkpoint, compression, **options)
        self.windows = tuple(windows)
        self.window = self.windows[0]
        self.autoencoding_id: int = self.decoder_tokenizer.convert_tokens_to_ids(AUTOENCODING_TOKEN)

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """Return a batch whose samples share one window."""
        self.window = draw_window(self.windows)
        return super().__call__(records)

    def sample(self, record: Record) -> Sample:
        """Return a sample that restores the whole text, or a window of it."""
        text = clean_text(input_text(record, self.compression))
        # With the special tokens around it, a window of max_length tokens must be one passage.
        (text,) = self.cut(text, self.token_starts(text), [max(1, self.window - self.special_tokens)])
        document = self.compress(text, self.compression.repeated_heading(record.get("title")))
        target = self.decoder_ids(text)
        end = self.decoder_tokenizer.eos_token_id
        if end is not None:
            target.append(end)
        prompt = [*self.opening_ids(), *self.memory_ids(document.n_mem), self.autoencoding_id]
        return Sample(document.passages, prompt + target, [IGNORED] * len(prompt) + target)

    def cut(self, text: str, starts: Sequence[int], sizes: Sequence[int]) -> list[str]:
        """Cut neighbouring pieces from a random place of a text, each of a given number of compressor tokens.

        A short text gives shorter pieces. No character is cut in two, so a piece may be shorter than asked for, and
        empty if its tokens are parts of one character; but not all pieces are empty. The place is drawn from torch's
        generator, whose state a resumed training restores.

        Args:
            text: text to cut.
            starts: ``token_starts`` of the text.
            sizes: number of tokens of each piece.
        """
        free = len(starts) - sum(sizes)
        place = int(torch.randint(free + 1, ())) if free > 0 else 0
        first = _next_character(starts, place)
        if first == len(starts) > 0:
            first = starts.index(starts[-1])
        edges = [first, *(max(first, place + tokens) for tokens in accumulate(sizes))]
        edges[-1] = max(edges[-1], _next_character(starts, first + 1))
        positions = [starts[edge] if edge < len(starts) else len(text) for edge in edges]
        return [text[begin:end] for begin, end in pairwise(positions)]


class Continuation(Autoencoding):
    """Continues a text: a clear beginning, the memory of a middle, and the loss on the text behind it.

    Two random places cut the window into these three pieces.
    """

    def sample(self, record: Record) -> Sample:
        """Return a sample of a window in three pieces."""
        text = clean_text(input_text(record, self.compression))
        starts = self.token_starts(text)
        window = min(self.window, len(starts))
        if window < CONTINUED:
            raise TooShortError(f"the text has {window} tokens, but a text to be continued needs {CONTINUED}.")
        cuts = torch.randperm(window - 1)[:2].sort().values + 1
        first, second = cuts.tolist()
        before, middle, after = self.cut(text, starts, [first, second - first, window - second])
        document = self.compress(middle, self.compression.repeated_heading(record.get("title")))
        target = self.decoder_ids(after)
        if not (before and middle and target):
            raise TooShortError("a piece adds no character: the text has too few to be continued.")
        prompt = [*self.opening_ids(), *self.decoder_ids(before), *self.memory_ids(document.n_mem)]
        return Sample(document.passages, prompt + target, [IGNORED] * len(prompt) + target)


class Pretraining(Collator):
    """Mixes auto-encoding and continuation. A text that is too short to be continued is restored.

    Args:
        checkpoint: see ``Collator``.
        compression: see ``Collator``.
        ratio: probability of auto-encoding.
        windows: see ``Autoencoding``.
        options: see ``Collator``.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        compression: CompressionConfig,
        *,
        ratio: float,
        windows: Sequence[int],
        **options: Any,
    ):
        super().__init__(checkpoint, compression, **options)
        self.ratio = ratio
        self.autoencoding = Autoencoding(checkpoint, compression, windows=windows, **options)
        self.continuation = Continuation(checkpoint, compression, windows=windows, **options)

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """Return a batch of both tasks whose samples share one window."""
        self.autoencoding.window = self.continuation.window = draw_window(self.autoencoding.windows)
        return super().__call__(records)

    def sample(self, record: Record) -> Sample:
        """Return a sample of one of the tasks."""
        if float(torch.rand(())) >= self.ratio:
            with suppress(TooShortError):
                return self.continuation.sample(record)
        return self.autoencoding.sample(record)


def draw_window(windows: Sequence[int]) -> int:
    """Return one of the windows, drawn from torch's generator."""
    return windows[int(torch.randint(len(windows), ()))]


def _next_character(starts: Sequence[int], place: int) -> int:
    """Return the first token at or after ``place`` that begins a character, or the number of tokens if none does."""
    while 0 < place < len(starts) and starts[place] == starts[place - 1]:
        place += 1
    return min(place, len(starts))
