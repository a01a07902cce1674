"""Answer one question from the memory of documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..configs.names import Dtype
from ..model.decoder import Decoder
from ..model.device import choose_device
from ..model.families import open_checkpoint
from ..model.memory import Memory
from .compatibility import require_checkpoint
from .generator import Generator
from .memory_source import MemorySource, StoredMemory
from .reader import Reader


@dataclass(frozen=True)
class Answer:
    """An answer, and the size of what it was read from.

    Attributes:
        text: the answer.
        prompt_tokens: length of the prompt, memory tokens included.
        memory_tokens: number of memory vectors in the prompt.
    """

    text: str
    prompt_tokens: int
    memory_tokens: int


def ask(
    uri: str | Path,
    checkpoint: str | Path,
    question: str,
    doc_ids: Sequence[str],
    *,
    decoder_base: str | None = None,
    dtype: Dtype = "bfloat16",
    device: str = "auto",
    max_new_tokens: int = 128,
) -> Answer:
    """Open a store and a checkpoint and answer one question from the memory of documents.

    Args:
        uri: folder or object-store URI of the store.
        checkpoint: folder of the checkpoint that the store was built with.
        question: the question.
        doc_ids: ids of the documents, best first.
        decoder_base: base decoder to use in place of the one that the checkpoint names.
        dtype: dtype of the decoder.
        device: device of the decoder.
        max_new_tokens: largest number of tokens of the answer.

    Raises:
        FingerprintMismatchError: if the store was built with another checkpoint.
        MissingDocumentsError: naming the ids that the store does not hold.
        PromptError: if the prompt does not fit the decoder.
    """
    opened = open_checkpoint(checkpoint, decoder_base=decoder_base)
    with Reader(uri) as reader:
        require_checkpoint(reader, opened)
        source: MemorySource = StoredMemory(reader)
        # Before the decoder is loaded, which may take minutes: a missing document is reported at once.
        memory = source.memory(question, doc_ids)
    decoder = Decoder.load(opened, dtype=getattr(torch, dtype), device=choose_device(device))
    return answer_from(memory, question, decoder, max_new_tokens=max_new_tokens)


def answer_from(memory: Memory, question: str, generator: Generator, *, max_new_tokens: int = 128) -> Answer:
    """Let a generator answer one question from the memory of its documents."""
    (text,) = generator.answer_batch([question], [memory], max_new_tokens=max_new_tokens)
    return Answer(text, len(generator.prompt_ids(question, memory.lengths)), len(memory.values))
