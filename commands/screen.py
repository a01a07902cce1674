"""A build as its user sees it: bars on a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from ..pipeline.watch.progress import BuildProgress, WorkerState, described
from ..pipeline.watch.tally import Tally
from ..store import Prediction

LINE_SECONDS = 10.0

# Of more workers than these only how many do what is shown.
SHOWN_WORKERS = 8

# A worker's own speed is that of so many looks at it.
LOOKS = 20


def progress_on(console: Console) -> BuildProgress:
    """Bars on a terminal, lines elsewhere."""
    return BarProgress(console) if console.is_terminal else LineProgress(console)


def describe_prediction(prediction: Prediction) -> str:
    """What a codec is expected to cost and to lose, in one line."""
    if prediction.error_db is None:
        loss = "its loss cannot be told from so small a sample" if prediction.lossy else "nothing is lost"
    else:
        loss = f"normalised error {prediction.error_db:.1f} dB"
    divergence = f", KL about {prediction.kl[0]:.1g} to {prediction.kl[1]:.1g} (an estimate)" if prediction.kl else ""
    others = f"; {prediction.fallbacks:.1%} of documents need a better codec" if prediction.fallbacks else ""
    return f"codec {prediction.codec}: {prediction.bits_per_value:.2f} bits a value, {loss}{divergence}{others}"


def _loading(device: str, compiled: bool | None) -> str:
    where = "" if device == "auto" else f" onto {device}"
    compiling = device.startswith("cuda") if compiled is None else compiled
    return f"loading the compressor{where}{', and compiling its layers' if compiling else ''}"


class _Screen(Tally):
    """What bars and lines have in common: the words."""

    def calibrated(self, prediction: Prediction) -> None:
        """Say what is to be expected."""
        self._say(describe_prediction(prediction))

    def started(self, shards: int, done: int, characters: Mapping[int, int], where: str) -> None:
        """Say what begins."""
        super().started(shards, done, characters, where)
        self._say(f"compressing {shards - done:,} of {_count(shards, 'shard')} in {where}")

    def failed_shard(self, number: int, error: Exception, attempt: int, final: bool) -> None:
        """Say what happened."""
        super().failed_shard(number, error, attempt, final)
        what = "given up" if final else "tried again"
        self._warn(f"shard {number} failed ({attempt}), {what}: {described(error)}")

    def lost_worker(self, name: str, reason: str) -> None:
        """Say what happened."""
        super().lost_worker(name, reason)
        self._warn(f"worker {name} was lost: {reason}")

    def alone(self, number: int) -> None:
        """Say what is done."""
        self._warn(f"shard {number} failed too often: each of its documents is tried alone")

    def quarantined(self, number: int, doc_id: str, error: str) -> None:
        """Say what happened."""
        super().quarantined(number, doc_id, error)
        self._warn(f"document {doc_id!r} of shard {number} cannot be compressed: {error}")

    def waiting_for_store(self, error: Exception, seconds: float) -> None:
        """Say what is the matter."""
        super().waiting_for_store(error, seconds)
        self._warn(f"the store cannot be reached, tried again in {seconds:,.0f} s: {described(error)}")

    def lost_listener(self, name: str, error: Exception) -> None:
        """Say what is missing from now on."""
        self._warn(f"{name} failed, and tells nothing more of this build, which goes on: {described(error)}")

    def _say(self, text: str) -> None:
        raise NotImplementedError

    def _warn(self, text: str) -> None:
        self._say(text)

    @property
    def _rates(self) -> str:
        return f"{self.pace.documents:,} documents now · {self.tokens_per_s:,.0f} tokens/s · {self._written}"

    @property
    def _written(self) -> str:
        lost = {
            "failed try": (self.failures, "failed tries"),
            "document quarantined": (self.quarantined_documents, "documents quarantined"),
            "worker lost": (self.lost_workers, "workers lost"),
        }
        shown = [f"{n:,} {name if n == 1 else several}" for name, (n, several) in lost.items() if n]
        return " · ".join([decimal(self.size), *shown])

    @property
    def _left(self) -> str:
        """The time left in words, rounded to what can be known; nothing before there is a speed."""
        seconds = self.pace.remaining_s
        return "" if seconds is None else f"about {timedelta(seconds=round(seconds))} left"

    @property
    def _doing(self) -> str:
        return ", ".join(f"{count:,} {doing}" for doing, count in self.doing.items())


class LineProgress(_Screen):
    """A line now and then, for logs."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._console = console
        self._last = clock()

    def planning(self, files: int) -> None:
        """Say what begins."""
        self._say(f"reading and checking the whole corpus to plan its shards ({_count(files, 'file')})")

    def planned_records(self, count: int) -> None:
        """Say so at most every ten seconds."""
        if self._is_due():
            self._say(f"planning: {count:,} records read")

    def loading(self, device: str, compiled: bool | None) -> None:
        """Say what begins."""
        self._say(_loading(device, compiled))

    def calibrating(self, codec: str) -> None:
        """Say what begins."""
        self._say(f"compressing a sample of the corpus, to fit codec {codec} to it")

    def finished_shard(self, number: int, documents: int, tokens: int, size: int) -> None:
        """Say so at most every ten seconds."""
        super().finished_shard(number, documents, tokens, size)
        self._say_if_due()

    def workers(self, states: Sequence[WorkerState]) -> None:
        """Say how far they are, every ten seconds."""
        super().workers(states)
        self._say_if_due()

    def stopping(self) -> None:
        """Say what happens now."""
        super().stopping()
        self._say("stopping: what is in hand is finished and committed (Ctrl-C now exits at once)")

    def ended(self) -> None:
        """Say the totals."""
        if self.shards:
            speed = self.written_tokens / self.elapsed_s
            self._say(
                f"{self.done:,}/{self.shards:,} shards · {self.written_documents:,} documents now · "
                f"{speed:,.0f} tokens/s · {self._written}"
            )

    def _say_if_due(self) -> None:
        if self.done < self.shards and self._is_due():
            parts = [f"{self.done:,}/{self.shards:,} shards", self._rates, self._doing, self._left]
            self._say(" · ".join(filter(None, parts)))

    def _is_due(self) -> bool:
        is_due = self._clock() - self._last >= LINE_SECONDS
        if is_due:
            self._last = self._clock()
        return is_due

    def _say(self, text: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')} {text}", highlight=False, markup=False, soft_wrap=True)


class _Bars(Progress):
    """A bar with further lines below it."""

    def __init__(self, *columns: TextColumn | BarColumn | MofNCompleteColumn | SpinnerColumn, console: Console):
        self.below: Sequence[RenderableType] = ()
        super().__init__(*columns, console=console)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from self.below


class BarProgress(_Screen):
    """A live bar, with numbers and workers below it, for a terminal."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._console = console
        self._looks: dict[str, deque[tuple[float, int]]] = {}
        self._bars = _Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._bars.add_task("planning", total=None, left="")
        self._bars.start()

    def planning(self, files: int) -> None:
        """Say how many files are read."""
        self._bars.update(self._task, description=f"reading {_count(files, 'file')} to plan")

    def planned_records(self, count: int) -> None:
        """Count the records."""
        self._bars.update(self._task, completed=count, left="records")

    def loading(self, device: str, compiled: bool | None) -> None:
        """Say what is done."""
        self._bars.update(self._task, description=_loading(device, compiled), total=None, left="")

    def calibrating(self, codec: str) -> None:
        """Say what is done."""
        self._bars.update(self._task, description=f"sampling for codec {codec}", total=None, left="")

    def started(self, shards: int, done: int, characters: Mapping[int, int], where: str) -> None:
        """Begin the bar of shards."""
        super().started(shards, done, characters, where)
        self._looks.clear()
        self._bars.remove_task(self._task)
        self._task = self._bars.add_task("shards", total=shards, completed=done, left="")

    def finished_shard(self, number: int, documents: int, tokens: int, size: int) -> None:
        """Move the bar."""
        super().finished_shard(number, documents, tokens, size)
        self._show()

    def workers(self, states: Sequence[WorkerState]) -> None:
        """Show what they do."""
        super().workers(states)
        now = self._clock()
        known = {state.name: self._looks.get(state.name, deque(maxlen=LOOKS)) for state in states}
        for state in states:
            known[state.name].append((now, state.tokens))
        self._looks = known
        self._show()

    def failed_shard(self, number: int, error: Exception, attempt: int, final: bool) -> None:
        """Say so above the bar, and count it below."""
        super().failed_shard(number, error, attempt, final)
        self._show()

    def stopping(self) -> None:
        """Say what happens now."""
        super().stopping()
        self._bars.update(self._task, description="stopping (again to exit at once)")

    def ended(self) -> None:
        """Leave the bar as it stands, without the workers."""
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
        for _ in range(3):
            table.add_column(no_wrap=True, overflow="ellipsis")
        for _ in range(2):
            table.add_column(justify="right", no_wrap=True)
        for state in self.states:
            (begin, before), (end, after) = self._looks[state.name][0], self._looks[state.name][-1]
            speed = (after - before) / (end - begin) if end > begin else 0
            part = "" if state.part is None else f", {state.part:.0%}"
            shard = "" if state.shard is None else f"shard {state.shard}{part}"
            table.add_row(state.name, state.doing, shard, f"{state.documents:,} documents", f"{speed:,.0f} tokens/s")
        return [table]

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _warn(self, text: str) -> None:
        self._console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
