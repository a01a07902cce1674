"""Plan a build: scan a whole corpus and cut what a store lacks of it into shards."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NoReturn

import numpy as np

from ...corpus import Corpus, RejectedRecord, Versioned
from ...corpus.parts.cutting import Part
from ...errors import CorpusError
from ...store import UNKNOWN, KnownRecords
from .comparison import ChangedDocuments, Comparison
from .files import CorpusWatch, describe_files
from .ids import Ids, without_repeats
from .ordering import OrderedReading
from .plan import Plan
from .processes import ReadingPool, reading_pool
from .shards import ShardBuilder
from .survey import Batch, Survey

# Largest number of files that a message names.
_SHOWN = 5


def plan_corpus(
    corpus: Corpus,
    *,
    shard_documents: int,
    first: int = 0,
    comparison: Comparison | None = None,
    on_records: Callable[[int], object] = bool,
    processes: int | None = None,
) -> Plan:
    """Validate a whole corpus and cut the documents that a store lacks into shards.

    The plan does not depend on the number of processes.

    Args:
        corpus: corpus to plan.
        shard_documents: number of documents, of about 1,000 characters each, that fill a shard.
        first: number of the first shard.
        comparison: store to compare with; None plans all documents, and scans the corpus without reading its texts.
        on_records: callback that is given the number of records found so far, from time to time.
        processes: largest number of processes to read with; None is the number of cores. A small corpus is read in
            this process.

    Raises:
        CorpusError: the corpus has no document; or a record cannot be used or an id occurs twice, and the corpus does
            not skip errors. The message names the places.
    """
    watch = CorpusWatch(corpus.sources)
    with reading_pool(corpus.sources, processes) as pool:
        planning = _Planning(corpus, pool, on_records)

        def plan_with(ids: Ids) -> Plan:
            shards = ShardBuilder(first, shard_documents, selects=comparison is not None)
            return planning.plan(
                ids, shards, ChangedDocuments(shards, comparison) if comparison else EveryDocument(shards)
            )

        plan = without_repeats(corpus, plan_with)
    files = describe_files(corpus)
    watch.require_unchanged()
    return replace(plan, files=files, first=first)


class EveryDocument:
    """Adds all documents of a corpus to shards. It takes their lengths from the records and reads no text.

    Args:
        shards: builder of the shards.
    """

    changes = None
    dropped: Mapping[str, int] = {}

    def __init__(self, shards: ShardBuilder):
        self._shards = shards
        self._keys: list[np.ndarray] = []

    def survey(self, suspects: frozenset[int]) -> Survey:
        """Return what has to be read of each record."""
        return Survey(suspects)

    def add(self, batch: Batch, begin: int, end: int) -> None:
        """Add the records of a batch from number ``begin`` up to ``end``."""
        self._shards.add_all(batch.positions[begin:end], batch.characters[begin:end])
        if batch.keys.size:
            self._keys.append(batch.keys[begin:end])

    @property
    def known(self) -> KnownRecords | None:
        """Records of the corpus whose texts are cleaned. Their numbers of documents are unknown before that."""
        return KnownRecords.of([(keys, np.full(len(keys), UNKNOWN)) for keys in self._keys])


class _Planning:
    """The readings of a corpus. The second and later ones know the parts that the first one found."""

    def __init__(self, corpus: Corpus, pool: ReadingPool, on_records: Callable[[int], object]):
        self._corpus, self._pool, self._on_records = corpus, pool, on_records
        self._parts: tuple[Part, ...] | None = None

    def plan(self, ids: Ids, shards: ShardBuilder, choice: EveryDocument | ChangedDocuments) -> Plan:
        """Return the plan without its files."""
        dropped: Counter[str] = Counter()
        sources = self._corpus.sources
        readers = self._pool.readers(sources, choice.survey(ids.suspects), self._parts)
        reading = OrderedReading(sources, readers)
        for index, source in enumerate(sources):
            shards.begin_source(index, source.spec["passage_words"])
            for batch in reading.batches(index):
                if isinstance(source, Versioned):
                    source.see(_ids_in(batch))
                _add(batch, ids.add(index, source, batch), shards, choice, dropped)
                self._on_records(shards.count)
            shards.end_source()
        self._parts = self._parts or reading.parts
        if not shards.count:
            _raise_for_no_document(self._corpus, dropped, shards)
        return Plan(
            files=(),
            sources=ids.specs(sources),
            shards=shards.finish(),
            dropped={**dropped, **choice.dropped},
            rejected=dict(shards.rejections),
            changes=choice.changes,
            known=choice.known,
        )


def _add(
    batch: Batch,
    repeated: Mapping[int, RejectedRecord],
    shards: ShardBuilder,
    choice: EveryDocument | ChangedDocuments,
    dropped: Counter[str],
) -> None:
    """Add a batch to the shards: its records, and the rejected ones where they stand between them."""
    # The number of records before a rejected one, and the number of records that it takes the place of.
    rejected: list[tuple[int, int, RejectedRecord]] = [(place, 1, each) for place, each in repeated.items()]
    for aside in batch.asides:
        if isinstance(aside.item, RejectedRecord):
            rejected.append((aside.index, 0, aside.item))
        else:
            dropped[aside.item.reason] += aside.item.count
    begin = 0
    for place, width, record in sorted(rejected, key=lambda each: each[:2]):
        choice.add(batch, begin, place)
        shards.add_rejected(record)
        begin = place + width
    choice.add(batch, begin, len(batch))


def _ids_in(batch: Batch) -> Iterator[str]:
    yield from batch.ids.values()
    yield from (aside.item.doc_id for aside in batch.asides if aside.item.doc_id)


def _raise_for_no_document(corpus: Corpus, dropped: Mapping[str, int], shards: ShardBuilder) -> NoReturn:
    names = ", ".join(source.name for source in corpus.sources[:_SHOWN]) or "no data file"
    if first := shards.first_rejected:
        raise CorpusError(
            f"the corpus holds no document ({names}): {shards.rejections.total():,} records cannot be used, the first "
            f"because of {first.source}: {first.error}"
        )
    left_out = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
    raise CorpusError(
        f"the corpus holds no document ({names}{'; left out: ' + left_out if left_out else ''}). "
        "Check the path, and the corpus format in the configuration."
    )
