"""The progress of a build on the terminal that started it: live bars, or plain lines for a log."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn
from rich.table import Table
from rich.text import Text

from ..corpus import LeftOut
from ..errors import SUMMARY_CHARACTERS, error_summary
from ..pipeline.watch.progress import BuildProgress, WorkerState
from ..pipeline.watch.tally import Tally
from ..store import Prediction
from .console import INDEXING, count, describe_prediction, duration, say, size

# Shortest time between two lines of a log about the same stage: a build of a day then writes at most 8,640 of them.
LINE_SECONDS = 10.0

# Largest number of workers with a line each below the bar. With more workers, their number per activity is shown
# instead, to fit the screen.
SHOWN_WORKERS = 8
# Lines that say what the files of a corpus were taken for.
SHOWN_FILES = 10

# Largest number of skipped files and folders of the corpus that are named.
SHOWN_LEFT_OUT = 10

WARNING = "yellow"  # style of messages about failures

# Number of states, one per second, that a worker's speed is averaged over.
SPEED_STATES = 20


def progress_on(console: Console) -> BuildProgress:
    """Return a listener that draws bars on a terminal, and prints lines elsewhere."""
    return BarProgress(console) if console.is_terminal else LineProgress(console)


def _loading(device: str, compiled: bool | None) -> str:
    where = "" if device == "auto" else f" onto {device}"
    compiling = device.startswith("cuda") if compiled is None else compiled
    return f"loading the compressor{where}{', and compiling its layers' if compiling else ''}"


class _Screen(Tally):
    """The messages that bars and lines have in common."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._console = console
        self._verb = "compressing"

    def keeping_text(self, fields: Sequence[str]) -> None:
        self._verb = "storing the text of"
        self._say(
            "memory is made at question time, because the checkpoint compresses a document with the question: "
            f"storing {' and '.join(fields)}, and no memory"
        )

    def left_out(self, files: Sequence[LeftOut]) -> None:
        if files:
            named = ", ".join(map(str, files[:SHOWN_LEFT_OUT]))
            more = f" and {len(files) - SHOWN_LEFT_OUT:,} more" if len(files) > SHOWN_LEFT_OUT else ""
            self._say(f"skipped {len(files):,} of the files and folders given: {named}{more}")

    def joined(self, cluster: str) -> None:
        self._say(f"starting workers on the Ray cluster at {cluster}")

    def took_settings(self, settings: Mapping[str, Any]) -> None:
        if settings:
            shown = ", ".join(f"{key} {value!r}" for key, value in settings.items())
            self._say(f"settings of the store, where none were given: {shown}")

    def calibrated(self, prediction: Prediction) -> None:
        self._say(describe_prediction(prediction))

    def started(self, shards: int, done: int, characters: Mapping[int, int], where: str) -> None:
        super().started(shards, done, characters, where)
        self._say(f"{self._verb} {shards - done:,} of {count(shards, 'shard')} in {where}")

    def finished_shard(self, number: int, documents: int, tokens: int, size: int) -> None:
        super().finished_shard(number, documents, tokens, size)
        self._show()

    def workers(self, states: Sequence[WorkerState]) -> None:
        super().workers(states)
        self._show()

    def failed_shard(self, number: int, error: Exception, attempt: int, final: bool) -> None:
        super().failed_shard(number, error, attempt, final)
        what = "given up" if final else "tried again"
        self._say(f"shard {number} failed ({attempt}), {what}: {error_summary(error)}", WARNING)

    def lost_worker(self, name: str, reason: str) -> None:
        super().lost_worker(name, reason)
        self._say(f"worker {name} was lost: {reason}", WARNING)

    def alone(self, number: int) -> None:
        self._say(f"shard {number} failed too often: its documents are tried one by one", WARNING)

    def quarantined(self, number: int, doc_id: str, error: str) -> None:
        super().quarantined(number, doc_id, error)
        self._say(f"document {doc_id!r} of shard {number} cannot be compressed: {error}", WARNING)

    def waiting_for_store(self, error: Exception, seconds: float) -> None:
        super().waiting_for_store(error, seconds)
        self._say(
            f"the store cannot be reached and is tried again in {seconds:,.0f} s: {error_summary(error)}", WARNING
        )

    def lost_listener(self, name: str, error: Exception) -> None:
        self._say(f"{name} failed and reports nothing more; the build continues: {error_summary(error)}", WARNING)

    def _show(self) -> None:
        raise NotImplementedError

    def _say(self, text: str, style: str = "") -> None:
        say(text, style, self._console)

    def recognised(self, files: Sequence[str]) -> None:
        """Print what the files were taken for: the first lines, and the number of the others."""
        for line in files[:SHOWN_FILES]:
            self._say(f"read {line}")
        if len(files) > SHOWN_FILES:
            self._say(f"read {len(files) - SHOWN_FILES:,} more kinds of files; see: pisco-index info")

    @property
    def _rates(self) -> str:
        documents = count(self.pace.documents, "document")
        return f"{documents} in this run · {self.tokens_per_s:,.0f} tokens/s · {self._written}"

    @property
    def _written(self) -> str:
        failures = {
            count(self.failures, "failed attempt"): self.failures,
            f"{count(self.quarantined_documents, 'document')} quarantined": self.quarantined_documents,
            f"{count(self.lost_workers, 'worker')} lost": self.lost_workers,
        }
        return " · ".join([size(self.size), *(text for text, number in failures.items() if number)])

    @property
    def _left(self) -> str:
        seconds = self.pace.remaining_s
        return "" if seconds is None else f"about {duration(seconds)} left"

    @property
    def _doing(self) -> str:
        return ", ".join(f"{number:,} {doing}" for doing, number in self.doing.items())


