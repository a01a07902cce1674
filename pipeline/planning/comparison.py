"""Choose the documents of a corpus that a store lacks, or holds with another text or title."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...configs import CompressionConfig
from ...corpus import Document, Event, Source
from ...store import Contents, Status, document_hashes, id_hashes, text_hash
from .plan import Changes
from .shards import ShardBuilder
from .survey import Batch, Details, Survey

KEPT_OUT = "kept out"
"""Reason for leaving out a document that was deleted for good."""


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


@dataclass(slots=True)
class Hashed:
    """The documents of n records by their hashes: k documents in all.

    Attributes:
        counts: numbers of documents of the records, ``(n,)`` int64.
        ids: hashes of the ids, ``(k, 2)`` uint64, as ``document_hashes`` returns them.
        texts: hashes of the texts, ``(k,)`` uint64.
        lengths: numbers of characters of the texts, ``(k,)`` int64.
    """

    counts: np.ndarray
    ids: np.ndarray
    texts: np.ndarray
    lengths: np.ndarray

    def since(self, record: int) -> "Hashed":
        """Return the documents of the records from one on."""
        first = int(self.counts[:record].sum())
        return Hashed(self.counts[record:], self.ids[first:], self.texts[first:], self.lengths[first:])


class ComparingSurvey(Survey):
    """A reading of all documents, each by its hashes.

    Args:
        compression: settings that determine which text of a document is compressed.
        keeps_title: True if titles are compared too.
        suspects: hashes of the ids that are wanted themselves.
    """

    def __init__(self, compression: CompressionConfig, *, keeps_title: bool, suspects: frozenset[int] = frozenset()):
        super().__init__(suspects)
        self._compression, self._keeps_title = compression, keeps_title

    def events(self, source: Source, start: int, stop: int | None) -> Iterator[Event]:
        """Yield the events of a source."""
        return source.walk(start, stop)

    def details(self) -> Details:
        """Return a collector of the hashes of documents."""
        return _Hashing(self._compression, self._keeps_title)


class _Hashing(Details):
    def __init__(self, compression: CompressionConfig, keeps_title: bool):
        self._compression, self._keeps_title = compression, keeps_title
        self._begin()

    def _begin(self) -> None:
        self._counts: list[int] = []
        self._ids: list[str] = []
        self._texts: list[bytes] = []
        self._titles: list[str | None] = []
        self._lengths: list[int] = []

    def add(self, source: Source, document: Document, place: str) -> None:
        before = len(self._ids)
        for each in source.documents(document, place):
            self._ids.append(each.doc_id)
            self._texts.append(text_hash(self._compression.input_text(each.text, each.title)))
            self._titles.append(each.title)
            self._lengths.append(len(each.text))
        self._counts.append(len(self._ids) - before)

    def take(self) -> Hashed:
        titles = self._titles if self._keeps_title else None
        ids, texts = document_hashes(self._ids, self._texts, titles)
        hashed = Hashed(np.array(self._counts, np.int64), ids, texts, np.array(self._lengths, np.int64))
        self._begin()
        return hashed


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
        self._unwanted = id_hashes(sorted(comparison.kept_out))

    def survey(self, suspects: frozenset[int]) -> Survey:
        """Return what has to be read of each record."""
        comparison = self._comparison
        return ComparingSurvey(comparison.compression, keeps_title=comparison.keeps_title, suspects=suspects)

    def add(self, batch: Batch, begin: int, end: int) -> None:
        """Add the records of a batch from number ``begin`` up to ``end``."""
        hashed: Hashed = batch.details
        edges = np.concatenate([[0], np.cumsum(hashed.counts)])[begin : end + 1]
        part = slice(int(edges[0]), int(edges[-1]))
        edges -= edges[0]
        is_chosen, lengths = self._differ(hashed.ids[part], hashed.texts[part]), hashed.lengths[part]
        chosen = np.concatenate([[0], np.cumsum(is_chosen)])[edges]
        positions, counts = batch.positions[begin:end], hashed.counts[begin:end]
        done = 0
        for record in np.flatnonzero(np.diff(chosen)).tolist():
            self._shards.skip_all(positions[done:record], counts[done:record])
            own = slice(edges[record], edges[record + 1])
            flags = is_chosen[own]
            self._shards.add(int(positions[record]), lengths[own][flags].tolist(), flags.tolist())
            done = record + 1
        self._shards.skip_all(positions[done:], counts[done:])

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

    def _differ(self, ids: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Compare k documents with the store. Return which of them are to be written, ``(k,)`` bool."""
        status = self._comparison.contents.compare(ids, texts)
        stands = ~_among(ids, self._unwanted)
        self._kept_out += int(np.count_nonzero(~stands))
        self._counts.update(
            dict(zip(*map(np.ndarray.tolist, np.unique(status[stands], return_counts=True)), strict=True))
        )
        return (status != Status.SAME) & stands


def _among(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return which hashes, ``(k, 2)`` uint64, are among others, ``(m, 2)`` uint64: ``(k,)`` bool."""
    found = np.isin(ids[:, 0], wanted[:, 0])
    if found.any():
        both = {tuple(each) for each in wanted.tolist()}
        found[found] = [tuple(each) in both for each in ids[found].tolist()]
    return found
