"""The plan of an update: the documents of a corpus that a store does not hold yet, or holds with another text."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from ...configs import CompressionConfig
from ...corpus import Corpus, Document, Record, RejectedRecord, Source
from ...errors import CorpusError
from ...store import Contents, Status, document_hashes, text_hash
from .plan import (
    DOCUMENT_CHARACTERS,
    Changes,
    CorpusWatch,
    Ids,
    Plan,
    Rejections,
    Selection,
    Shard,
    Slice,
    describe_files,
    raise_for_no_document,
    without_repeats,
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
        CorpusError: if a record is not valid or an id occurs twice (both places are named), and the corpus does not
            skip these; or there is no document.
    """
    watch = CorpusWatch(corpus.sources)

    def plan_with(ids: Ids) -> Plan:
        building = _SparseShardBuilder(first, shard_documents)
        return _plan_update(corpus, contents, compression, keeps_title, prune, ids, building, on_records)

    plan = without_repeats(corpus, plan_with)
    files = describe_files(corpus)
    watch.require_unchanged()
    return replace(plan, files=files, first=first)


def _plan_update(
    corpus: Corpus,
    contents: Contents,
    compression: CompressionConfig,
    keeps_title: bool,
    prune: bool,
    ids: Ids,
    building: "_SparseShardBuilder",
    on_records: Callable[[int], object],
) -> Plan:
    """A plan but for its files and first shard."""
    dropped: Counter[str] = Counter()
    counts: Counter[int] = Counter()
    count = 0
    for index, source in enumerate(corpus.sources):
        building.begin_source(index)
        records = _records(index, source, dropped, ids)
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
                if isinstance(record, RejectedRecord):
                    building.add_rejected(record)
                    continue
                chosen = [each != Status.SAME for each in status[begin : begin + len(own)]]
                begin += len(own)
                building.add(record.position, own, chosen)
                count += 1
            on_records(count)
        building.end_source()
    if not count:
        raise_for_no_document(corpus, dropped, building.rejections)
    gone = len(contents.unseen)
    return Plan(
        files=(),
        sources=ids.specs(corpus.sources),
        shards=building.finish(),
        dropped=dict(dropped),
        rejected=dict(building.rejections.counts),
        changes=Changes(
            new=counts[Status.NEW],
            changed=counts[Status.CHANGED],
            same=counts[Status.SAME],
            gone=0 if prune else gone,
            pruned=gone if prune else 0,
        ),
    )


def _records(
    index: int, source: Source, dropped: Counter[str], ids: Ids
) -> Iterator[tuple[Record | RejectedRecord, list[Document]]]:
    """Yield each record of a source, validated, with its documents, and each one that is rejected, in order."""
    is_cut = bool(source.spec["passage_words"])
    documents: Iterator[Document] | None = None
    waiting: Document | None = None
    rejected: deque[RejectedRecord] = deque()
    rejected_by_reader: deque[RejectedRecord] = deque()
    for record in source.scan(dropped, rejected.append):
        while rejected:
            yield rejected.popleft(), []
        if documents is None:
            documents = source.read(record.position, None, rejected_by_reader.append)
            waiting = next(documents, None)
        own: list[Document] = []
        while waiting and waiting.doc_id == (f"{record.doc_id}#{len(own)}" if is_cut else record.doc_id):
            own.append(waiting)
            waiting = next(documents, None)
            if not is_cut:
                break
        if repeated := ids.add(index, source, record):
            yield repeated, []
            continue
        # The reader may find that it cannot use a record that was scanned without an error.
        while rejected_by_reader and (rejected_by_reader[0].position or 0) < record.position:
            rejected_by_reader.popleft()
        if not own and rejected_by_reader and rejected_by_reader[0].position == record.position:
            yield rejected_by_reader.popleft(), []
            continue
        yield record, own
    while rejected:
        yield rejected.popleft(), []
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
        self._source = 0
        self._open: tuple[int, int] | None = None
        self.rejections = Rejections()
        self._last = 0, 0
        self._begin()

    def _begin(self) -> None:
        self._slices: list[Slice] = []
        self._flags: list[bool] = []
        self._records = self._characters = self._weight = 0
        self._forget_gap()

    def _forget_gap(self) -> None:
        self._gap_records = self._gap_documents = 0
        self._gap_position: int | None = None

    def begin_source(self, index: int) -> None:
        """Take what follows from the source with this number."""
        self._source = index
        self._last = 0, 0

    def add(self, position: int, documents: Sequence[Document], chosen: Sequence[bool]) -> None:
        """Take a record with its documents, of which some are chosen."""
        self._last = position, len(chosen)
        if not any(chosen):
            self._pass_over(position, len(chosen))
            return
        self._include(position)
        self._flags += chosen
        self._records += 1
        for document in (each for each, wanted in zip(documents, chosen, strict=True) if wanted):
            self._characters += len(document.text)
            self._weight += max(1, round(len(document.text) / DOCUMENT_CHARACTERS))

    def add_rejected(self, rejected: RejectedRecord) -> None:
        """Take a record that gives no document, so that the shard's reader meets it."""
        self.rejections.add(rejected)
        if rejected.position is not None:
            self._include(rejected.position)
            self._last = rejected.position, 0
        elif self._open is None:
            # What is left of a file is met by whoever reads on from the last record before it.
            position, documents = self._last
            self._include(position)
            self._flags += [False] * documents
        else:
            self._fill_gap()
        self._weight += 1

    def end_source(self) -> None:
        """Take what follows from another source."""
        self._close(None)

    def finish(self) -> tuple[Shard, ...]:
        """All shards."""
        if self._weight:
            self._end_shard()
        return tuple(self._shards)

    def _include(self, position: int) -> None:
        """Begin a slice at a position, or let the open one go on over it."""
        if self._weight >= self._limit:
            self._close(position)
            self._end_shard()
        if self._open is None:
            self._open = self._source, position
        self._fill_gap()

    def _fill_gap(self) -> None:
        self._flags += [False] * self._gap_documents
        self._forget_gap()

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
