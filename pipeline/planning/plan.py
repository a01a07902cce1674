"""The plan: the shards of a build, fixed before anything is computed.

A plan is deterministic: the same corpus and configuration give the same shards on every machine. It holds a digest of
every corpus file. A build therefore resumes without reading the corpus record by record, and never over another corpus.
"""

import base64
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import CorruptStoreError

if TYPE_CHECKING:
    # Reader processes import plans, and must not load Lance.
    from ...store import KnownRecords


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive records of one source, from position ``start`` up to ``stop``, or to the end if that is None."""

    source: int
    start: int
    stop: int | None


@dataclass(frozen=True, slots=True)
class Selection:
    """A choice among consecutive documents, one bit for each."""

    documents: int
    bits: bytes

    @classmethod
    def of(cls, chosen: Sequence[bool]) -> "Selection":
        """Make a selection from one flag for each document."""
        return cls(len(chosen), np.packbits(np.array(chosen, dtype=bool)).tobytes())

    @property
    def chosen(self) -> list[bool]:
        """One flag for each document, True if it is chosen."""
        return np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.documents).astype(bool).tolist()


@dataclass(frozen=True, slots=True)
class Share:
    """Part ``number`` of ``count`` equal parts of consecutive documents."""

    number: int
    count: int

    def of(self, documents: int) -> slice:
        """Return the slice of this part among ``documents`` documents."""
        # Rounded up, so that the first part has a document if any has.
        return slice(-(-documents * self.number // self.count), -(-documents * (self.number + 1) // self.count))


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work: documents that are read, compressed, written and committed together.

    Attributes:
        number: number of the shard, which no other plan of the same store uses.
        slices: places of its records in the corpus.
        records: number of records that give it documents; 0 if all of them are rejected.
        characters: number of characters of its texts.
        selection: documents of the slices that belong to the shard; None if all of them do.
        share: part of these documents that belongs to the shard, if a record has more of them than a shard; None if all
            of them do.
    """

    number: int
    slices: tuple[Slice, ...]
    records: int
    characters: int
    selection: Selection | None = None
    share: Share | None = None


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A corpus file as it was when the build was planned: its name, size in bytes and XXH3-128 digest."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Changes:
    """Differences between a corpus and a store, in documents.

    Attributes:
        new: number of documents that only the corpus holds.
        changed: number of documents that both hold, with different texts or titles.
        same: number of documents that both hold unchanged.
        gone: number of documents that only the store holds, and keeps.
        pruned: number of documents that only the store holds, and that the update deletes.
    """

    new: int
    changed: int
    same: int
    gone: int
    pruned: int


@dataclass(frozen=True)
class Plan:
    """The shards that make a store equal to a corpus: all of its documents, or those that an update has to write.

    Attributes:
        files: corpus files in reading order, one for each source.
        sources: descriptions from which a worker opens the sources.
        shards: shards in the order of their numbers.
        dropped: number of records left out on purpose, by reason.
        rejected: number of records left out because they cannot be used, by reason.
        first: number of the first shard, above those of all earlier plans of the store.
        changes: changes of an update; None for the plan that a store is created with.
        settings: corpus settings of an update, as plain values; None for the plan that a store is created with.
        known: records that the plan was made of, if their texts are cleaned. They are kept beside the plan.
    """

    files: tuple[PlannedFile, ...]
    sources: tuple[Mapping[str, Any], ...]
    shards: tuple[Shard, ...]
    dropped: Mapping[str, int]
    rejected: Mapping[str, int] = field(default_factory=dict)
    first: int = 0
    changes: Changes | None = None
    settings: Mapping[str, Any] | None = None
    known: "KnownRecords | None" = field(default=None, compare=False, repr=False)

    @property
    def next(self) -> int:
        """Number of the first shard of the store's next plan."""
        return self.first + len(self.shards)

    def missing(self, done: Container[int]) -> tuple[Shard, ...]:
        """Return the shards whose numbers are not in ``done``."""
        return tuple(shard for shard in self.shards if shard.number not in done)

    @property
    def records(self) -> int:
        """Number of records in all shards. One that several shards share counts once."""
        shared = {shard.slices: shard.records for shard in self.shards if shard.share}
        return sum(shard.records for shard in self.shards if not shard.share) + sum(shared.values())

    @property
    def characters(self) -> int:
        """Number of characters in all shards."""
        return sum(shard.characters for shard in self.shards)

    def to_json(self) -> bytes:
        """Return the plan as JSON. Shards are plain lists, because there are thousands of them."""
        return json.dumps(
            {
                "files": [asdict(file) for file in self.files],
                "sources": list(self.sources),
                "shards": [_shard_to_list(shard) for shard in self.shards],
                "dropped": dict(self.dropped),
                "rejected": dict(self.rejected),
                "first": self.first,
                "changes": asdict(self.changes) if self.changes else None,
                "settings": self.settings,
            }
        ).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Plan":
        """Return the plan that ``to_json`` wrote.

        Raises:
            CorruptStoreError: the content is not a plan.
        """
        try:
            values = json.loads(content)
            plan = cls(
                files=tuple(PlannedFile(**file) for file in values["files"]),
                sources=tuple(dict(source) for source in values["sources"]),
                shards=tuple(_shard_from_list(*entries) for entries in values["shards"]),
                dropped=dict(values["dropped"]),
                # Stores made by early versions have plans without the following keys.
                rejected=dict(values.get("rejected", {})),
                first=int(values.get("first", 0)),
                changes=Changes(**values["changes"]) if values.get("changes") else None,
                settings=dict(values["settings"]) if values.get("settings") else None,
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CorruptStoreError(f"a store's plan cannot be read: {error!r:.200}.") from None
        places = [part.source for shard in plan.shards for part in shard.slices]
        if len(plan.files) != len(plan.sources) or any(not 0 <= place < len(plan.sources) for place in places):
            raise CorruptStoreError("a store's plan has shards of files that are not in it.")
        return plan


def _shard_to_list(shard: Shard) -> list[Any]:
    slices = [[part.source, part.start, part.stop] for part in shard.slices]
    entries = [shard.number, slices, shard.records, shard.characters]
    if shard.selection is not None:
        entries += [shard.selection.documents, base64.b64encode(shard.selection.bits).decode()]
    if shard.share is not None:
        entries += [*([None, None] if shard.selection is None else []), shard.share.number, shard.share.count]
    return entries


def _shard_from_list(
    number: int,
    slices: list[Any],
    records: int,
    characters: int,
    documents: int | None = None,
    bits: str | None = None,
    *share: int,
) -> Shard:
    chosen = None
    if documents is not None and bits is not None:
        chosen = Selection(documents, base64.b64decode(bits))
        if not 0 <= documents <= 8 * len(chosen.bits):
            raise ValueError(f"{documents} documents of {len(chosen.bits)} bytes of bits")
    if not all(isinstance(count, int) and 0 <= count < 1 << 63 for count in (number, records, characters, *share)):
        raise ValueError(f"shard {number}")
    if share and (len(share) != 2 or share[0] >= share[1]):
        raise ValueError(f"part {' of '.join(map(str, share))}")
    places = tuple(Slice(*part) for part in slices)
    if not all(isinstance(each, int) for part in places for each in (part.source, part.start, part.stop or 0)):
        raise ValueError(f"shard {number}")
    return Shard(number, places, records, characters, chosen, Share(*share) if share else None)
