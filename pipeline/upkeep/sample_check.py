"""Compress a sample of a store's documents again and compare their memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...configs import BuildConfig, CompressionConfig
from ...corpus import Document, find_documents
from ...model.compressor import Compressor
from ...model.families import Checkpoint
from ...model.memory import Stage
from ...model.passages import tokenize_documents
from ...store import (
    Findings,
    Problem,
    Store,
    codec_by_id,
    decode,
    encode,
    read_header,
    text_hash,
)

# Largest relative error of memory that is computed again, caused by the order of additions alone: other documents in
# the batch, another device or another number of threads.
ROUNDING = {"bfloat16": 0.05, "float32": 1e-3}

_OTHER_CORPUS = "Name the corpus that the store was built from."
_REBUILD = "If the same device gives the same result, build the store again."


def check_sample(
    findings: Findings,
    config: BuildConfig,
    checkpoint: Checkpoint,
    corpus: Sequence[str | Path],
    count: int,
    seed: int | None,
    device: str,
) -> list[float]:
    """Compress random documents again and compare them with the store.

    Args:
        findings: findings of the check; problems are added to them.
        config: configuration of the store's build.
        checkpoint: checkpoint that the store was built with.
        corpus: files and folders to find the documents in.
        count: number of documents.
        seed: seed of the choice of documents; None chooses others each time.
        device: device to compress on.

    Returns:
        Relative error ‖stored − fresh‖ / ‖fresh‖ of each document found.
    """
    assert findings.meta is not None
    store = Store.open(findings.uri)
    chosen = store.sample(count, seed)
    # Only the store's documents matter; other records of the corpus may be broken.
    lenient = config.corpus.model_copy(update={"on_error": "skip"})
    documents = list(find_documents(corpus, lenient, chosen))
    found = {document.doc_id for document in documents}
    for doc_id in chosen:
        if doc_id not in found:
            findings.add(Problem("memory", "is not in the given corpus.", _OTHER_CORPUS, doc_id=doc_id))
    if not documents:
        return []
    rows = store.fetch([document.doc_id for document in documents], columns=["text_hash"])
    fresh = _compress(checkpoint, config.compression, documents, findings.meta.stage, device)
    errors: list[float] = []
    for i, document in enumerate(documents):
        if text_hash(config.compression.input_text(document.text, document.title)) != rows.columns["text_hash"][i]:
            what = "its text in the corpus is not the one that was compressed."
            findings.add(Problem("memory", what, _OTHER_CORPUS, doc_id=document.doc_id))
            continue
        rounding = ROUNDING[config.compression.dtype]
        error, tolerance = _compare(store, document.doc_id, rows.payloads[i], fresh[i], rounding)
        errors.append(error)
        if not error <= tolerance:
            what = f"its memory, compressed again, has a relative error of {error:.2g}; {tolerance:.2g} is allowed."
            findings.add(Problem("memory", what, _REBUILD, doc_id=document.doc_id))
    return errors


def _compress(
    checkpoint: Checkpoint, compression: CompressionConfig, documents: Sequence[Document], stage: Stage, device: str
) -> list[np.ndarray]:
    """Return the memory of each document, ``(n_mem, dim)`` float32."""
    tokenized = list(tokenize_documents(checkpoint.passage_tokenizer(compression), documents, compression))
    dtype = getattr(torch, compression.dtype)
    compressor = Compressor.load(checkpoint, dtype=dtype, device=device, compiled=False)
    passages = [passage for document in tokenized for passage in document.passages]
    memory = compressor.compress(passages, stage=stage).values.float()
    return [each.numpy() for each in memory.split([document.n_mem for document in tokenized])]


def _compare(store: Store, doc_id: str, payload: bytes, fresh: np.ndarray, rounding: float) -> tuple[float, float]:
    """Return the relative error of stored memory against fresh memory, and the largest allowed one.

    The codec's loss on this document is measured by coding the fresh memory too. The stored memory lost as much, at
    worst in the opposite direction.
    """
    stored = decode(payload, doc_id, store.calibration)
    if stored.shape != fresh.shape:
        return np.inf, rounding
    finite = np.isfinite(fresh)
    if (np.isfinite(stored) != finite).any():
        return np.inf, rounding
    stored, kept = np.where(finite, stored, 0), np.where(finite, fresh, 0)
    norm = max(float(np.linalg.norm(kept)), float(np.finfo(np.float32).tiny))
    codec = codec_by_id(read_header(payload).codec_id)
    coded = decode(encode(doc_id, fresh, codec, store.own_calibration()), doc_id, store.calibration)
    lost = float(np.linalg.norm(np.where(finite, coded, 0) - kept)) / norm
    return float(np.linalg.norm(stored - kept)) / norm, rounding + 2 * lost
