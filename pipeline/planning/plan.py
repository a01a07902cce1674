"""The plan: which records make up which shard, fixed before anything is computed.

A plan is deterministic: the same corpus and configuration give the same shards on any machine. It carries a digest of
every file, so that a build can be resumed without reading the corpus record by record, and never over another corpus.
"""

import base64
import json
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import xxhash

from ...corpus import REPEATED, Corpus, Document, OnRejected, Record, RejectedRecord, Source, open_source, relocate
from ...errors import CorpusError, CorruptStoreError, PlanMismatchError

# A record counts as one document for each of these, so that shards of whole articles are no larger than of passages.
DOCUMENT_CHARACTERS = 1000

HASH_CHUNK = 1 << 20

# Records that may be left out for their ids. More of them say that another field is the id.
MAX_REPEATED = 100_000


@dataclass(frozen=True, slots=True)
class Slice:
    """Records of one source: from position ``start`` up to ``stop``, or to its end."""

    source: int
    start: int
    stop: int | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Some of so many documents: a bit for each, in order."""

    documents: int
    bits: bytes

    @classmethod
    def of(cls, chosen: Sequence[bool]) -> "Selection":
        """Make one of a flag a document."""
        return cls(len(chosen), np.packbits(np.array(chosen, dtype=bool)).tobytes())

    @property
    def chosen(self) -> list[bool]:
        """A flag a document."""
        return np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.documents).astype(bool).tolist()


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work, and of what is done: read, compressed, written and committed as one.

    Attributes:
        number: its number in the store; no other plan of the store has it.
        slices: where its records are.
        records: how many of them it takes documents from; none where all are rejected.
        characters: of its texts.
        selection: which documents of the slices are its own; None for all.
    """

    number: int
    slices: tuple[Slice, ...]
    records: int
    characters: int
    selection: Selection | None = None


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """What a resumed build compares: a file by name, size in bytes and XXH3-128 of its content."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Changes:
    """Documents of a corpus beside those of a store that held an earlier state of it.

    Attributes:
        new: only in the corpus.
        changed: in both, with another text.
        same: in both, as they are.
        gone: only in the store, and left there.
        pruned: only in the store, and deleted from it.
    """

    new: int
    changed: int
    same: int
    gone: int
    pruned: int


@dataclass(frozen=True)
class Plan:
    """The shards that make a store equal to a corpus: of all its documents, or of those that an update has to write.

    Attributes:
        files: the corpus, in reading order; one for each source.
        sources: what a worker opens each source from.
        shards: in order of number.
        dropped: records left out on purpose, by reason.
        rejected: records left out because they cannot be used, by reason.
        first: number of the first shard, above those of all earlier plans of the store.
        changes: what an update changes; None for the plan that a store was created with.
    """

    files: tuple[CorpusFile, ...]
    sources: tuple[Mapping[str, Any], ...]
    shards: tuple[Shard, ...]
    dropped: Mapping[str, int]
    rejected: Mapping[str, int] = field(default_factory=dict)
    first: int = 0
    changes: Changes | None = None

    @property
    def next(self) -> int:
        """Number of the first shard of the plan that follows."""
        return self.first + len(self.shards)

    def missing(self, done: Container[int]) -> tuple[Shard, ...]:
        """The shards that are not among those done."""
        return tuple(shard for shard in self.shards if shard.number not in done)

    @property
    def records(self) -> int:
        """Records of all shards."""
        return sum(shard.records for shard in self.shards)

    @property
    def characters(self) -> int:
        """Characters of all records."""
        return sum(shard.characters for shard in self.shards)

    def to_json(self) -> bytes:
        """The plan as JSON; shards as plain lists, since there are thousands."""
        return json.dumps(
            {
                "files": [asdict(file) for file in self.files],
                "sources": list(self.sources),
                "shards": [_shard_to_list(shard) for shard in self.shards],
                "dropped": dict(self.dropped),
                "rejected": dict(self.rejected),
                "first": self.first,
                "changes": asdict(self.changes) if self.changes else None,
            }
        ).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Plan":
        """Read what ``to_json`` wrote.

        Raises:
            CorruptStoreError: it is no plan.
        """
        try:
            values = json.loads(content)
            plan = cls(
                files=tuple(CorpusFile(**file) for file in values["files"]),
                sources=tuple(dict(source) for source in values["sources"]),
                shards=tuple(_shard_from_list(*entries) for entries in values["shards"]),
                dropped=dict(values["dropped"]),
                # The plan that a store is created with may lack them.
                rejected=dict(values.get("rejected", {})),
                first=int(values.get("first", 0)),
                changes=Changes(**values["changes"]) if values.get("changes") else None,
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CorruptStoreError(f"a store's plan cannot be read: {error!r:.200}.") from None
        places = [part.source for shard in plan.shards for part in shard.slices]
        if len(plan.files) != len(plan.sources) or any(not 0 <= place < len(plan.sources) for place in places):
            raise CorruptStoreError("a store's plan has shards of files that are not in it.")
        return plan


def plan_corpus(
    corpus: Corpus,
    *,
    shard_documents: int,
    on_records: Callable[[int], object] = bool,
) -> Plan:
    """Scan and validate a whole corpus and cut it into shards.

    Args:
        corpus: its sources, in order.
        shard_documents: documents of about 1,000 characters in a shard.
        on_records: told the number of records found so far, now and then.

    Raises:
        CorpusError: if a record is not valid or an id occurs twice (both places are named), and the corpus does not
            skip these; or there is no document.
    """
    watch = CorpusWatch(corpus.sources)
    plan = without_repeats(corpus, lambda ids: _plan_corpus(corpus, ids, shard_documents, on_records))
    files = describe_files(corpus)
    watch.require_unchanged()
    return replace(plan, files=files)


def _plan_corpus(corpus: Corpus, ids: "Ids", shard_documents: int, on_records: Callable[[int], object]) -> Plan:
    """A plan but for its files."""
    dropped: Counter[str] = Counter()
    building = _ShardBuilder(shard_documents)
    count = 0
    for index, source in enumerate(corpus.sources):
        building.begin_source(index)
        for record in source.scan(dropped, building.add_rejected):
            if repeated := ids.add(index, source, record):
                building.add_rejected(repeated)
                continue
            building.add(record)
            count += 1
            if count % 1000 == 0:
                on_records(count)
        building.end_source()
    if not count:
        raise_for_no_document(corpus, dropped, building.rejections)
    on_records(count)
    return Plan(
        files=(),
        sources=ids.specs(corpus.sources),
        shards=building.finish(),
        dropped=dict(dropped),
        rejected=dict(building.rejections.counts),
    )


def resume_plan(plan: Plan, corpus: Corpus) -> Plan:
    """The stored plan, pointed at the corpus as it lies now, after checking that it is the same one.

    Raises:
        PlanMismatchError: naming what changed: files added, missing, or with other content, or other reading options.
    """
    changes: list[str] = []
    present = describe_files(corpus)
    before, now = [file.name for file in plan.files], [file.name for file in present]
    if before == now:
        for pair in zip(plan.files, present, strict=True):
            changes += _compare(*pair)
        for pair in zip(plan.sources, corpus.sources, strict=True):
            changes += _compare_reading(*pair)
    else:
        changes += [f"{name} is missing" for name in sorted(set(before) - set(now))]
        changes += [f"{name} is new" for name in sorted(set(now) - set(before))]
        changes += [] if changes else ["the files are given in another order"]
    if changes:
        shown = "; ".join(changes[:10]) + (f"; and {len(changes) - 10} more" if len(changes) > 10 else "")
        raise PlanMismatchError(
            f"The corpus is not the one this store's build was planned for: {shown}. Give the same corpus to resume, "
            "and the changed one once that is done; or plan anew from what the store holds (--replan)."
        )
    specs = [relocate(spec, source.path) for spec, source in zip(plan.sources, corpus.sources, strict=True)]
    return replace(plan, sources=tuple(specs))


def read_shard(shard: Shard, sources: Sequence[Source], on_rejected: OnRejected = bool) -> Iterator[Document]:
    """Yield the documents of a shard, in order.

    Args:
        shard: to read.
        sources: of its plan.
        on_rejected: told of each record in its slices that was planned to be left out.

    Raises:
        CorpusError: the corpus cannot be read, or has more or fewer documents there than were chosen from.
    """
    documents = (
        document for part in shard.slices for document in sources[part.source].read(part.start, part.stop, on_rejected)
    )
    if shard.selection is None:
        yield from documents
        return
    chosen = shard.selection.chosen
    count = 0
    for document in documents:
        if count < len(chosen) and chosen[count]:
            yield document
        count += 1
    if count != len(chosen):
        names = ", ".join(dict.fromkeys(sources[part.source].name for part in shard.slices))
        raise CorpusError(
            f"Shard {shard.number} was planned from {len(chosen)} documents and {names} now has {count} there. "
            "The corpus changed while it was read: run the build again."
        )


def open_sources(plan_sources: Iterable[Mapping[str, Any]]) -> tuple[Source, ...]:
    """Open a plan's sources in the process that reads them."""
    return tuple(open_source(spec) for spec in plan_sources)


