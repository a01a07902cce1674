"""Read a part of a corpus, and put down what a plan needs of its records in columns."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import xxhash

from ...corpus import Document, Dropped, Event, Record, RecordError, RejectedRecord, Rejecter, Source, Versioned
from ...corpus.formats.cleaning import record_key
from ...corpus.formats.text_source import FileSource
from ...corpus.parts.cutting import Part
from ...corpus.parts.entering import enter_part
from ...errors import CorpusError

# Records of a batch, and seconds after which a batch ends with fewer, so that progress can be reported.
_RECORDS = 8192
_SECONDS = 0.5
# Records between two looks at the clock.
_TIMED = 256


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a record, and the number of its line, row or page."""

    position: int
    number: int

    def moved(self, positions: int, numbers: int) -> "Place":
        """Return the place with another position and number, each larger by the same."""
        return Place(self.position + positions, self.number + numbers)


@dataclass(frozen=True, slots=True)
class Aside:
    """Content between the records that gives no document.

    Attributes:
        place: its place.
        index: number of the records of its batch that stand before it.
        item: the rejected record or the omission. ``RejectedRecord.source`` is a place of the part, as long as the part
            is not exact.
    """

    place: Place
    index: int
    item: RejectedRecord | Dropped


@dataclass(slots=True)
class Batch:
    """Consecutive records of a part.

    Attributes:
        entry: member that the part was entered at, as in ``TextFile.points``.
        positions: positions of the records, ``(n,)`` int64.
        numbers: numbers of their lines, rows or pages, ``(n,)`` int64.
        characters: numbers of characters of their texts, ``(n,)`` int64.
        hashes: hashes of their ids, ``(n,)`` uint64.
        asides: content between the records, in order.
        ids: ids by the place in the batch: all of them if the source is versioned, otherwise those asked for.
        keys: keys of the records' source texts, ``(n,)`` uint64, if these are cleaned; otherwise empty.
        details: further columns, which the survey was asked for.
    """

    entry: tuple[int, int]
    positions: np.ndarray
    numbers: np.ndarray
    characters: np.ndarray
    hashes: np.ndarray
    asides: list[Aside]
    ids: dict[int, str]
    keys: np.ndarray
    details: Any = None

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def places(self) -> list[Place]:
        """First and last place of the batch; none if it is empty."""
        found = [each.place for each in (*self.asides[:1], *self.asides[-1:])]
        if len(self):
            found += [Place(int(self.positions[n]), int(self.numbers[n])) for n in (0, -1)]
        return sorted(found, key=lambda place: place.position)

    def moved(self, positions: int, numbers: int) -> "Batch":
        """Return the batch with other positions and numbers, each larger by the same."""
        asides = [replace(each, place=each.place.moved(positions, numbers)) for each in self.asides]
        return replace(self, positions=self.positions + positions, numbers=self.numbers + numbers, asides=asides)

    def since(self, position: int) -> "Batch":
        """Return the part of the batch from a position on."""
        first = int(np.searchsorted(self.positions, position))
        asides = [replace(each, index=each.index - first) for each in self.asides if each.place.position >= position]
        return Batch(
            self.entry,
            self.positions[first:],
            self.numbers[first:],
            self.characters[first:],
            self.hashes[first:],
            asides,
            {place - first: doc_id for place, doc_id in self.ids.items() if place >= first},
            self.keys[first:],
            self.details.since(first) if first and self.details is not None else self.details,
        )


@dataclass(frozen=True, slots=True)
class End:
    """The end of a part.

    Attributes:
        entry: member that the part was entered at, as in ``TextFile.points``; None if there is none.
        status: "crossed" if the next part was reached, "end" if the file has no further record, "damaged" if the rest
            of the file cannot be read, "failed" if the part has to be read again, as an exact one.
        member: first member of the next part, as in ``TextFile.points``; None if the file ends before it.
        following: place of the first record, or of another event, behind the part; None if there is none.
        points: member table of the part.
        learnt: findings about the file as a whole.
    """

    status: Literal["crossed", "end", "damaged", "failed"]
    entry: tuple[int, int] | None = None
    member: tuple[int, int] | None = None
    following: Place | None = None
    points: list[tuple[int, int]] = field(default_factory=list)
    learnt: dict[str, Any] = field(default_factory=dict)


class Survey:
    """A reading of the ids and lengths of all records.

    Args:
        suspects: hashes of the ids that are wanted themselves.
    """

    def __init__(self, suspects: frozenset[int] = frozenset()):
        self.suspects = suspects

    def events(self, source: Source, start: int, stop: int | None) -> Iterator[Event]:
        """Yield the events of a source."""
        return source.survey(start, stop)

    def details(self) -> "Details | None":
        """Return a collector of further columns; None if there are none."""
        return None


