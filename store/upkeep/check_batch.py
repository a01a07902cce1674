"""Checks of single rows of ``memory``, a batch at a time: each payload, and the columns against each other."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from ...errors import CorruptStoreError, StoreError
from ..codecs.calibration import Calibration, asset_name
from ..codecs.payload import decode, decode_batch
from ..hashes import text_hash
from ..schema import CONTENTS
from ..table.fragment import MAX_ID_BYTES
from .findings import Expectations


class PayloadChecker:
    """Decodes the payloads of a store to check them. Threads may share it.

    Args:
        dim: width of the store's memory.
        calibrations: the store's calibrations by the number that payloads refer to; None for a damaged calibration.
    """

    def __init__(self, dim: int, calibrations: Mapping[int, Calibration | None]):
        self._dim = dim
        self._calibrations = calibrations

    def problems(
        self, ids: Sequence[str], payloads: Sequence[bytes | None], n_mem: np.ndarray
    ) -> Iterator[tuple[int, str]]:
        """Yield the damaged payloads of k rows.

        Args:
            ids: ids of the rows.
            payloads: their payloads; None for a row without memory.
            n_mem: their column of that name, ``(k,)``.

        Yields:
            The place of a row in the batch, and a description of the problem.
        """
        stored = {row: payload for row, payload in enumerate(payloads) if payload is not None}
        rows = list(stored)
        try:
            values, lengths = decode_batch(list(stored.values()), [ids[row] for row in rows], self._calibration)
        except StoreError:
            is_sound = False
        else:
            is_sound = (not stored or values.shape[1] == self._dim) and bool((lengths == n_mem[rows]).all())
        # One call decodes a sound batch much faster; only a damaged batch is worth looking at row by row.
        if not is_sound:
            for row, payload in stored.items():
                yield from ((row, what) for what in self._problems_of(payload, ids[row], int(n_mem[row])))

    def _problems_of(self, payload: bytes, doc_id: str, n_mem: int) -> Iterator[str]:
        try:
            found, width = decode(payload, doc_id, self._calibration).shape
        except CorruptStoreError as error:
            yield str(error).removeprefix(f"document {doc_id!r}: ")
            return
        except StoreError:
            # The calibration is damaged or lost, which is already reported; the row itself may be sound.
            return
        if width != self._dim:
            yield f"its vectors are {width} wide; those of the store are {self._dim}."
        if found != n_mem:
            yield f"its payload has {found} memory tokens; the column n_mem says {n_mem}."

    def _calibration(self, reference: int) -> Calibration:
        if self._calibrations and reference not in self._calibrations:
            raise CorruptStoreError(f"it refers to {asset_name(reference)}, which is not among the store's assets.")
        calibration = self._calibrations.get(reference)
        if calibration is None:
            raise StoreError(f"{asset_name(reference)} is damaged or lost.")
        return calibration


def column_problems(
    columns: Mapping[str, pa.Array], ids: Sequence[str], n_mem: np.ndarray, expected: Expectations
) -> Iterator[tuple[int, str]]:
    """Yield the rows whose columns contradict each other or the plan.

    Args:
        columns: all columns of k rows that are checked, by name.
        ids: the column ``doc_id``.
        n_mem: the column ``n_mem``, ``(k,)`` int32.
        expected: expectations of the build about the rows.

    Yields:
        The place of a row in the batch, and a description of the problem.
    """
    for row, doc_id in enumerate(ids):
        if not 0 < len(doc_id.encode()) <= MAX_ID_BYTES:
            yield row, f"its id is not between 1 and {MAX_ID_BYTES} bytes long."
    failed = ~columns["payload"].is_valid().to_numpy(zero_copy_only=False)
    no_error = ~columns["error"].is_valid().to_numpy(zero_copy_only=False)
    total, fed = (columns[name].to_numpy() for name in ("tokens_total", "tokens_fed"))
    negative = (total < 0) | (fed < 0) | (n_mem < 0)
    wrong = {
        "it has both memory and an error, or neither.": failed == no_error,
        "it has no memory, and the column n_mem says otherwise.": failed & (n_mem != 0),
        "one of its token counts is negative.": negative,
    }
    if expected.shards is not None:
        shards = columns["shard"].to_numpy()
        wrong["its shard is in no plan of the store."] = (shards < 0) | (shards >= expected.next)
    for what, rows in wrong.items():
        yield from ((row, what) for row in np.flatnonzero(rows).tolist())
    if expected.n_mem_bounds is not None:
        least, most = expected.n_mem_bounds(fed.astype(np.int64))
        for row in np.flatnonzero(~negative & ~failed & ((n_mem < least) | (n_mem > most))).tolist():
            possible = f"{fed[row]:,} tokens fed make {least[row]:,} to {most[row]:,} memory tokens"
            yield row, f"its token counts do not fit together: {possible}; the column n_mem says {n_mem[row]:,}."
    yield from _text_problems(columns, expected)


def _text_problems(columns: Mapping[str, pa.Array], expected: Expectations) -> Iterator[tuple[int, str]]:
    stored = columns["text_hash"].to_pylist()
    for row, contents in enumerate(columns[CONTENTS].to_pylist() if CONTENTS in columns else ()):
        if contents is not None and text_hash(contents) != stored[row]:
            yield row, "its contents and text_hash do not fit together."
    if expected.input_text is None or "text" not in columns:
        return
    texts = columns["text"].to_pylist()
    titles = columns["title"].to_pylist() if "title" in columns else [None] * len(texts)
    for row, (text, title) in enumerate(zip(texts, titles, strict=True)):
        if text is not None and text_hash(expected.input_text(text, title)) != stored[row]:
            yield row, "its title, text and text_hash do not fit together."


def no_memory(fed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of memory vectors of documents whose memory is made with each question: none."""
    return np.zeros_like(fed), np.zeros_like(fed)