def describe_files(corpus: Corpus) -> tuple[CorpusFile, ...]:
    """Name, size and content hash of each of the corpus's files; several are hashed at a time.

    Raises:
        CorpusError: if a file cannot be read.
    """
    with ThreadPoolExecutor() as threads:
        return tuple(threads.map(_describe_file, corpus.sources))


def _shard_to_list(shard: Shard) -> list[Any]:
    entries = [shard.number, [[c.source, c.start, c.stop] for c in shard.slices], shard.records, shard.characters]
    if shard.selection is not None:
        entries += [shard.selection.documents, base64.b64encode(shard.selection.bits).decode()]
    return entries


def _shard_from_list(number: int, slices: list[Any], records: int, characters: int, *selection: Any) -> Shard:
    chosen = None
    if selection:
        documents, bits = selection
        chosen = Selection(documents, base64.b64decode(bits))
        if not 0 <= documents <= 8 * len(chosen.bits):
            raise ValueError(f"{documents} documents of {len(chosen.bits)} bytes of bits")
    if not all(isinstance(count, int) and 0 <= count < 1 << 63 for count in (number, records, characters)):
        raise ValueError(f"shard {number}")
    return Shard(number, tuple(Slice(*part) for part in slices), records, characters, chosen)


def _compare(before: CorpusFile, now: CorpusFile) -> Iterator[str]:
    if before.size != now.size:
        yield f"{now.name} had {before.size} bytes and has {now.size}"
    elif before.digest != now.digest:
        yield f"{now.name} has other content"