class LineProgress(_Screen):
    """Prints each event on a line with its time, and the progress every ten seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        super().__init__(console, clock)
        self._last = clock()

    def planning(self, files: int) -> None:
        """Print the number of files."""
        self._say(f"reading and checking the whole corpus to plan its shards ({count(files, 'file')})")

    def planned_records(self, count: int) -> None:
        """Print the number of records, if a line is due."""
        if self._is_due():
            self._say(f"planning: {count:,} records read")

    def loading(self, device: str, compiled: bool | None) -> None:
        """Print the device."""
        self._say(_loading(device, compiled))

    def calibrating(self, codec: str) -> None:
        """Print the codec."""
        self._say(f"compressing a sample of the corpus, to fit codec {codec} to it")

    def indexing(self, action: str, done: int, total: int) -> None:
        """Print the work at its start, and later the number of documents, if a line is due."""
        if not done:
            self._say(f"{INDEXING[action]} ({count(total, 'document')})")
        elif self._is_due():
            self._say(f"indexing: {done:,} of {count(total, 'document')}")

    def stopping(self, error: Exception | None = None) -> None:
        """Print that the build stops, why, and how to stop it at once."""
        super().stopping(error)
        self._say(_stopping(error))

    def ended(self) -> None:
        """Print the totals."""
        if self.shards:
            self._say(
                f"{self.done:,}/{self.shards:,} shards · {count(self.written_documents, 'document')} in this run · "
                f"{self.written_tokens / self.elapsed_s:,.0f} tokens/s · {self._written}"
            )

    def _show(self) -> None:
        if self.done < self.shards and self._is_due():
            parts = [f"{self.done:,}/{self.shards:,} shards", self._rates, self._doing, self._left]
            self._say(" · ".join(filter(None, parts)))

    def _is_due(self) -> bool:
        if is_due := self._clock() - self._last >= LINE_SECONDS:
            self._last = self._clock()
        return is_due

    def _say(self, text: str, style: str = "") -> None:
        super()._say(f"{time.strftime('%H:%M:%S')} {text}", style)


class _Bars(Progress):
    """A progress bar with further lines below it."""

    below: Sequence[RenderableType] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from self.below


class BarProgress(_Screen):
    """Draws a live bar on a terminal, with rates and workers below it, and prints warnings above it."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        super().__init__(console, clock)
        self._recent: dict[str, deque[tuple[float, int]]] = {}
        columns = SpinnerColumn(), "{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[left]}"
        self._bars = _Bars(*columns, console=console)
        self._task = self._bars.add_task("planning", total=None, left="")
        self._bars.start()

    def planning(self, files: int) -> None:
        """Show the number of files."""
        self._bars.update(self._task, description=f"reading {count(files, 'file')} to plan")

    def planned_records(self, count: int) -> None:
        """Show the number of records."""
        self._bars.update(self._task, completed=count, left="records")

    def loading(self, device: str, compiled: bool | None) -> None:
        """Show the device."""
        self._bars.update(self._task, description=_loading(device, compiled), total=None, left="")

    def calibrating(self, codec: str) -> None:
        """Show the codec."""
        self._bars.update(self._task, description=f"sampling for codec {codec}", total=None, left="")

    def indexing(self, action: str, done: int, total: int) -> None:
        """Show the number of documents in a bar of its own, below the shards'."""
        if not done:
            self._index = self._bars.add_task(INDEXING[action], total=total, left="documents")
        self._bars.update(self._index, completed=done)

    def started(self, shards: int, done: int, characters: Mapping[int, int], where: str) -> None:
        """Start the bar of shards."""
        super().started(shards, done, characters, where)
        self._recent.clear()
        self._bars.remove_task(self._task)
        self._task = self._bars.add_task("shards", total=shards, completed=done, left="")

    def workers(self, states: Sequence[WorkerState]) -> None:
        """Show the workers' states and speeds."""
        now = self._clock()
        self._recent = {each.name: self._recent.get(each.name, deque(maxlen=SPEED_STATES)) for each in states}
        for each in states:
            self._recent[each.name].append((now, each.tokens))
        super().workers(states)

    def failed_shard(self, number: int, error: Exception, attempt: int, final: bool) -> None:
        """Print a warning, and count the failure below the bar."""
        super().failed_shard(number, error, attempt, final)
        self._show()

    def stopping(self, error: Exception | None = None) -> None:
        """Show that the build stops, why, and how to stop it at once."""
        super().stopping(error)
        if error:
            self._say(_stopping(error))
        self._bars.update(self._task, description="stopping (again to exit at once)")

    def ended(self) -> None:
        """Leave the bar and the rates on the screen, without the workers."""
        self._bars.below = self._bars.below[:1]
        self._bars.stop()

    def _show(self) -> None:
        self._bars.update(self._task, completed=self.done, left=self._left)
        self._bars.below = [Text(self._rates, no_wrap=True, overflow="ellipsis"), *self._workers()]

    def _workers(self) -> list[RenderableType]:
        if not self.states:
            return []
        if len(self.states) > SHOWN_WORKERS:
            return [Text(f"workers: {self._doing}", no_wrap=True, overflow="ellipsis")]
        table = Table.grid(padding=(0, 2))
        for justify in ("left", "left", "left", "right", "right"):
            table.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
        for state in self.states:
            (begin, before), (end, after) = self._recent[state.name][0], self._recent[state.name][-1]
            speed = (after - before) / (end - begin) if end > begin else 0
            part = "" if state.part is None else f", {state.part:.0%}"
            shard = "" if state.shard is None else f"shard {state.shard}{part}"
            table.add_row(state.name, state.doing, shard, f"{state.documents:,} documents", f"{speed:,.0f} tokens/s")
        return [table]


def _stopping(error: Exception | None) -> str:
    why = f", because {error_summary(error, SUMMARY_CHARACTERS)}" if error else ""
    return f"stopping{why}: shards in flight are finished and committed (Ctrl-C now exits at once)"
