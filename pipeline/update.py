"""The plan of an update: the documents of a corpus that a store does not hold yet, or holds with another text."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from ..configs import CompressionConfig
from ..errors import CorpusError
from ..store import Contents, Status, document_hashes, text_hash
from .corpus import Corpus, Document, Record, Source
from .plan import (
    DOCUMENT_CHARACTERS,
    Changes,
    CorpusWatch,
    IdHashes,
    Plan,
    Selection,
    Shard,
    Slice,
    describe_files,
    raise_for_no_document,
)

# Records that are looked up in the store at a time.
_BATCH = 2048

# So many records without a document to write are read over; more end a slice. A slice takes 30 bytes of the plan, and a
# record some microseconds to read.
_MAX_GAP = 32


def plan_update(
    corpus: Corpus,
    contents: Contents,
    compression: CompressionConfig,
    *,
    keeps_title: bool,
    prune: bool,
    first: int,
    shard_documents: int,
    on_records: Callable[[int], object] = bool,
) -> Plan:
    """Validate a whole corpus, compare it with a store, and cut what is new or changed into shards.

    Args:
        corpus: its sources, in order.
        contents: the store's; afterwards its ``unseen`` rows are the documents that are gone.
        compression: what is compressed of a document.
        keeps_title: whether the store keeps titles, so that another title is a change whatever is compressed.
        prune: whether documents that are gone are to be deleted.
        first: number of the first shard.
        shard_documents: documents of about 1,000 characters in a shard.
        on_records: told the number of records found so far, now and then.

    Raises:
        CorpusError: if a record is not valid, an id occurs twice (both places are named), or there is no document.
    """
    dropped: Counter[str] = Counter()
    counts: Counter[int] = Counter()
    watch = CorpusWatch(corpus.sources)
    hashes = IdHashes()
    building = _SparseShardBuilder(first, shard_documents)
    count = 0
    for index, source in enumerate(corpus.sources):
        records = _records(source, dropped)
        while batch := list(islice(records, _BATCH)):
            documents = [document for _, own in batch for document in own]
            inputs = [compression.input_text(document.text, document.title) for document in documents]
            titles = [document.title for document in documents] if keeps_title else None
            status = contents.compare(
                *document_hashes([document.doc_id for document in documents], list(map(text_hash, inputs)), titles)
            ).tolist()
            counts.update(status)
            begin = 0
            for record, own in batch:
                hashes.add(record.doc_id)
                chosen = [each != Status.SAME for each in status[begin : begin + len(own)]]
                begin += len(own)
                building.add(index, record.position, own, chosen)
            count += len(batch)
            on_records(count)
        building.end_source()
    if not count:
        raise_for_no_document(corpus, dropped)
    hashes.require_unique(corpus.sources)
    files = describe_files(corpus)
    watch.require_unchanged()
    gone = len(contents.unseen)
    return Plan(
        files=files,
        sources=tuple(source.spec for source in corpus.sources),
        shards=building.finish(),
        dropped=dict(dropped),
        first=first,
        changes=Changes(
            new=counts[Status.NEW],
            changed=counts[Status.CHANGED],
            same=counts[Status.SAME],
            gone=0 if prune else gone,
            pruned=gone if prune else 0,
        ),
    )


def _records(source: Source, dropped: Counter[str]) -> Iterator[tuple[Record, list[Document]]]:
    """Yield each record of a source, validated, with its documents."""
    is_cut = bool(source.spec["passage_words"])
    documents: Iterator[Document] | None = None
    waiting: Document | None = None
    for record in source.scan(dropped):
        if documents is None:
            documents = source.read(record.position, None)
            waiting = next(documents, None)
        own: list[Document] = []
        while waiting and waiting.doc_id == (f"{record.doc_id}#{len(own)}" if is_cut else record.doc_id):
            own.append(waiting)
            waiting = next(documents, None)
            if not is_cut:
                break
        yield record, own
    if waiting is not None:
        raise CorpusError(
            f"{source.path}: changed while the build was reading it, near document {waiting.doc_id!r}. "
            "Run the build again."
        )


class _SparseShardBuilder:
    """Collects the records with documents to write, in slices with few others between them, until a shard is full."""

    def __init__(self, first: int, shard_documents: int):
        self._first = first
        self._limit = shard_documents
        self._shards: list[Shard] = []
        self._open: tuple[int, int] | None = None
        self._begin()

    def _begin(self) -> None:
        self._slices: list[Slice] = []
        self._flags: list[bool] = []
        self._records = self._characters = self._weight = 0
        self._forget_gap()

    def _forget_gap(self) -> None:
        self._gap_records = self._gap_documents = 0
        self._gap_position: int | None = None

    def add(self, source: int, position: int, documents: Sequence[Document], chosen: Sequence[bool]) -> None:
        """Take a record with its documents, of which some are chosen."""
        if not any(chosen):
            self._pass_over(position, len(chosen))
            return
        if self._weight >= self._limit:
            self._close(position)
            self._end_shard()
        if self._open is None:
            self._open = source, position
        self._flags += [False] * self._gap_documents
        self._flags += chosen
        self._forget_gap()
        self._records += 1
        for document in (each for each, wanted in zip(documents, chosen, strict=True) if wanted):
            self._characters += len(document.text)
            self._weight += max(1, round(len(document.text) / DOCUMENT_CHARACTERS))

    def end_source(self) -> None:
        """Take what follows from another source."""
        self._close(None)

    def finish(self) -> tuple[Shard, ...]:
        """All shards."""
        if self._records:
            self._end_shard()
        return tuple(self._shards)

    def _pass_over(self, position: int, documents: int) -> None:
        if self._open is None:
            return
        if self._gap_position is None:
            self._gap_position = position
        self._gap_records += 1
        self._gap_documents += documents
        if self._gap_records > _MAX_GAP:
            self._close(None)

    def _close(self, stop: int | None) -> None:
        """End the slice that is open, before the gap if there is one, else at ``stop``."""
        if self._open is not None:
            self._slices.append(Slice(*self._open, stop if self._gap_position is None else self._gap_position))
            self._open = None
        self._forget_gap()

    def _end_shard(self) -> None:
        # What the reader counts is what was chosen from, also where all were.
        selection = Selection.of(self._flags)
        number = self._first + len(self._shards)
        self._shards.append(Shard(number, tuple(self._slices), self._records, self._characters, selection))
        self._begin()
