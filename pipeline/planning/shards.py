"""Cut the records of a corpus into shards."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ...corpus import RejectedRecord
from .plan import Selection, Shard, Share, Slice

# A text counts as one document for each of these, so that shards of whole articles are no larger than of passages.
DOCUMENT_CHARACTERS = 1000
# Upper estimate of a word's characters, with its space. It bounds the number of a record's shards by its documents.
_WORD_CHARACTERS = 10

# Longest gap of skipped records that a slice spans; a longer one ends the slice. A slice costs 30 bytes of the plan, a
# record in a gap costs some microseconds of reading.
_MAX_GAP = 32


class ShardBuilder:
    """Collects the records to write, in the order of the corpus, and closes a shard when it is full.

    Records without a document to write are skipped: a slice spans a few of them and ends before many. A record
    that is cut into documents and would more than fill a shard has several shards, which share its documents.

    Args:
        first: number of the first shard.
        shard_documents: number of documents, of about 1,000 characters each, that fill a shard.
        selects: True if shards list which documents of their slices they take; False if they take them all.

    Attributes:
        count: number of records that were added or skipped.
        rejections: number of rejected records, by reason.
        first_rejected: first rejected record, or None.
    """

    def __init__(self, first: int, shard_documents: int, *, selects: bool):
        self.count = 0
        self.rejections: Counter[str] = Counter()
        self.first_rejected: RejectedRecord | None = None
        self._first = first
        self._limit = shard_documents
        self._selects = selects
        self._shards: list[Shard] = []
        self._source = 0
        # Source and position at which the open slice begins; position and documents of the record before.
        self._open: tuple[int, int] | None = None
        self._last = 0, 0
        self._begin_shard()

    def begin_source(self, index: int, passage_words: int | None = None) -> None:
        """Begin source number ``index``: the following records are its records.

        Args:
            index: number of the source.
            passage_words: number of words of a document, if the source cuts records into documents.
        """
        self._source, self._passage_words = index, passage_words
        self._last = 0, 0

    def add(self, position: int, lengths: Sequence[int], chosen: Sequence[bool] = ()) -> None:
        """Add a record with documents to write.

        Args:
            position: position of the record.
            lengths: numbers of characters of the documents to write.
            chosen: one flag for each document of the record, True if it is to be written; not used unless shards select
                documents.
        """
        self.count += 1
        self._last = position, len(chosen)
        weight = sum(max(1, round(characters / DOCUMENT_CHARACTERS)) for characters in lengths)
        self._add(position, weight, sum(lengths), self._shares(weight, len(lengths)))
        self._flags += chosen

    def add_all(self, positions: np.ndarray, characters: np.ndarray) -> None:
        """Add records whose documents are all to be written.

        Args:
            positions: positions of the records, ``(n,)`` int64.
            characters: numbers of characters of their documents, ``(n,)`` int64.
        """
        if not len(positions):
            return
        weights = np.maximum(1, np.rint(characters / DOCUMENT_CHARACTERS)).astype(np.int64)
        done = 0
        if words := self._passage_words:
            for place in np.flatnonzero(weights > self._limit).tolist():
                length = int(characters[place])
                shares = self._shares(int(weights[place]), length // (_WORD_CHARACTERS * words))
                if shares > 1:
                    self._add_run(positions[done:place], weights[done:place], characters[done:place])
                    self._add(int(positions[place]), int(weights[place]), length, shares)
                    done = place + 1
        self._add_run(positions[done:], weights[done:], characters[done:])
        self.count += len(positions)
        self._last = int(positions[-1]), 0

    def _add_run(self, positions: np.ndarray, weights: np.ndarray, characters: np.ndarray) -> None:
        """Add records whose documents are all to be written, none of which is shared."""
        weights, sums = np.cumsum(weights), np.cumsum(characters)
        begin = weight = length = 0
        while begin < len(positions):
            self._include(int(positions[begin]))
            # The record that fills the shard is its last one.
            end = int(np.searchsorted(weights, weight + self._limit - self._weight)) + 1
            end = min(end, len(positions))
            self._records += end - begin
            self._weight += int(weights[end - 1]) - weight
            self._characters += int(sums[end - 1]) - length
            begin, weight, length = end, int(weights[end - 1]), int(sums[end - 1])

    def _shares(self, weight: int, documents: int) -> int:
        """Return the number of shards that a record needs: it is at most the number of its documents."""
        return max(min(-(-weight // self._limit), documents), 1)

    def _add(self, position: int, weight: int, characters: int, shares: int) -> None:
        """Add a record. One that is shared has its shards to itself."""
        if shares > 1 and self._weight:
            self._close_slice(position)
            self._end_shard()
        self._include(position)
        self._shards_of_record = shares
        self._records += 1
        self._weight += weight
        self._characters += characters

    def skip(self, position: int, documents: int) -> None:
        """Skip a record whose documents are not to be written."""
        self.count += 1
        self._last = position, documents
        if self._open is None:
            return
        if self._gap_position is None:
            self._gap_position = position
        self._gap_records += 1
        self._gap_documents += documents
        if self._gap_records > _MAX_GAP:
            self._close_slice(None)

    def skip_all(self, positions: np.ndarray, documents: np.ndarray) -> None:
        """Skip n records whose documents are not to be written.

        Args:
            positions: their positions, ``(n,)`` int64.
            documents: their numbers of documents, ``(n,)`` int64.
        """
        for done, (position, count) in enumerate(zip(positions, documents, strict=True)):
            if self._open is None:
                self.count += len(positions) - done
                self._last = int(positions[-1]), int(documents[-1])
                return
            self.skip(int(position), int(count))

    def add_rejected(self, rejected: RejectedRecord) -> None:
        """Add a record that gives no document, so that the worker of its shard meets and reports it."""
        self.first_rejected = self.first_rejected or rejected
        self.rejections[rejected.reason] += 1
        if rejected.position is not None:
            self._include(rejected.position)
            self._last = rejected.position, 0
        elif self._open is None:
            # No reader can begin at the rest of a file. It is met by reading on from the last record before it.
            position, documents = self._last
            self._include(position)
            self._flags += [False] * documents
        else:
            self._fill_gap()
        self._weight += 1

    def end_source(self) -> None:
        """End the source."""
        self._close_slice(None)

    def finish(self) -> tuple[Shard, ...]:
        """Return all shards."""
        if self._weight:
            self._end_shard()
        return tuple(self._shards)

    def _include(self, position: int) -> None:
        """Extend the open slice over a position, or begin a slice there; a full shard ends before it."""
        if self._weight >= self._limit:
            self._close_slice(position)
            self._end_shard()
        if self._open is None:
            self._open = self._source, position
        elif self._gap_records:
            self._fill_gap()

    def _fill_gap(self) -> None:
        self._flags += [False] * self._gap_documents
        self._forget_gap()

    def _forget_gap(self) -> None:
        self._gap_records = self._gap_documents = 0
        self._gap_position: int | None = None

    def _close_slice(self, stop: int | None) -> None:
        """End the open slice before its gap, or at ``stop`` if it has none."""
        if self._open is not None:
            self._slices.append(Slice(*self._open, stop if self._gap_position is None else self._gap_position))
            self._open = None
        self._forget_gap()

    def _begin_shard(self) -> None:
        self._slices: list[Slice] = []
        self._flags: list[bool] = []
        self._records = self._characters = self._weight = 0
        self._shards_of_record = 1
        self._forget_gap()

    def _end_shard(self) -> None:
        # A selection is kept even if it chooses all documents: the worker compares their number with what it reads.
        selection = Selection.of(self._flags) if self._selects else None
        count = self._shards_of_record
        for part in range(count):
            characters = self._characters * (part + 1) // count - self._characters * part // count
            share = Share(part, count) if count > 1 else None
            number = self._first + len(self._shards)
            self._shards.append(Shard(number, tuple(self._slices), self._records, characters, selection, share))
        self._begin_shard()
