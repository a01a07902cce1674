"""Read the parts of a corpus in several processes, or in this one."""

import os
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Protocol, Self

from ...children import ending, portable, serve_command
from ...corpus import Source, open_source
from ...corpus.parts.cutting import Part, parts_of, whole, work_of
from ...errors import PiscoIndexError
from .survey import Batch, End, Survey, survey_part

# Parts that are read or waiting for each process: more keep it busy while an earlier part is waited for.
_AHEAD = 3
# Parts for which it is worth to start a process, which takes some tenths of a second.
_WORTH = 2
# Batches of a part that are held until the parts before it have been read. Its process waits then.
_HELD = 64
# Deaths of processes after which the reading ends: the next one would probably die of the same.
_DEATHS = 3
# Seconds for a process that has closed its connection to end.
_END_S = 5.0


class PartReaders(Protocol):
    """Readers of the parts of a corpus."""

    def parts(self, index: int) -> Iterator[Part]:
        """Yield the parts of source number ``index`` in order. The sources are asked for one after the other."""
        ...

    def read(self, part: Part) -> Iterator[Batch | End]:
        """Yield a part in batches, and its end. It may be a part that ``parts`` did not yield.

        Raises:
            CorpusError: if an exact part has a record that cannot be used, and the source does not skip errors.
        """
        ...

    def discard(self, part: Part) -> None:
        """Forget a part that need not be read, or not any further."""
        ...


class ReadingPool(Protocol):
    """A place to read a corpus."""

    def readers(self, sources: Sequence[Source], survey: Survey, parts: Sequence[Part] | None) -> PartReaders:
        """Return readers for one reading of a corpus.

        Args:
            sources: sources of the corpus.
            survey: survey to make of each record.
            parts: parts to read; None cuts the sources into parts.
        """
        ...


