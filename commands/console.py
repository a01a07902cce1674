"""Print to the terminal: results as text or JSON, progress bars, and numbers in words."""

import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..store import Prediction

out = Console()
err = Console(stderr=True)

Piece = str | Text | Table
"""Part of a command's text: a paragraph or a table."""

# Seconds between two lines of progress in a log.
_LINE_SECONDS = 10.0

_Result = TypeVar("_Result")

INDEXING = {
    "made": "making the search index",
    "extended": "adding to the search index",
    "merged": "merging the search index",
    "rebuilt": "making the search index anew",
}
"""Descriptions of the work on a search index, by its name in ``IndexReport.action``."""


def open_streams() -> None:
    r"""Make standard input, output and error fit for any text and any caller.

    Characters that an output's encoding lacks are written as escapes, such as ``\u017a``. Bytes of the input that are
    no text become surrogates, which the check of a question finds. A stream that the caller closed leads nowhere: the
    next file to be opened would take its number, and messages of native code would be written into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def say(piece: Piece, style: str = "", console: Console = out) -> None:
    """Print a paragraph or a table. A paragraph wraps on a terminal and stays on one line in a log."""
    if isinstance(piece, Table):
        console.print(piece)
    else:
        # Text objects, unlike strings, are printed without reading markup or emoji codes in them.
        console.print(Text(piece) if isinstance(piece, str) else piece, style=style or None, soft_wrap=True)


def say_error(message: str) -> None:
    """Print an error to standard error."""
    say(Text.assemble(("error:", "bold red"), f" {message}"), console=err)


def say_warnings(messages: Iterable[str]) -> None:
    """Print warnings to standard error."""
    for message in messages:
        say(Text.assemble(("warning:", "bold yellow"), f" {printable(message)}"), console=err)


@dataclass(frozen=True)
class Output:
    """Standard output of a command: JSON for a program, or text.

    Attributes:
        as_json: True to print results as JSON.
    """

    as_json: bool

    def show(
        self, result: _Result, describe: Callable[[_Result], Iterable[Piece]], *, on_one_line: bool = False
    ) -> None:
        """Print a result.

        Args:
            result: a dataclass, an object with ``to_dict``, or plain values.
            describe: function that returns the parts of its text.
            on_one_line: True to print its JSON on one line, for results that come one after another.
        """
        if not self.as_json:
            for piece in describe(result):
                say(piece)
        elif on_one_line:
            say(json.dumps(_plain(result)))
        else:
            # Escapes of an encoding, unlike JSON's own, may be no JSON.
            out.print_json(data=_plain(result), ensure_ascii=not out.encoding.startswith("utf"))

    def clear(self) -> None:
        """Clear a terminal that shows text, for a result that replaces the one before it."""
        if out.is_terminal and not self.as_json:
            out.clear()


def _plain(result: Any) -> Any:
    if hasattr(result, "to_dict"):
        return result.to_dict()
    return asdict(result) if is_dataclass(result) and not isinstance(result, type) else result


@contextmanager
def bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of a command of one step, as ``steps`` does.

    Args:
        unit: noun for what is counted.

    Yields:
        A function of the number done and the total number.
    """
    with steps({unit: unit}) as show:
        yield lambda done, total: show(unit, done, total)


@contextmanager
def steps(titles: Mapping[str, str]) -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar for each step of a command on a terminal; elsewhere, such as in a log, a line at times.

    Args:
        titles: text beside the bar, by the name of the step.

    Yields:
        A function of the name of the step, the number done and the total number.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bars:
        tasks: dict[str, TaskID] = {}
        lined = time.monotonic()

        def show(step: str, done: int, total: int) -> None:
            nonlocal lined
            if step not in tasks:
                # The work of earlier runs says nothing about the speed of this one.
                tasks[step] = bars.add_task(titles[step], total=total, completed=done)
                lined = lined if done else -math.inf
            bars.update(tasks[step], completed=done, total=total)
            if not err.is_terminal and time.monotonic() - lined > _LINE_SECONDS:
                lined = time.monotonic()
                remaining = bars.tasks[tasks[step]].time_remaining
                left = "" if remaining is None else f", about {duration(remaining)} left"
                say(f"{titles[step]}: {done:,} of {total:,}{left}", console=err)

        yield show


def rows(values: Mapping[str, str]) -> Iterator[Text]:
    """Yield a line for each name and value, with the values below each other."""
    width = max(map(len, values))
    for name, value in values.items():
        row = Text.assemble((f"{name:{width}}", "bold"), f"  {value}")
        row.rstrip()
        yield row


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural if needed: "1 shard", "2 shards"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(number: int) -> str:
    """Return a number of bytes in a unit that fits: "4.2 MB"."""
    return decimal(number)


def ratio(value: float | None) -> str:
    """Return a ratio with two decimals."""
    return "no" if value is None else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Return a time in hours, minutes and whole seconds: "0:02:50"."""
    return str(timedelta(seconds=round(seconds)))


def ago(moment: str) -> str:
    """Return the time since a moment in ISO format: "0:02:50 ago"."""
    return f"{duration(max((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds(), 0))} ago"


def by_reason(counts: Mapping[str, int]) -> str:
    """Return the numbers of records left out, each with its reason."""
    return ", ".join(f"{number:,} ({reason})" for reason, number in counts.items()) or "none"


def by_change(changes: Any) -> str:
    """Return the numbers of documents that an update changes, each with its kind of change."""
    return ", ".join(f"{number:,} {name}" for name, number in asdict(changes).items())


def fallbacks(documents: Mapping[str, int]) -> str:
    """Return the number of documents stored by each fallback codec, as the end of a sentence."""
    shown = ", ".join(f"{count(number, 'document')} in {codec}" for codec, number in sorted(documents.items()))
    return f"; written by another codec: {shown}" if shown else ""


def describe_prediction(predicted: "Prediction") -> str:
    """Return the expected size and loss of a codec, in one line."""
    if predicted.error_db is not None:
        loss = f"normalised error {predicted.error_db:.1f} dB"
    else:
        loss = "loss unknown: the sample is too small" if predicted.lossy else "nothing is lost"
    others = f"; {predicted.fallbacks:.1%} of documents need a better codec" if predicted.fallbacks else ""
    size = f"{predicted.bits_per_value:.2f} bits per value"
    return f"codec {predicted.codec}: {size}, {loss}{fitted(predicted.fitted_to_decoder)}{_kl(predicted)}{others}"


def fitted(to_decoder: bool | None) -> str:
    """Return what a codec was fitted to, as the end of a sentence; nothing for a codec that needs no decoder."""
    if to_decoder is None:
        return ""
    return ", fitted to the decoder" if to_decoder else ", fitted without the decoder, as klt is"


def _kl(predicted: "Prediction") -> str:
    """Return what the decoder has measured, or the reason for which it has not, as the end of a sentence."""
    if predicted.kl is None:
        return f"; no KL measured: {predicted.kl_missing}" if predicted.kl_missing else ""
    read = f"measured on {count(predicted.kl_documents, 'document')} through the checkpoint's decoder"
    return f", KL {predicted.kl:.2g} nats, worst document {predicted.kl_worst:.2g}, {read}"


def printable(text: str) -> str:
    """Return text from a model or file with its control characters spelled out, which a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
