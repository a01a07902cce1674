"""What a build tells its user while it runs: bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from ..errors import without_credentials
from ..store import Prediction

LINE_SECONDS = 10.0


def describe_prediction(prediction: Prediction) -> str:
    """What a codec is expected to cost and to lose, in one line."""
    if prediction.error_db is None:
        loss = "its loss cannot be told from so small a sample" if prediction.lossy else "nothing is lost"
    else:
        loss = f"normalised error {prediction.error_db:.1f} dB"
    divergence = f", KL about {prediction.kl[0]:.1g} to {prediction.kl[1]:.1g} (an estimate)" if prediction.kl else ""
    others = f"; {prediction.fallbacks:.1%} of documents need a better codec" if prediction.fallbacks else ""
    return f"codec {prediction.codec}: {prediction.bits_per_value:.2f} bits a value, {loss}{divergence}{others}"


@dataclass(frozen=True)
class WorkerState:
    """What a worker does right now.

    Attributes:
        name: of the worker, the same for as long as it lives.
        doing: what with.
        shard: the oldest that it has in hand.
        documents: that it has compressed since it started.
        tokens: that it has compressed since it started.
    """

    name: str
    doing: Literal["starting", "waiting", "reading", "compressing", "writing"]
    shard: int | None
    documents: int
    tokens: int


class BuildProgress:
    """The moments of a build. Every method returns at once; these, the library's default, say nothing."""

    def planning(self, files: int) -> None:
        """Every record of so many files is read and checked before anything is computed."""

    def planned_records(self, count: int) -> None:
        """So many records have been scanned."""

    def calibrating(self, codec: str) -> None:
        """A sample of the corpus is compressed, to fit the codec to."""

    def calibrated(self, prediction: Prediction) -> None:
        """The codec is fitted: what it will cost and lose."""

    def started(self, shards: int, done: int, characters: Mapping[int, int], where: str) -> None:
        """Workers begin: all shards, those done before, characters of each shard to do, and where they run."""

    def finished_shard(self, number: int, documents: int, tokens: int, size: int) -> None:
        """A shard was written: its documents, tokens fed and payload bytes."""

    def failed_shard(self, number: int, error: Exception, attempt: int, final: bool) -> None:
        """A shard failed; unless it was the last attempt it is tried again."""

    def workers(self, states: Sequence[WorkerState]) -> None:
        """What each worker does, about once a second."""

    def lost_worker(self, name: str, reason: str) -> None:
        """A worker died, or was ended because it hung; another takes its place where there is room."""

    def alone(self, number: int) -> None:
        """A shard that failed too often is now tried document by document, to find the one that it fails of."""

    def quarantined(self, number: int, doc_id: str, error: str) -> None:
        """A document of a shard cannot be compressed; its row is stored with the error in place of memory."""

    def waiting_for_store(self, error: Exception, seconds: float) -> None:
        """The store cannot be reached; the next try comes in so many seconds."""

    def committed(self, shards: int) -> None:
        """So many shards were committed."""

    def stopping(self) -> None:
        """A signal came: what is in hand is finished."""

    def ended(self) -> None:
        """The last worker is done."""


@dataclass
class _Totals:
    """What has been done since the workers began."""

    shards: int = 0
    done: int = 0
    characters: Mapping[int, int] = field(default_factory=dict)
    characters_done: int = 0
    documents: int = 0
    tokens: int = 0
    size: int = 0
    failures: int = 0
    began: float = field(default_factory=time.monotonic)
    first: float = 0.0
    first_characters: int = 0

    def add(self, number: int, documents: int, tokens: int, size: int) -> None:
        self.done += 1
        self.characters_done += self.characters.get(number, 0)
        if not self.first:
            self.first, self.first_characters = time.monotonic(), self.characters_done
        self.documents += documents
        self.tokens += tokens
        self.size += size

    @property
    def rates(self) -> str:
        elapsed = max(time.monotonic() - self.began, 1e-9)
        failures = f" · {self.failures} failed tries" if self.failures else ""
        return (
            f"{self.documents:,} documents now · {self.tokens / elapsed:,.0f} tokens/s · {decimal(self.size)}{failures}"
        )

    @property
    def remaining_s(self) -> float | None:
        """Seconds left at the speed since the first shard came in, which leaves out how long workers take to start."""
        since_first = self.characters_done - self.first_characters
        if not since_first:
            return None
        todo = sum(self.characters.values()) - self.characters_done
        return (time.monotonic() - self.first) * todo / since_first


