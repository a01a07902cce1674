"""Hash documents, to notice later which of them have changed."""

from collections.abc import Iterable, Sequence

import numpy as np
import xxhash


def text_hash(text: str) -> bytes:
    """Return the 16 bytes by which ``memory`` remembers a document's text: XXH3-128 of its UTF-8."""
    return xxhash.xxh3_128_digest(text.encode())


def id_hashes(doc_ids: Iterable[str]) -> np.ndarray:
    """Return the hashes of k ids, ``(k, 2)`` uint64."""
    return np.frombuffer(b"".join([xxhash.xxh3_128_digest(i.encode()) for i in doc_ids]), np.uint64).reshape(-1, 2)


def document_hashes(
    doc_ids: Sequence[str], text_hashes: Sequence[bytes], titles: Sequence[str | None] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes by which ``Contents`` compares k documents.

    Args:
        doc_ids: ids of the documents.
        text_hashes: their ``text_hash``, 16 bytes each.
        titles: their titles, or None if the store does not keep titles.

    Returns:
        Hashes of the ids, ``(k, 2)`` uint64, and hashes of text and title, ``(k,)`` uint64.
    """
    ids = id_hashes(doc_ids)
    if titles is None:
        return ids, np.frombuffer(b"".join(text_hashes), np.uint64)[::2]
    pairs = zip(text_hashes, titles, strict=True)
    return ids, np.array([xxhash.xxh3_64_intdigest(text + (title or "").encode()) for text, title in pairs], np.uint64)
