"""Choose the documents of a corpus that a store lacks, or holds with another text or title."""

import os
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from tempfile import mkstemp
from typing import Any

import numpy as np

from ...configs import CompressionConfig
from ...corpus import Document, Event, Source
from ...store import UNKNOWN, Contents, KnownRecords, Status, document_hashes, id_hashes, text_hash
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
        known: records whose documents are known from their source texts; None if there are none.
    """

    contents: Contents
    compression: CompressionConfig
    keeps_title: bool
    prune: bool
    kept_out: frozenset[str] = frozenset()
    known: KnownRecords | None = None


class SharedKeys:
    """Keys of records in a temporary file, which several processes look into.

    Args:
        keys: the keys, ascending, ``(n,)`` uint64.
    """

    def __init__(self, keys: np.ndarray):
        descriptor, self._name = mkstemp(prefix="pisco-index-")
        weakref.finalize(self, os.unlink, self._name)
        with os.fdopen(descriptor, "wb") as file:
            keys.tofile(file)

    def __getstate__(self) -> dict[str, Any]:
        return {"_name": self._name}

    @cached_property
    def _keys(self) -> np.ndarray:
        return np.asarray(np.memmap(self._name, np.uint64, mode="r"))

    def place(self, key: int) -> int:
        """Return the place of a key; -1 if it is not there."""
        wanted = np.uint64(key)
        place = int(np.searchsorted(self._keys, wanted))
        return place if place < len(self._keys) and self._keys[place] == wanted else -1


@dataclass(slots=True)
class Hashed:
    """The documents of n records by their hashes: k documents in all.

    Attributes:
        known: place among the known records, and id, of the records that are known, by their number. Their documents
            are not among the following columns.
        trusted: documents whose text is that in the store, if the store holds them, ``(k,)`` bool; None if there are
            none.
        counts: numbers of documents of the records, ``(n,)`` int64.
        ids: hashes of the ids, ``(k, 2)`` uint64, as ``document_hashes`` returns them.
        texts: hashes of the texts, ``(k,)`` uint64.
        lengths: numbers of characters of the texts, ``(k,)`` int64.
    """

    counts: np.ndarray
    ids: np.ndarray
    texts: np.ndarray
    lengths: np.ndarray
    known: dict[int, tuple[int, str]] = field(default_factory=dict)
    trusted: np.ndarray | None = None

    def since(self, record: int) -> "Hashed":
        """Return the documents of the records from one on."""
        first = int(self.counts[:record].sum())
        known = {place - record: each for place, each in self.known.items() if place >= record}
        return Hashed(self.counts[record:], self.ids[first:], self.texts[first:], self.lengths[first:], known)


class ComparingSurvey(Survey):
    """A reading of all documents, each by its hashes.

    Args:
        compression: settings that determine which text of a document is compressed.
        keeps_title: True if titles are compared too.
        suspects: hashes of the ids that are wanted themselves.
        known: keys of the records whose documents need not be made; None if there are none.
    """

    def __init__(
        self,
        compression: CompressionConfig,
        *,
        keeps_title: bool,
        suspects: frozenset[int] = frozenset(),
        known: SharedKeys | None = None,
    ):
        super().__init__(suspects)
        self._compression, self._keeps_title, self._known = compression, keeps_title, known

    def events(self, source: Source, start: int, stop: int | None) -> Iterator[Event]:
        """Yield the events of a source."""
        return source.walk(start, stop)

    def details(self) -> Details:
        """Return a collector of the hashes of documents."""
        return _Hashing(self._compression, self._keeps_title, self._known)


class _Hashing(Details):
    def __init__(self, compression: CompressionConfig, keeps_title: bool, keys: SharedKeys | None):
        self._compression, self._keeps_title, self._keys = compression, keeps_title, keys
        self._begin()

    def _begin(self) -> None:
        self._counts: list[int] = []
        self._ids: list[str] = []
        self._texts: list[bytes] = []
        self._titles: list[str | None] = []
        self._lengths: list[int] = []
        self._known: dict[int, tuple[int, str]] = {}

    def add(self, source: Source, document: Document, place: str, key: int | None) -> None:
        if self._keys is not None and key is not None and (known := self._keys.place(key)) >= 0:
            self._known[len(self._counts)] = known, document.doc_id
            self._counts.append(0)
            return
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
        lengths = np.array(self._lengths, np.int64)
        hashed = Hashed(np.array(self._counts, np.int64), ids, texts, lengths, self._known)
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
        self._keys = SharedKeys(comparison.known.keys) if comparison.known else None
        self._records: list[tuple[np.ndarray, np.ndarray]] = []

    def survey(self, suspects: frozenset[int]) -> Survey:
        """Return what has to be read of each record."""
        comparison = self._comparison
        return ComparingSurvey(
            comparison.compression, keeps_title=comparison.keeps_title, suspects=suspects, known=self._keys
        )

    def add(self, batch: Batch, begin: int, end: int) -> None:
        """Add the records of a batch from number ``begin`` up to ``end``."""
        hashed: Hashed = batch.details
        if hashed.known:
            batch.details = hashed = self._with_known(hashed, batch.characters)
        if batch.keys.size:
            self._records.append((batch.keys[begin:end], hashed.counts[begin:end]))
        edges = np.concatenate([[0], np.cumsum(hashed.counts)])[begin : end + 1]
        part = slice(int(edges[0]), int(edges[-1]))
        edges -= edges[0]
        is_chosen, lengths = self._differ(hashed, part), hashed.lengths[part]
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

    @property
    def known(self) -> KnownRecords | None:
        """Records of the corpus whose texts are cleaned, with their numbers of documents."""
        return KnownRecords.of(self._records)

    def _with_known(self, hashed: Hashed, characters: np.ndarray) -> Hashed:
        """Return the documents of a batch with those of the known records, whose texts are what the store holds."""
        assert self._comparison.known is not None
        records = list(hashed.known)
        counts = self._comparison.known.counts[[place for place, _ in hashed.known.values()]].astype(np.int64)
        names = [doc_id for _, doc_id in hashed.known.values()]
        unknown = np.flatnonzero(counts == UNKNOWN).tolist()
        counts[unknown] = self._stored([names[place] for place in unknown])
        ids = id_hashes(f"{name}#{n}" for name, count in zip(names, counts.tolist(), strict=True) for n in range(count))
        counts_of_all, lengths = hashed.counts.copy(), np.zeros(len(hashed.counts), np.int64)
        counts_of_all[records] = counts
        # A document that was deleted is made again. The length of its text is not known, and only balances shards.
        lengths[records] = characters[records] // np.maximum(counts, 1)
        is_known = np.zeros(len(hashed.counts), bool)
        is_known[records] = True
        trusted = np.repeat(is_known, counts_of_all)
        merged = Hashed(
            counts_of_all,
            np.empty((len(trusted), 2), np.uint64),
            np.zeros(len(trusted), np.uint64),
            np.repeat(lengths, counts_of_all),
            trusted=trusted,
        )
        merged.ids[trusted], merged.ids[~trusted] = ids, hashed.ids
        merged.texts[~trusted], merged.lengths[~trusted] = hashed.texts, hashed.lengths
        return merged

    def _stored(self, doc_ids: list[str]) -> list[int]:
        """Return how many documents of records the store holds: those with the numbers from 0 up to the first gap."""
        found = [0] * len(doc_ids)
        asked = list(range(len(doc_ids)))
        while asked:
            ids = id_hashes(f"{doc_ids[place]}#{found[place]}" for place in asked)
            is_there = self._comparison.contents.compare(ids, np.zeros(len(ids), np.uint64)) != Status.NEW
            asked = [place for place, there in zip(asked, is_there.tolist(), strict=True) if there]
            for place in asked:
                found[place] += 1
        return found

    def _differ(self, hashed: Hashed, part: slice) -> np.ndarray:
        """Compare k documents with the store. Return which of them are to be written, ``(k,)`` bool."""
        ids = hashed.ids[part]
        status = self._comparison.contents.compare(ids, hashed.texts[part])
        if hashed.trusted is not None:
            status[hashed.trusted[part] & (status == Status.CHANGED)] = Status.SAME
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
