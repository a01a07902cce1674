"""Find document ids that occur twice in a corpus."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import xxhash

from ...corpus import REPEATED, Corpus, Record, RejectedRecord, Source, Versioned, with_repeated
from ...errors import CorpusError
from .plan import Plan

# Largest number of records that may be left out because their id occurs twice. With more of them, the configured id
# field is probably not the id.
MAX_REPEATED = 100_000

# Hashes collected in a list, 36 bytes each, before they become an array, 8 bytes each.
_CHUNK = 100_000


class Ids:
    """The ids of one reading of a corpus: 8 bytes for each, so that 24 million fit in memory where the ids would not.

    A first reading keeps a hash of every id. If some hashes occur twice, a second reading compares those ids only.

    Args:
        suspects: hashes that occurred twice in the first reading; empty during the first reading.
    """

    def __init__(self, suspects: frozenset[int] = frozenset()) -> None:
        self._suspects = suspects
        self._seen: set[str] = set()
        self._repeated: dict[int, list[int]] = {}
        self._chunks: list[np.ndarray] = []
        self._recent: list[int] = []
        self._count = 0

    def add(self, index: int, source: Source, record: Record) -> RejectedRecord | None:
        """Add a record of source number ``index``.

        Returns:
            The record as a rejected one if an earlier record is known to have its id; None otherwise, and always in
            the first reading.

        Raises:
            CorpusError: more than ``MAX_REPEATED`` records have the id of an earlier one.
        """
        value = _hash(record.doc_id)
        if not self._suspects:
            self._recent.append(value)
            if len(self._recent) == _CHUNK:
                self._flush()
            return None
        if value not in self._suspects:
            return None
        if record.doc_id not in self._seen:
            self._seen.add(record.doc_id)
            return None
        self._repeated.setdefault(index, []).append(record.position)
        self._count += 1
        place = f"{source.name}, record {record.number}"
        what = f"the id {record.doc_id!r} is that of an earlier record."
        if self._count > MAX_REPEATED:
            raise CorpusError(
                f"{place}: {what} More than {MAX_REPEATED:,} ids are repeated. Choose another id field (--id-field)."
            )
        return RejectedRecord(place, record.doc_id, what, REPEATED, record.position)

    def specs(self, sources: Sequence[Source]) -> tuple[Mapping[str, Any], ...]:
        """Return the specs of the sources, so that workers reject the same records as this reading."""
        repeated = self._repeated
        return tuple(
            with_repeated(source.spec, repeated[index]) if index in repeated else source.spec
            for index, source in enumerate(sources)
        )

    def repeated_hashes(self) -> frozenset[int]:
        """Return the hashes that occurred more than once, at most ``MAX_REPEATED + 1`` of them."""
        self._flush()
        ordered = np.sort(np.concatenate(self._chunks))
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        return frozenset(repeated[: MAX_REPEATED + 1].tolist())

    def _flush(self) -> None:
        self._chunks.append(np.array(self._recent, dtype=np.uint64))
        self._recent = []


def without_repeats(corpus: Corpus, plan_with: Callable[[Ids], Plan]) -> Plan:
    """Plan a corpus so that only one record with an id counts: its newest version, else the first one.

    Args:
        corpus: corpus to plan.
        plan_with: function that plans the corpus. It adds each record to the ids and leaves out the ones they reject.
            It is called again if a file holds a record in several versions, and if ids occur twice.

    Raises:
        CorpusError: an id occurs twice, and the corpus does not skip errors. The message names both places.
    """
    ids = Ids()
    plan = plan_with(ids)
    if [source for source in corpus.sources if isinstance(source, Versioned) and source.keep_newest()]:
        ids = Ids()
        plan = plan_with(ids)
    suspects = ids.repeated_hashes()
    if not suspects:
        return plan
    if corpus.on_error == "skip" and len(suspects) <= MAX_REPEATED:
        return plan_with(Ids(suspects))
    _raise_for_repeated(corpus.sources, suspects)
    return plan


def _raise_for_repeated(sources: Sequence[Source], hashes: Set[int]) -> None:
    """Read the ids again to name both places. Return if all pairs were different ids with the same hash."""
    places: dict[str, str] = {}
    for source in sources:
        for record in source.scan(Counter()):
            if _hash(record.doc_id) not in hashes:
                continue
            place = f"{source.path}, record {record.number}" if record.number else source.path
            if record.doc_id in places:
                raise CorpusError(
                    f"the id {record.doc_id!r} occurs twice: {places[record.doc_id]} and {place}. Ids must be unique "
                    "in a corpus: remove one of the records, or choose another id field (--id-field)."
                )
            places[record.doc_id] = place


def _hash(doc_id: str) -> int:
    return xxhash.xxh3_64_intdigest(doc_id.encode("utf-8", errors="surrogatepass"))