def reading_pool(sources: Sequence[Source], processes: int | None) -> AbstractContextManager[ReadingPool]:
    """Return a place to read a corpus: as many processes as there are cores, or parts that are worth one.

    Args:
        sources: sources of the corpus.
        processes: largest number of processes; None is the number of cores.

    Raises:
        CorpusError: if a file cannot be read.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(processes or cores, int(sum(map(work_of, sources)) / _WORTH))
    return Processes(count) if count > 1 else nullcontext(ThisProcess())


class ThisProcess:
    """Reads one source after the other in this process."""

    def readers(self, sources: Sequence[Source], survey: Survey, parts: Sequence[Part] | None) -> PartReaders:  # noqa: ARG002
        """Return readers for one reading of a corpus."""
        return _OwnReaders(sources, survey)


class _OwnReaders:
    def __init__(self, sources: Sequence[Source], survey: Survey):
        self._sources, self._survey = sources, survey

    def parts(self, index: int) -> Iterator[Part]:
        yield whole(index)

    def read(self, part: Part) -> Iterator[Batch | End]:
        return survey_part(self._sources[part.source], part, self._survey)

    def discard(self, part: Part) -> None:
        pass


class Processes:
    """Reads parts in child processes, which end with this one. Close it, or use it in a ``with`` block.

    Args:
        count: number of processes.
    """

    def __init__(self, count: int):
        self._workers = [_Worker() for _ in range(count)]
        self._deaths = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.end()

    @property
    def pids(self) -> list[int]:
        """Process ids of the children."""
        return [worker.process.pid for worker in self._workers]

    def readers(self, sources: Sequence[Source], survey: Survey, parts: Sequence[Part] | None) -> PartReaders:
        """Return readers for one reading of a corpus. Only the latest ones can be used."""
        for worker in self._workers:
            worker.forget()
        return _Readers(self, sources, survey, parts)

    def idle(self) -> Iterator["_Worker"]:
        """Yield the processes that do nothing."""
        yield from (worker for worker in self._workers if worker.job is None)

    def receive(self, head: "_Job") -> None:
        """Wait for messages, and give them to their jobs. Jobs other than ``head`` hold a limited number.

        If ``head`` waits for a process, all jobs go on: one of them has to end.
        """
        heard: dict[Any, _Worker] = {
            worker.connection: worker
            for worker in self._workers
            if worker.job is not None and (worker.job is head or not head.is_begun or len(worker.job.messages) < _HELD)
        }
        for connection in wait(list(heard)):
            worker = heard[connection]
            job = worker.job
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                self.replace(worker)
                message = End("failed")
            assert job is not None
            if not job.is_discarded:
                job.messages.append(message)
            if not isinstance(message, Batch):
                worker.job = None

    def replace(self, worker: "_Worker") -> None:
        """Start another process in place of one that died.

        Raises:
            PiscoIndexError: too many processes died.
        """
        code = worker.end(wait_s=_END_S)
        self._deaths += 1
        if self._deaths >= _DEATHS:
            raise PiscoIndexError(
                f"the planning lost {self._deaths} of the processes that read the corpus. The last one {ending(code)}. "
                "If memory is short, plan with fewer of them (--planning-processes)."
            )
        self._workers[self._workers.index(worker)] = _Worker()


@dataclass(eq=False, slots=True)
class _Job:
    """A part that is read or waits for it."""

    part: Part
    messages: deque[Batch | End | Exception] = field(default_factory=deque)
    is_begun: bool = False
    is_discarded: bool = False


class _Readers:
    """The readers of one reading: jobs in the order of the corpus, some of them ahead of the one that is waited for."""

    def __init__(self, pool: Processes, sources: Sequence[Source], survey: Survey, parts: Sequence[Part] | None):
        self._pool, self._sources, self._survey = pool, sources, survey
        cut = (part for index, source in enumerate(sources) for part in parts_of(index, source))
        self._coming = cut if parts is None else iter(parts)
        self._limit = _AHEAD * len(pool.pids)
        self._jobs: deque[_Job] = deque()

    def parts(self, index: int) -> Iterator[Part]:
        while True:
            # Nothing begins here, because parts behind the last record of a file are only discarded.
            self._fill()
            if not self._jobs or self._jobs[0].part.source != index:
                return
            yield self._jobs[0].part

    def read(self, part: Part) -> Iterator[Batch | End]:
        job = next((job for job in self._jobs if job.part is part), None)
        if job is None:
            job = _Job(part)
            self._jobs.appendleft(job)
        try:
            while True:
                while not job.messages:
                    self._assign()
                    self._pool.receive(job)
                message = job.messages.popleft()
                if isinstance(message, Exception):
                    raise message
                yield message
                if isinstance(message, End):
                    return
        finally:
            self.discard(part)

    def discard(self, part: Part) -> None:
        for job in [job for job in self._jobs if job.part is part]:
            job.is_discarded = True
            job.messages.clear()
            self._jobs.remove(job)

    def _fill(self) -> None:
        """Take up the next parts."""
        while len(self._jobs) < self._limit and (part := next(self._coming, None)):
            self._jobs.append(_Job(part))

    def _assign(self) -> None:
        """Give the first waiting jobs to idle processes."""
        self._fill()
        for worker in self._pool.idle():
            job = next((job for job in self._jobs if not job.is_begun), None)
            if job is None:
                return
            job.is_begun = True
            try:
                worker.begin(job, self._sources[job.part.source], self._survey)
            except OSError:
                job.is_begun = False
                self._pool.replace(worker)


class _Worker:
    """A child process, as this one sees it.

    Attributes:
        process: the process.
        connection: connection to it.
        job: job that it does; None if it is idle.
    """

    def __init__(self) -> None:
        self.job: _Job | None = None
        self._known: set[int] = set()
        self._survey: Survey | None = None
        self.connection, theirs = Pipe()
        # A session of its own: Ctrl-C in a terminal only reaches this process, which ends the child.
        self.process = subprocess.Popen(  # noqa: S603  runs this program
            serve_command(__name__, theirs.fileno()),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()

    def begin(self, job: _Job, source: Source, survey: Survey) -> None:
        """Give the process a job.

        Raises:
            OSError: the process is dead.
        """
        index = job.part.source
        self.connection.send(
            (
                survey if survey is not self._survey else None,
                job.part,
                None if index in self._known else source.spec,
                getattr(source, "learnt", {}),
            )
        )
        self._survey = survey
        self._known.add(index)
        self.job = job

    def forget(self) -> None:
        """Send the sources again, because they may have changed."""
        self._known.clear()

    def end(self, wait_s: float = 0.0) -> int:
        """End the process and return its exit code, which is negative for a signal.

        Args:
            wait_s: seconds in which the process may end by itself, so that the exit code tells why.
        """
        self.connection.close()
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(wait_s)
        self.process.kill()
        return self.process.wait()


def serve(descriptor: int) -> None:
    """Run a child: read one part after the other until this process's parent ends.

    Args:
        descriptor: descriptor of the connection to the parent.
    """
    connection = Connection(descriptor)
    sources: dict[int, Any] = {}
    survey = Survey()
    with suppress(EOFError, ConnectionError, BrokenPipeError):
        while True:
            asked, part, spec, learnt = connection.recv()
            survey = asked or survey
            try:
                if spec is not None:
                    sources[part.source] = open_source(spec)
                source = sources[part.source]
                if learnt:
                    source.learn(learnt)
                for message in survey_part(source, part, survey):
                    connection.send(message)
            except (ConnectionError, BrokenPipeError):
                raise
            except Exception as error:  # noqa: BLE001  the parent raises it
                connection.send(portable(error))