class LineProgress(BuildProgress):
    """A line now and then, for logs."""

    def __init__(self, console: Console):
        self._console = console
        self._totals = _Totals()
        self._last = time.monotonic()

    def planning(self, files: int) -> None:
        """Say what begins."""
        self._say(f"reading and checking the whole corpus to plan its shards ({_count(files, 'file')})")

    def planned_records(self, count: int) -> None:
        """Say so at most every ten seconds."""
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            self._say(f"planning: {count:,} records read")

    def calibrating(self, codec: str) -> None:
        """Say what begins."""
        self._say(f"compressing a sample of the corpus, to fit codec {codec} to it")

    def calibrated(self, prediction: Prediction) -> None:
        """Say what is to be expected."""
        self._say(describe_prediction(prediction))

    def started(self, shards: int, done: int, characters: Mapping[int, int], where: str) -> None:
        """Say what begins."""
        self._totals = _Totals(shards, done, characters)
        self._say(f"compressing {shards - done:,} of {_count(shards, 'shard')} in {where}")

    def finished_shard(self, number: int, documents: int, tokens: int, size: int) -> None:
        """Say so at most every ten seconds."""
        self._totals.add(number, documents, tokens, size)
        if time.monotonic() - self._last >= LINE_SECONDS and self._totals.done < self._totals.shards:
            self._last = time.monotonic()
            remaining = self._totals.remaining_s
            eta = "" if remaining is None else f" · about {timedelta(seconds=round(remaining))} left"
            self._say(f"{self._totals.done:,}/{self._totals.shards:,} shards · {self._totals.rates}{eta}")

    def failed_shard(self, number: int, error: Exception, attempt: int, final: bool) -> None:
        """Say what happened."""
        self._totals.failures += 1
        what = "given up" if final else "tried again"
        self._say(
            f"shard {number} failed ({attempt}), {what}: {type(error).__name__}: {without_credentials(str(error))}"
        )

    def stopping(self) -> None:
        """Say what happens now."""
        self._say("stopping: what is in hand is finished and committed (Ctrl-C now exits at once)")

    def ended(self) -> None:
        """Say the totals."""
        if self._totals.shards:
            self._say(f"{self._totals.done:,}/{self._totals.shards:,} shards · {self._totals.rates}")

    def _say(self, text: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')} {text}", highlight=False, markup=False, soft_wrap=True)


class BarProgress(BuildProgress):
    """A live bar, for a terminal."""

    def __init__(self, console: Console):
        self._totals = _Totals()
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._bars.add_task("planning", total=None, rates="", left="")
        self._bars.start()

    def planning(self, files: int) -> None:
        """Say how many files are read."""
        self._bars.update(self._task, description=f"reading {_count(files, 'file')} to plan")

    def planned_records(self, count: int) -> None:
        """Count the records."""
        self._bars.update(self._task, completed=count, rates="records")

    def calibrating(self, codec: str) -> None:
        """Say what is done."""
        self._bars.update(self._task, description=f"sampling for codec {codec}", total=None, rates="")

    def calibrated(self, prediction: Prediction) -> None:
        """Say what is to be expected, above the bar."""
        self._console.print(describe_prediction(prediction), highlight=False, markup=False)

    def started(self, shards: int, done: int, characters: Mapping[int, int], where: str) -> None:
        """Begin the bar of shards."""
        self._totals = _Totals(shards, done, characters)
        self._bars.remove_task(self._task)
        self._task = self._bars.add_task("shards", total=shards, completed=done, rates=where, left="")

    def finished_shard(self, number: int, documents: int, tokens: int, size: int) -> None:
        """Move the bar."""
        self._totals.add(number, documents, tokens, size)
        remaining = self._totals.remaining_s
        left = "" if remaining is None else f"{timedelta(seconds=round(remaining))} left"
        self._bars.update(self._task, completed=self._totals.done, rates=self._totals.rates, left=left)

    def failed_shard(self, number: int, error: Exception, attempt: int, final: bool) -> None:
        """Say what happened, above the bar."""
        self._totals.failures += 1
        what = "given up" if final else "tried again"
        self._console.print(
            f"shard {number} failed ({attempt}), {what}: {without_credentials(str(error))}",
            style="yellow",
            markup=False,
        )

    def stopping(self) -> None:
        """Say what happens now."""
        self._bars.update(self._task, description="stopping (again to exit at once)")

    def ended(self) -> None:
        """Leave the bar as it stands."""
        self._bars.stop()


def progress_on(console: Console) -> BuildProgress:
    """Bars on a terminal, lines elsewhere."""
    return BarProgress(console) if console.is_terminal else LineProgress(console)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