class Details:
    """A collector of further columns about the records of a batch."""

    def add(self, source: Source, document: Document, place: str, key: int | None) -> None:
        """Add a record, with the key of its source text if that is cleaned.

        Raises:
            RecordError: if the record gives no document because it cannot be used.
        """
        raise NotImplementedError

    def take(self) -> Any:
        """Return the columns of the records since the last call."""
        raise NotImplementedError


def survey_part(source: Source, part: Part, survey: Survey) -> Iterator[Batch | End]:
    """Yield a part of a corpus in batches, and its end.

    Raises:
        CorpusError: if an exact part has a record that cannot be used, and the source does not skip errors.
    """
    is_exact = part.start is not None
    try:
        entered = enter_part(source, part)
        if entered is None:
            yield End("failed")
            return
        yield from _PartReading(*entered, part, survey).batches()
    except CorpusError:
        if is_exact:
            raise
        yield End("failed")


class _PartReading:
    """A reading of a part."""

    def __init__(self, source: Source, start: int, part: Part, survey: Survey):
        self._source, self._start, self._part, self._survey = source, start, part, survey
        self._file = source.file if isinstance(source, FileSource) else None
        self._entry = self._file.points[0] if self._file else (0, 0)
        self._cleaning = source.cleaning
        self._keeps_ids = isinstance(source, Versioned)
        self._details = survey.details()
        self._rejecter = Rejecter(source.name, source.tolerance, self._reject)
        # Position and number of the last event. Damage behind it gets the next position.
        self._last, self._number = start - 1, part.counted
        self._is_damaged = False
        self._begin_batch()

    def batches(self) -> Iterator[Batch | End]:
        """Yield the batches, and the end."""
        following: Place | None = None
        began = time.monotonic()
        events = self._survey.events(self._source, self._start, self._part.stop)
        if self._part.start is not None:
            events = self._rejecter.until_damage(events)
        for count, (position, number, place, item) in enumerate(events):
            if position != self._last:
                # Only here, so that everything at one position is in one batch.
                crossed = self._file.crossed if self._file else None
                if crossed is not None and position > crossed[1]:
                    following = Place(position, number)
                    break
                is_late = count % _TIMED == 0 and time.monotonic() - began > _SECONDS
                if len(self._positions) + len(self._asides) >= _RECORDS or is_late:
                    yield self._batch()
                    began = time.monotonic()
                self._last = position
            self._number = number
            self._add(position, number, place, item)
        if self._positions or self._asides:
            yield self._batch()
        yield self._end(following)

    def _add(self, position: int, number: int, place: str, item: Any) -> None:
        characters, key = 0, None
        if isinstance(item, Document):
            characters = len(item.text)
            if self._cleaning is not None:
                key = record_key(self._cleaning, item.doc_id, item.title, item.text)
            if self._details is not None:
                try:
                    self._details.add(self._source, item, place, key)
                except RecordError as error:
                    item = error
        elif isinstance(item, Record):
            characters = item.characters
        if isinstance(item, RecordError):
            self._rejecter.reject(item, position)
            return
        if isinstance(item, Dropped):
            self._asides.append(Aside(Place(position, number), len(self._positions), item))
            return
        doc_id = item.doc_id
        value = id_hash(doc_id)
        if self._keeps_ids or value in self._survey.suspects:
            self._ids[len(self._positions)] = doc_id
        self._positions.append(position)
        self._numbers.append(number)
        self._characters.append(characters)
        self._hashes.append(value)
        if key is not None:
            self._keys.append(key)

    def _reject(self, rejected: RejectedRecord) -> None:
        position = rejected.position
        if position is None:
            self._is_damaged = True
            position = self._last + 1
        self._asides.append(Aside(Place(position, self._number), len(self._positions), rejected))

    def _begin_batch(self) -> None:
        self._positions: list[int] = []
        self._numbers: list[int] = []
        self._characters: list[int] = []
        self._hashes: list[int] = []
        self._keys: list[int] = []
        self._asides: list[Aside] = []
        self._ids: dict[int, str] = {}

    def _batch(self) -> Batch:
        batch = Batch(
            self._entry,
            np.array(self._positions, np.int64),
            np.array(self._numbers, np.int64),
            np.array(self._characters, np.int64),
            np.array(self._hashes, np.uint64),
            self._asides,
            self._ids,
            np.array(self._keys, np.uint64),
            self._details and self._details.take(),
        )
        self._begin_batch()
        return batch

    def _end(self, following: Place | None) -> End:
        file, source = self._file, self._source
        points = file.points if file else []
        learnt = source.learnt if isinstance(source, FileSource) else {}
        if self._is_damaged:
            return End("damaged", self._entry, points=points, learnt=learnt)
        if following is None and self._part.stop is None:
            return End("end", self._entry, points=points, learnt=learnt)
        return End("crossed", self._entry, file.crossed if file else None, following, points, learnt)


def id_hash(doc_id: str) -> int:
    """Return the hash that ids of a corpus are first compared by."""
    return xxhash.xxh3_64_intdigest(doc_id.encode("utf-8", errors="surrogatepass"))
