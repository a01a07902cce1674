"""Choose the documents of a corpus that a store lacks, or holds with another text or title."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress

from ...configs import CompressionConfig
from ...corpus import Document, Record, RejectedRecord, Source, is_cut
from ...errors import CorpusError
from ...store import Contents, Status, document_hashes, text_hash
from .plan import Changes
from .shards import ShardBuilder

KEPT_OUT = "kept out"
"""Reason for leaving out a document that was deleted for good."""

# Records that are compared with the store at a time.
_BATCH = 2048


@dataclass(frozen=True)
class Comparison:
    """A store that an update compares a corpus with.

    Attributes:
        contents: contents of the store. After planning, its ``unseen`` rows are the documents that the corpus lacks.
        compression: settings that determine which text of a document is compressed.
        keeps_title: True if the store keeps titles, so that a new title is a change even if it is not compressed.
        prune: True if the update deletes the documents that the corpus lacks.
        kept_out: ids of documents that the store must not hold.
    """

    contents: Contents
    compression: CompressionConfig
    keeps_title: bool
    prune: bool
    kept_out: frozenset[str] = frozenset()


class ChangedDocuments:
    """Adds the new and changed documents of a corpus to shards, and skips those that the store holds unchanged.

    Args:
        shards: builder of the shards.
        comparison: store to compare with.
    """

    def __init__(self, shards: ShardBuilder, comparison: Comparison):
        self._shards = shards
        self._comparison = comparison
        # An earlier reading may have looked up documents that do not count.
        comparison.contents.begin()
        self._counts: Counter[int] = Counter()
        self._kept_out = 0
        self._batch: list[tuple[Record, list[Document]] | RejectedRecord] = []
        self._reader: _RecordReader | None = None

    def begin_source(self, index: int, source: Source) -> None:
        """Begin a source: the following records are its records."""
        self._shards.begin_source(index)
        self._reader = _RecordReader(source)

    def add(self, record: Record, repeated: RejectedRecord | None) -> None:
        """Add a record, or reject it if an earlier record has its id."""
        assert self._reader is not None
        documents = self._reader.documents(record)
        self._queue(repeated or (documents if isinstance(documents, RejectedRecord) else (record, documents)))

    def reject(self, rejected: RejectedRecord) -> None:
        """Add a record that gives no document."""
        self._queue(rejected)

    def end_source(self) -> None:
        """End the source.

        Raises:
            CorpusError: the source holds documents that were not there when its records were scanned.
        """
        assert self._reader is not None
        self._flush()
        self._reader.require_end()
        self._shards.end_source()

    @property
    def changes(self) -> Changes:
        """Number of documents that are new, changed, the same and gone."""
        gone = self._comparison.contents.unseen_count
        return Changes(
            new=self._counts[Status.NEW],
            changed=self._counts[Status.CHANGED],
            same=self._counts[Status.SAME],
            gone=0 if self._comparison.prune else gone,
            pruned=gone if self._comparison.prune else 0,
        )

    @property
    def dropped(self) -> dict[str, int]:
        """Number of documents that are left out because the store keeps them out, by this reason."""
        return {KEPT_OUT: self._kept_out} if self._kept_out else {}

    def _queue(self, item: tuple[Record, list[Document]] | RejectedRecord) -> None:
        self._batch.append(item)
        if len(self._batch) == _BATCH:
            self._flush()

    def _flush(self) -> None:
        """Compare the queued records with the store, and add them to the shards in their order."""
        records = [item for item in self._batch if not isinstance(item, RejectedRecord)]
        differs = iter(self._differ([document for _, documents in records for document in documents]))
        for item in self._batch:
            if isinstance(item, RejectedRecord):
                self._shards.add_rejected(item)
                continue
            record, documents = item
            chosen = [next(differs) for _ in documents]
            if any(chosen):
                lengths = [len(each.text) for each, is_chosen in zip(documents, chosen, strict=True) if is_chosen]
                self._shards.add(record.position, lengths, chosen)
            else:
                self._shards.skip(record.position, len(documents))
        self._batch = []

    def _differ(self, documents: list[Document]) -> list[bool]:
        compression, keeps_title = self._comparison.compression, self._comparison.keeps_title
        texts = [text_hash(compression.input_text(document.text, document.title)) for document in documents]
        titles = [document.title for document in documents] if keeps_title else None
        hashes = document_hashes([document.doc_id for document in documents], texts, titles)
        status = self._comparison.contents.compare(*hashes).tolist()
        if not (kept_out := self._comparison.kept_out):
            self._counts.update(status)
            return [each != Status.SAME for each in status]
        may_stand = [document.doc_id not in kept_out for document in documents]
        self._counts.update(compress(status, may_stand))
        self._kept_out += may_stand.count(False)
        return [each != Status.SAME and stands for each, stands in zip(status, may_stand, strict=True)]


class _RecordReader:
    """Reads the documents of a source's records while the records are scanned."""

    def __init__(self, source: Source):
        self._source = source
        self._is_cut = is_cut(source.spec)
        self._unread: Iterator[Document] | None = None
        self._next: Document | None = None
        self._rejected: deque[RejectedRecord] = deque()

    def documents(self, record: Record) -> list[Document] | RejectedRecord:
        """Return the documents of the next record; or the record as rejected, if it was scanned but cannot be read."""
        if self._unread is None:
            self._unread = self._source.read(record.position, None, self._rejected.append)
            self._next = next(self._unread, None)
        found: list[Document] = []
        while self._next and self._next.doc_id == (f"{record.doc_id}#{len(found)}" if self._is_cut else record.doc_id):
            found.append(self._next)
            self._next = next(self._unread, None)
            if not self._is_cut:
                break
        # The scan already reports the rejected records in between.
        while self._rejected and (self._rejected[0].position or 0) < record.position:
            self._rejected.popleft()
        if not found and self._rejected and self._rejected[0].position == record.position:
            return self._rejected.popleft()
        return found

    def require_end(self) -> None:
        """Check that all documents belonged to a record.

        Raises:
            CorpusError: a document belongs to no record.
        """
        if self._next is not None:
            raise CorpusError(
                f"{self._source.path}: the file changed while the build was reading it, near document "
                f"{self._next.doc_id!r}. Run the build again."
            )
