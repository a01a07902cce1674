"""Find document ids that occur twice in a corpus."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...corpus import REPEATED, Corpus, RejectedRecord, Source, Versioned, with_repeated
from ...errors import CorpusError
from .plan import Plan
from .survey import Batch

# Largest number of records that may be left out because their id occurs twice. With more of them, the configured id
# field is probably not the id.
MAX_REPEATED = 100_000


class Ids:
    """The ids of one reading of a corpus: 8 bytes for each, so that 24 million fit in memory where the ids would not.

    A first reading keeps a hash of every id. If some hashes occur twice, a second reading compares those ids only.

    Args:
        suspects: hashes that occurred twice in the first reading; empty during the first reading.
        skips: True if a record with the id of an earlier one is rejected; False if it is an error.
    """

    def __init__(self, suspects: frozenset[int] = frozenset(), *, skips: bool = True) -> None:
        self.suspects = suspects
        self._skips = skips
        self._places: dict[str, str] = {}
        self._repeated: dict[int, list[int]] = {}
        self._hashes: list[np.ndarray] = []
        self._count = 0

    def add(self, index: int, source: Source, batch: Batch) -> dict[int, RejectedRecord]:
        """Add records of source number ``index``.

        Returns:
            The records that have the id of an earlier one, as rejected ones, by their places in the batch. In the first
            reading there are none.

        Raises:
            CorpusError: an id occurs twice and records are not skipped, or more than ``MAX_REPEATED`` records have the
                id of an earlier one.
        """
        if not self.suspects:
            self._hashes.append(batch.hashes)
            return {}
        suspect = np.flatnonzero(np.isin(batch.hashes, np.array(list(self.suspects), np.uint64))).tolist()
        found: dict[int, RejectedRecord] = {}
        for place in suspect:
            if rejected := self._reject(index, source, batch, place):
                found[place] = rejected
        return found

    def _reject(self, index: int, source: Source, batch: Batch, place: int) -> RejectedRecord | None:
        doc_id, position = batch.ids[place], int(batch.positions[place])
        where = f"record {batch.numbers[place]}"
        if (first := self._places.get(doc_id)) is None:
            self._places[doc_id] = f"{source.path}, {where}"
            return None
        if not self._skips:
            raise CorpusError(
                f"the id {doc_id!r} occurs twice: {first} and {source.path}, {where}. Ids must be unique in a corpus: "
                "remove one of the records, or choose another id field (--id-field)."
            )
        self._repeated.setdefault(index, []).append(position)
        self._count += 1
        what = f"the id {doc_id!r} is that of an earlier record."
        if self._count > MAX_REPEATED:
            raise CorpusError(
                f"{source.name}, {where}: {what} More than {MAX_REPEATED:,} ids are repeated. Choose another id field "
                "(--id-field)."
            )
        return RejectedRecord(f"{source.name}, {where}", doc_id, what, REPEATED, position)

    def specs(self, sources: Sequence[Source]) -> tuple[Mapping[str, Any], ...]:
        """Return the specs of the sources, so that workers reject the same records as this reading."""
        repeated = self._repeated
        return tuple(
            with_repeated(source.spec, repeated[index]) if index in repeated else source.spec
            for index, source in enumerate(sources)
        )

    def repeated_hashes(self) -> frozenset[int]:
        """Return the hashes that occurred more than once, at most ``MAX_REPEATED + 1`` of them."""
        ordered = np.sort(np.concatenate(self._hashes))
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        return frozenset(repeated[: MAX_REPEATED + 1].tolist())


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
    return plan_with(Ids(suspects, skips=corpus.on_error == "skip" and len(suspects) <= MAX_REPEATED))
