"""The base of all collators: checks samples and pads them into a batch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ...configs import CompressionConfig
from ...errors import TrainingError
from ...model.families import Checkpoint
from ...model.passages import MEMORY_TOKEN, TokenizedDocument, clean_text
from ...model.trainable import IGNORED

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """A prompt to learn from.

    Attributes:
        passages: compressor ids of each passage whose memory the prompt reads, in order, memory tokens included.
        input_ids: decoder ids, with a ``<MEM>`` for every memory token of the passages.
        labels: the ids of ``input_ids`` to predict, and -100 for all others; as long as ``input_ids``.
    """

    passages: Sequence[Sequence[int]]
    input_ids: Sequence[int]
    labels: Sequence[int]


class Collator(ABC):
    """Base of all collators.

    Args:
        checkpoint: checkpoint whose tokenizers and compression rate are used.
        compression: settings that cut documents into passages.
        max_tokens: largest number of tokens of a prompt with its answer; default: no limit.
    """

    def __init__(self, checkpoint: Checkpoint, compression: CompressionConfig, *, max_tokens: int | None = None):
        self.compression = compression
        self.max_tokens = max_tokens
        self.compressor_tokenizer = checkpoint.compressor_tokenizer
        self.decoder_tokenizer = checkpoint.decoder_tokenizer
        self.passage_tokenizer = checkpoint.passage_tokenizer(compression)
        self.special_tokens = _special_tokens(checkpoint.compressor_tokenizer)
        self.decoder_memory_id: int = self.decoder_tokenizer.convert_tokens_to_ids(MEMORY_TOKEN)

    @abstractmethod
    def sample(self, record: Record) -> Sample:
        """Return the sample that a record gives.

        Raises:
            TrainingError: the record gives none. The message says why; the caller adds where the record stands.
        """

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """Return a batch, the arguments of ``TrainableModel.forward``.

        Raises:
            TrainingError: naming the record that cannot be used.
        """
        samples = []
        for record in records:
            try:
                samples.append(self._checked(self.sample(record)))
            except TrainingError as error:
                raise TrainingError(f"{record.get('origin', 'a record')}: {error}") from None
        passages = list(chain.from_iterable(sample.passages for sample in samples))
        mask = [torch.ones(len(ids), dtype=torch.bool) for ids in passages]
        return {
            "passages": _pad(passages, 0),
            "passage_mask": pad_sequence(mask, batch_first=True) if mask else torch.zeros(0, 0, dtype=torch.bool),
            "input_ids": _pad([sample.input_ids for sample in samples], self.decoder_tokenizer.pad_token_id or 0),
            "labels": _pad([sample.labels for sample in samples], IGNORED),
        }

    def _checked(self, sample: Sample) -> Sample:
        given = sum(ids.count(self.passage_tokenizer.memory_token_ids[0]) for ids in map(list, sample.passages))
        taken = list(sample.input_ids).count(self.decoder_memory_id)
        if given != taken:
            raise TrainingError(f"the prompt has {taken} memory tokens, but its passages give {given}.")
        if self.max_tokens is not None and len(sample.input_ids) > self.max_tokens:
            raise TrainingError(
                f"the prompt with its answer has {len(sample.input_ids)} tokens, but only {self.max_tokens} fit. Give "
                "fewer documents or a shorter answer, or raise max_tokens."
            )
        if len(sample.labels) != len(sample.input_ids):
            raise TrainingError(f"the sample has {len(sample.labels)} labels for {len(sample.input_ids)} tokens.")
        if all(label == IGNORED for label in sample.labels[1:]):
            raise TrainingError("the sample has no label, so nothing can be learned from it.")
        return sample

    def compress(self, text: str, repeated: str = "") -> TokenizedDocument:
        """Cut a text into passages, as a build does. Each passage after the first begins with ``repeated``."""
        (document,) = self.passage_tokenizer.tokenize([text], [repeated])
        return document

    def token_starts(self, text: str) -> list[int]:
        """Return the position in the text at which each compressor token begins.

        Tokens that are parts of one character have the same position.
        """
        encoded = self.compressor_tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
        )
        return [start for start, _ in encoded["offset_mapping"]]

    def memory_ids(self, count: int) -> list[int]:
        """Return the decoder's memory token ``count`` times."""
        return [self.decoder_memory_id] * count

    def decoder_ids(self, text: str) -> list[int]:
        """Return the decoder ids of a text, without special tokens."""
        return self.decoder_tokenizer(clean_text(text), add_special_tokens=False)["input_ids"]

    def opening_ids(self) -> list[int]:
        """Return the ids that a sequence of this decoder begins with: its BOS, if it has one."""
        bos = self.decoder_tokenizer.bos_token_id
        return [] if bos is None else [bos]


def input_text(document: Record, compression: CompressionConfig) -> str:
    """Return the text of a document as it is compressed: with its title, by the template."""
    return compression.input_text(document["text"], document.get("title"))


def _special_tokens(tokenizer: Any) -> int:
    """Return the number of special tokens that a tokenizer puts around a text."""
    return len(tokenizer("a")["input_ids"]) - len(tokenizer("a", add_special_tokens=False)["input_ids"])


def _pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    if not rows:
        return torch.zeros(0, 0, dtype=torch.int64)
    tensors = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value)