def _describe_file(source: Source) -> CorpusFile:
    path = Path(source.path)
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while chunk := file.read(HASH_CHUNK):
                digest.update(chunk)
        return CorpusFile(source.name, path.stat().st_size, digest.hexdigest())
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}.") from error


def _compare_reading(before: Mapping[str, Any], source: Source) -> Iterator[str]:
    # The resolved reading counts, not the configuration: a field named is the same as the field recognised.
    now = source.spec
    before = {"on_error": "fail", **before}
    for key in sorted(before.keys() & now.keys() - {"file", "path", "name", "repeated"}):
        if before[key] != now[key]:
            yield f"{source.name} was read with {key} {before[key]!r} and is to be read with {now[key]!r}"


class CorpusWatch:
    """Notices corpus files that are written to after they were planned, by size and time, and then by content."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = sources
        self._states = [_state(source) for source in sources]

    def require_unchanged(self, files: Sequence[CorpusFile] | None = None) -> None:
        """Look at every file again.

        Args:
            files: as planned; a file that was only touched, and still has its content, passes.

        Raises:
            CorpusError: naming the first file that changed.
        """
        for index, source in enumerate(self._sources):
            state = _state(source)
            if state == self._states[index]:
                continue
            if files is None or _describe_file(source) != files[index]:
                raise CorpusError(
                    f"{source.path}: changed while the build was reading it. What was committed before is of the "
                    "planned content. Put that file back and run the build again, or build the new one into another "
                    "store."
                )
            self._states[index] = state


def _state(source: Source) -> tuple[int, int]:
    try:
        status = Path(source.path).stat()
    except OSError as error:
        raise CorpusError(f"{source.path}: cannot be read: {error.strerror}.") from error
    return status.st_size, status.st_mtime_ns


class _ShardBuilder:
    """Collects consecutive records, of one or several sources, in shards."""

    def __init__(self, shard_documents: int):
        self._limit = shard_documents
        self._shards: list[Shard] = []
        self._source = 0
        self._open: tuple[int, int] | None = None
        self.rejections = Rejections()
        self._begin()

    def _begin(self) -> None:
        self._slices: list[Slice] = []
        self._records = self._characters = self._weight = 0

    def begin_source(self, index: int) -> None:
        self._source = index

    def add(self, record: Record) -> None:
        self._take(record.position, max(1, round(record.characters / DOCUMENT_CHARACTERS)))
        self._records += 1
        self._characters += record.characters

    def add_rejected(self, rejected: RejectedRecord) -> None:
        """Take a record that gives no document, so that the shard's reader meets it."""
        self.rejections.add(rejected)
        self._take(rejected.position, 1)

    def end_source(self) -> None:
        self._close(None)

    def finish(self) -> tuple[Shard, ...]:
        if self._weight:
            self._end_shard()
        return tuple(self._shards)

    def _take(self, position: int | None, weight: int) -> None:
        # What is left of a file belongs to the slice before it: no reader can begin there.
        if self._weight >= self._limit and (position is not None or self._open is None):
            self._close(position)
            self._end_shard()
        if self._open is None:
            self._open = self._source, position or 0
        self._weight += weight

    def _close(self, stop: int | None) -> None:
        if self._open is not None:
            self._slices.append(Slice(*self._open, stop))
            self._open = None

    def _end_shard(self) -> None:
        self._shards.append(Shard(len(self._shards), tuple(self._slices), self._records, self._characters))
        self._begin()


