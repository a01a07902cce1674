"""Put the parts of a corpus, which are read in any order, together in the order of the corpus.

A part that begins in the middle of a file is read before it is known where the last record before it ends, and how
many lines precede it. It is used if it has a record exactly where the reading before it came to; its positions and
numbers are moved then. Otherwise it is read again from that record. So a plan does not depend on how a corpus was cut,
and a wrong guess only costs time.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ...corpus import RejectedRecord, Source
from ...corpus.formats.text_source import FileSource
from ...corpus.parts.cutting import Part
from ...corpus.streams import POINT_SPACING, TextFile
from .processes import PartReaders
from .survey import Batch, End, Place


class OrderedReading:
    """The records of a corpus in its order.

    Args:
        sources: sources of the corpus. What is found out about their files is added to them.
        readers: readers of the parts.
    """

    def __init__(self, sources: Sequence[Source], readers: PartReaders):
        self._sources = sources
        self._readers = readers
        self._exact: list[Part] = []

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that were read, as exact ones, once the reading has ended."""
        return tuple(
            replace(part, stop=after.start) if after and after.source == part.source else part
            for part, after in pairwise([*self._exact, None])
            if part
        )

    def batches(self, index: int) -> Iterator[Batch]:
        """Yield the records of source number ``index``.

        Raises:
            CorpusError: if a record cannot be used, and the source does not skip errors.
        """
        reached: _Reached | None = _Reached((0, 0), Place(0, 1))
        for part in self._readers.parts(index):
            if reached is None or (part.start is None and part.end is not None and reached.member[0] >= part.end):
                self._readers.discard(part)
                continue
            if part.start is not None:
                reached = _Reached(reached.member, Place(part.start, part.counted + 1))
            if not self._exact or (index, reached.place.position) != (self._exact[-1].source, self._exact[-1].start):
                self._exact.append(Part(index, start=reached.place.position, counted=reached.place.number - 1))
            reached = yield from self._read(self._sources[index], part, reached)

    def _read(self, source: Source, part: Part, reached: "_Reached") -> Generator[Batch, None, "_Reached | None"]:
        """Yield the records of a part from what was reached on. Return what is reached then; None at the file's end."""
        while True:
            joint = _Joint(source, part, reached)
            try:
                for message in self._readers.read(part):
                    if isinstance(message, End):
                        return joint.end(message)
                    if (batch := joint.take(message)) is not None:
                        yield batch
            except _MismatchError:
                self._readers.discard(part)
                reached = joint.reached
                part = replace(
                    part,
                    entry=reached.member if part.start is None else part.entry,
                    start=reached.place.position,
                    counted=reached.place.number - 1,
                )


@dataclass(frozen=True, slots=True)
class _Reached:
    """The point that the reading of a file has reached.

    Attributes:
        member: the member to enter the next part at, as in ``TextFile.points``.
        place: place of the next record, or of another event.
        after: True if everything at that place was read already, so that the next record is behind it.
    """

    member: tuple[int, int]
    place: Place
    after: bool = False


class _MismatchError(Exception):
    """A part that does not continue what was read before it, or that was not read to its end."""


class _Joint:
    """A part that is joined to what was read before it.

    Attributes:
        reached: point that the reading has reached.
    """

    def __init__(self, source: Source, part: Part, reached: _Reached):
        self.reached = reached
        self._source = source
        self._is_exact = part.start is not None
        # Offsets that are added to positions and numbers; None until the first record is found where it must be.
        self._moves = (0, 0) if self._is_exact else None

    def take(self, batch: Batch) -> Batch | None:
        """Return what the batch has from the place that was reached on, with its positions in the file.

        Raises:
            _MismatchError: the part has no record at that place.
        """
        place = self.reached.place
        if self._moves is None:
            batch = batch.moved(self._text_before(batch.entry), 0).since(place.position)
            if not (places := batch.places):
                return None
            if places[0].position != place.position:
                raise _MismatchError
            self._moves = self._text_before(batch.entry), place.number - places[0].number
            batch = self._renumbered(batch)
        elif self._is_exact:
            batch = batch.since(place.position + 1) if self.reached.after else batch
        else:
            batch = self._renumbered(batch.moved(self._moves[0], 0))
        if places := batch.places:
            self.reached = _Reached(self.reached.member, places[-1], after=True)
            return batch
        return None

    def end(self, end: End) -> _Reached | None:
        """Return what is reached at the end of the part; None if the file has nothing behind it.

        Raises:
            _MismatchError: the part was not read to its end, or has no record where one must be.
        """
        if end.status == "failed" or end.entry is None:
            raise _MismatchError
        before = 0 if self._is_exact else self._text_before(end.entry)
        member = (end.member[0], end.member[1] + before) if end.member else self.reached.member
        if self._moves is None and (end.status != "crossed" or self.reached.place.position <= member[1]):
            raise _MismatchError
        if isinstance(self._source, FileSource):
            _add_points(self._source.file, [(file_offset, offset + before) for file_offset, offset in end.points])
            self._source.learn(end.learnt)
        if end.status != "crossed":
            return None
        if self._moves is None or end.following is None:
            # A record spans the whole part; or the next part is exact.
            return replace(self.reached, member=member)
        return _Reached(member, end.following.moved(*self._moves))

    def _text_before(self, entry: tuple[int, int]) -> int:
        """Return the number of bytes of text before a part, by which its positions are moved."""
        if entry[0] != self.reached.member[0]:
            raise _MismatchError
        return self.reached.member[1] - entry[1]

    def _renumbered(self, batch: Batch) -> Batch:
        """Return a batch with the numbers that its records have in the file, also in the places of rejected ones."""
        assert self._moves is not None
        assert isinstance(self._source, FileSource)
        moved = batch.moved(0, self._moves[1])
        for index, aside in enumerate(moved.asides):
            if isinstance(aside.item, RejectedRecord):
                old, new = (self._source.numbered(each.place.number) for each in (batch.asides[index], aside))
                place = aside.item.source
                place = new + place.removeprefix(old) if place.startswith(old) else place
                moved.asides[index] = replace(
                    aside, item=replace(aside.item, source=place, position=aside.place.position)
                )
        return moved


def _add_points(file: TextFile, points: Sequence[tuple[int, int]]) -> None:
    """Add the member table of a part to that of its file."""
    for point in points:
        last = file.points[-1][0]
        if point[0] > last and (file.encoding != "utf-8" or point[0] // POINT_SPACING > last // POINT_SPACING):
            file.points.append(point)
