"""Plan a build: scan a whole corpus and cut what a store lacks of it into shards."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NoReturn

from ...corpus import Corpus, Record, RejectedRecord, Source
from ...errors import CorpusError
from .comparison import ChangedDocuments, Comparison
from .files import CorpusWatch, describe_files
from .ids import Ids, without_repeats
from .plan import Plan
from .shards import ShardBuilder

# Records scanned between two reports of progress.
_REPORTED = 1000
# Largest number of files that a message names.
_SHOWN = 5


def plan_corpus(
    corpus: Corpus,
    *,
    shard_documents: int,
    first: int = 0,
    comparison: Comparison | None = None,
    on_records: Callable[[int], object] = bool,
) -> Plan:
    """Validate a whole corpus and cut the documents that a store lacks into shards.

    Args:
        corpus: corpus to plan.
        shard_documents: number of documents, of about 1,000 characters each, that fill a shard.
        first: number of the first shard.
        comparison: store to compare with; None plans all documents, and scans the corpus without reading its texts.
        on_records: callback that is given the number of records found so far, from time to time.

    Raises:
        CorpusError: the corpus has no document; or a record cannot be used or an id occurs twice, and the corpus does
            not skip errors. The message names the places.
    """
    watch = CorpusWatch(corpus.sources)

    def plan_with(ids: Ids) -> Plan:
        shards = ShardBuilder(first, shard_documents, selects=comparison is not None)
        choice = EveryDocument(shards) if comparison is None else ChangedDocuments(shards, comparison)
        return _plan_with(corpus, ids, shards, choice, on_records)

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

    def begin_source(self, index: int, source: Source) -> None:  # noqa: ARG002
        """Begin a source: the following records are its records."""
        self._shards.begin_source(index)

    def add(self, record: Record, repeated: RejectedRecord | None) -> None:
        """Add a record, or reject it if an earlier record has its id."""
        if repeated:
            self._shards.add_rejected(repeated)
        else:
            self._shards.add(record.position, (record.characters,))

    def reject(self, rejected: RejectedRecord) -> None:
        """Add a record that gives no document."""
        self._shards.add_rejected(rejected)

    def end_source(self) -> None:
        """End the source."""
        self._shards.end_source()


def _plan_with(
    corpus: Corpus,
    ids: Ids,
    shards: ShardBuilder,
    choice: EveryDocument | ChangedDocuments,
    on_records: Callable[[int], object],
) -> Plan:
    """Return the plan without its files."""
    dropped: Counter[str] = Counter()
    for index, source in enumerate(corpus.sources):
        choice.begin_source(index, source)
        for number, record in enumerate(source.scan(dropped, choice.reject), 1):
            choice.add(record, ids.add(index, source, record))
            if number % _REPORTED == 0:
                on_records(shards.count)
        choice.end_source()
    if not shards.count:
        _raise_for_no_document(corpus, dropped, shards)
    on_records(shards.count)
    return Plan(
        files=(),
        sources=ids.specs(corpus.sources),
        shards=shards.finish(),
        dropped={**dropped, **choice.dropped},
        rejected=dict(shards.rejections),
        changes=choice.changes,
    )


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