class Rejections:
    """Counts rejected records by reason, and keeps the first."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: RejectedRecord | None = None

    def add(self, rejected: RejectedRecord) -> None:
        """Count one."""
        self.first = self.first or rejected
        self.counts[rejected.reason] += 1


class Ids:
    """Finds ids that occur twice: 8 bytes a record, so that 24 million fit where their ids would not.

    The hashes of a first reading tell which ids to look at in a second one, where there are any.
    """

    def __init__(self, suspects: frozenset[int] = frozenset()) -> None:
        self._suspects = suspects
        self._seen: set[str] = set()
        self._repeated: dict[int, list[int]] = {}
        self._chunks: list[np.ndarray] = []
        self._recent: list[int] = []
        self._count = 0

    def add(self, index: int, source: Source, record: Record) -> RejectedRecord | None:
        """Take a record of the source with that number; returns it as rejected if its id is known to have occurred."""
        value = _hash(record.doc_id)
        if not self._suspects:
            self._recent.append(value)
            if len(self._recent) == 100_000:
                self._flush()
            return None
        if value not in self._suspects:
            return None
        if record.doc_id not in self._seen:
            self._seen.add(record.doc_id)
            return None
        self._repeated.setdefault(index, []).append(record.position)
        self._count += 1
        place = f"{source.name}, record {record.where}"
        what = f"the id {record.doc_id!r} is that of an earlier record."
        if self._count > MAX_REPEATED:
            raise CorpusError(f"{place}: {what} More than {MAX_REPEATED:,} are; choose another id field (--id-field).")
        return RejectedRecord(place, record.doc_id, what, REPEATED, record.position)

    def specs(self, sources: Sequence[Source]) -> tuple[Mapping[str, Any], ...]:
        """What the sources are opened from to reject the same records."""
        repeated = self._repeated
        return tuple(
            {**source.spec, "repeated": repeated[index]} if index in repeated else source.spec
            for index, source in enumerate(sources)
        )

    def hashes_of_several(self) -> frozenset[int]:
        """Hashes that came more than once, but for those above ``MAX_REPEATED``."""
        self._flush()
        ordered = np.sort(np.concatenate(self._chunks))
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        return frozenset(repeated[: MAX_REPEATED + 1].tolist())

    def _flush(self) -> None:
        self._chunks.append(np.array(self._recent, dtype=np.uint64))
        self._recent = []


def without_repeats(corpus: Corpus, plan_with: Callable[[Ids], Plan]) -> Plan:
    """Plan a corpus, and once more if ids occur twice in it, so that only the first record of an id counts.

    Args:
        corpus: that is planned.
        plan_with: reads it, gives each record to what it is called with, and leaves out those that this rejects.

    Raises:
        CorpusError: an id occurs twice, and the corpus does not skip errors; names both places.
    """
    ids = Ids()
    plan = plan_with(ids)
    suspects = ids.hashes_of_several()
    if not suspects:
        return plan
    if corpus.on_error == "skip" and len(suspects) <= MAX_REPEATED:
        return plan_with(Ids(suspects))
    _raise_for_duplicate(corpus.sources, suspects)
    return plan


def _hash(doc_id: str) -> int:
    return xxhash.xxh3_64_intdigest(doc_id.encode("utf-8", errors="surrogatepass"))


def raise_for_no_document(corpus: Corpus, dropped: Mapping[str, int], rejections: Rejections) -> NoReturn:
    """Refuse a corpus without a record.

    Raises:
        CorpusError: always.
    """
    left_out = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
    names = ", ".join(source.name for source in corpus.sources[:5]) or "no data file"
    if first := rejections.first:
        raise CorpusError(
            f"The corpus holds no document ({names}): {rejections.counts.total():,} records cannot be used, the first "
            f"because of {first.source}: {first.error}"
        )
    raise CorpusError(
        f"The corpus holds no document ({names}{'; left out: ' + left_out if left_out else ''}). "
        "Check the path, and the corpus format in the configuration."
    )


def _raise_for_duplicate(sources: Sequence[Source], hashes: Set[int]) -> None:
    """Read the ids again to name both places; returns if it was only two ids with one hash."""
    places: dict[str, str] = {}
    for source in sources:
        for record in source.scan(Counter()):
            if _hash(record.doc_id) not in hashes:
                continue
            place = f"{source.path}, record {record.where}" if record.where else source.path
            if record.doc_id in places:
                raise CorpusError(
                    f"The id {record.doc_id!r} occurs twice: {places[record.doc_id]} and {place}. "
                    "Ids must be unique in a corpus; remove one, or choose another id field (--id-field)."
                )
            places[record.doc_id] = place
