"""Answer one question from the memory of documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..configs.names import Dtype
from ..model.compressor import Compressor
from ..model.decoder import Decoder
from ..model.device import choose_device
from ..model.families import Checkpoint, open_checkpoint
from ..model.memory import Memory
from .compatibility import require_checkpoint
from .generator import Generator
from .memory_source import FreshMemory, MemorySource, StoredMemory
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
    checkpoint: str | Path | Checkpoint,
    question: str,
    doc_ids: Sequence[str],
    *,
    decoder_base: str | None = None,
    compressor_base: str | None = None,
    dtype: Dtype = "bfloat16",
    device: str = "auto",
    max_new_tokens: int = 128,
    repetition_penalty: float | None = None,
) -> Answer:
    """Open a store and a checkpoint and answer one question from the memory of documents.

    Memory is read from the store, or made from the text that the store keeps if the checkpoint compresses a document
    together with the question.

    Args:
        uri: folder or object-store URI of the store.
        checkpoint: checkpoint that the store was built with, opened, or its folder.
        question: the question.
        doc_ids: ids of the documents, best first.
        decoder_base: base decoder to use in place of the one that the checkpoint names.
        compressor_base: base of the compressor to use in place of the one that the checkpoint names.
        dtype: dtype of the decoder.
        device: device of the models.
        max_new_tokens: largest number of tokens of the answer.
        repetition_penalty: factor by which tokens that the answer already has become less likely; 1.0 for none; by
            default what the checkpoint's family or the base decoder says.

    Raises:
        FingerprintMismatchError: if the store was built with another checkpoint.
        MissingDocumentsError: naming the ids that the store does not hold.
        PromptError: if the prompt does not fit the decoder.
    """
    opened = checkpoint
    if isinstance(opened, str | Path):
        opened = open_checkpoint(opened, decoder_base=decoder_base, compressor_base=compressor_base)
    device = choose_device(device)
    with Reader(uri) as reader:
        require_checkpoint(reader, opened)
        source = _source(reader, opened, doc_ids, device)
        # Before the decoder is loaded, which may take minutes: a missing document is reported at once.
        memory = source.memory(question, doc_ids)
    decoder = Decoder.load(opened, dtype=getattr(torch, dtype), device=device, repetition_penalty=repetition_penalty)
    return answer_from(memory, question, decoder, max_new_tokens=max_new_tokens)


def _source(reader: Reader, checkpoint: Checkpoint, doc_ids: Sequence[str], device: str) -> MemorySource:
    if reader.meta.holds_memory:
        return StoredMemory(reader)
    # Before the compressor is loaded, too.
    reader.texts(doc_ids)
    dtype = getattr(torch, reader.compression.dtype)
    # One question's documents are computed faster than layers are compiled.
    return FreshMemory(reader, checkpoint, Compressor.load(checkpoint, dtype=dtype, device=device, compiled=False))


def answer_from(memory: Memory, question: str, generator: Generator, *, max_new_tokens: int = 128) -> Answer:
    """Let a generator answer one question from the memory of its documents."""
    (text,) = generator.answer_batch([question], [memory], max_new_tokens=max_new_tokens)
    return Answer(text, len(generator.prompt_ids(question, memory.lengths)), len(memory.values))
