"""Answering a question from stored memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import FingerprintMismatchError
from ..model.decoder import Decoder
from ..model.device import choose_device
from ..model.families.pisco import Checkpoint
from ..store import Fingerprint
from .reader import Reader


@dataclass(frozen=True)
class Answer:
    """An answer and what it was read from.

    Attributes:
        text: the decoder's words.
        prompt_tokens: length of the prompt, memory tokens included.
        memory_tokens: memory embeddings that stood for the documents.
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
    dtype: str = "bfloat16",
    device: str = "auto",
    max_new_tokens: int = 128,
) -> Answer:
    """Open a store and a checkpoint and answer one question from the documents' memory.

    Raises:
        FingerprintMismatchError: if the store was built with another checkpoint.
        MissingDocumentsError: naming the ids the store does not hold.
        PromptError: if the prompt does not fit the decoder.
    """
    opened = Checkpoint(checkpoint, decoder_base=decoder_base)
    with Reader(uri) as reader:
        require_checkpoint(reader, opened)
        memory = reader.fetch(doc_ids)
    decoder = Decoder.load(opened, dtype=getattr(torch, dtype), device=choose_device(device))
    text = decoder.answer(question, memory, max_new_tokens=max_new_tokens)
    return Answer(text, len(decoder.prompt_ids(question, memory.lengths)), memory.values.shape[0])


def require_checkpoint(reader: Reader, checkpoint: Checkpoint) -> None:
    """Check that a store's memory was made by a checkpoint.

    Raises:
        FingerprintMismatchError: showing what differs.
    """
    stored = reader.meta.fingerprint.components
    differences = Fingerprint({name: stored.get(name, "") for name in checkpoint.identity}).differences(
        Fingerprint(checkpoint.identity)
    )
    if differences:
        raise FingerprintMismatchError(
            f"The store's memory was made by another checkpoint than {checkpoint.path}: {'; '.join(differences)} "
            "(store | checkpoint). Load the checkpoint that the store was built with."
        )
