"""The rows that a fetch found, and their memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..codecs.payload import Calibrations, Latents, decode_records, latents_of
from ..codecs.record import Records, read_header


@dataclass(frozen=True)
class Rows:
    """The rows of k documents, in the order in which they were requested.

    Attributes:
        doc_ids: ids of the documents.
        stored: payload records of the documents, which hold their memory: checked ones, or bytes that are not checked.
        columns: further columns that were requested, by name, each a list of k values.
        calibrations: function that returns the calibration that a payload refers to.
    """

    doc_ids: tuple[str, ...]
    stored: Records | tuple[bytes, ...] = field(repr=False)
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    calibrations: Calibrations | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.doc_ids)

    @cached_property
    def payloads(self) -> tuple[bytes, ...]:
        """Payload records of the documents."""
        return tuple(self.stored.payloads()) if isinstance(self.stored, Records) else self.stored

    @property
    def n_mem(self) -> np.ndarray:
        """Number of memory tokens of each document, ``(k,)`` int64.

        Raises:
            CorruptStoreError: a payload has no valid header.
        """
        if isinstance(self.stored, Records):
            return self.stored.lengths
        return np.array([read_header(payload).n_mem for payload in self.stored], dtype=np.int64)

    @property
    def dim(self) -> int:
        """Width of the memory of the documents, at least one.

        Raises:
            CorruptStoreError: a payload is damaged or belongs to another document.
        """
        return self._records.dim

    def memory(self) -> tuple[np.ndarray, np.ndarray]:
        """Decode the payloads.

        Returns:
            Memory embeddings, ``(Σ n_mem, dim)`` float32, and the number of each document, ``(k,)`` int64. Without rows
            their shapes are ``(0, 0)`` and ``(0,)``.

        Raises:
            CorruptStoreError: a payload is damaged or belongs to another document.
            StoreError: a payload refers to a calibration that the store lacks.
        """
        if not self.doc_ids:
            return np.zeros((0, 0), dtype=np.float32), np.zeros(0, dtype=np.int64)
        return decode_records(self._records, self.calibrations)

    def latents(self) -> Latents | None:
        """Decode to latents, without the final affine map; None without rows, or if codecs or calibrations differ.

        Raises:
            CorruptStoreError, StoreError: as ``memory`` raises them.
        """
        return latents_of(self._records, self.calibrations) if self.doc_ids else None

    @cached_property
    def _records(self) -> Records:
        return self.stored if isinstance(self.stored, Records) else Records.checked(self.stored, self.doc_ids)
