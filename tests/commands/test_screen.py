"""What a user sees of a running build."""

import io

import pytest
from rich.console import Console

from pisco_index.commands.screen import SHOWN_WORKERS, BarProgress, LineProgress, progress_on
from pisco_index.corpus import LeftOut
from pisco_index.pipeline.watch.progress import WorkerState


class Screen:
    """Somebody who looks at a build whose clock is turned by hand."""

    def __init__(self, kind, width=200):
        self.now = 0.0
        self.file = io.StringIO()
        is_terminal = kind is BarProgress
        console = Console(file=self.file, force_terminal=is_terminal, width=width, color_system=None)
        self.shown = kind(console, clock=lambda: self.now)

    @property
    def said(self):
        return self.file.getvalue()

    def look(self, *states, at):
        self.now = at
        self.shown.workers([WorkerState(*state) for state in states])

    def redraw(self):
        """What bars show now."""
        self.file.seek(0)
        self.file.truncate()
        self.shown._bars.refresh()
        return self.said


def test_what_is_skipped_of_a_corpus_is_named():
    screen = Screen(LineProgress, width=2000)
    screen.shown.left_out([])
    assert not screen.said
    screen.shown.left_out([LeftOut(f"c/{n}.md", "no data by its name") for n in range(12)])
    assert "skipped 12 of the files and folders given: c/0.md (no data by its name), c/1.md" in screen.said
    assert screen.said.endswith("c/9.md (no data by its name) and 2 more\n")


@pytest.fixture(params=[LineProgress, BarProgress], ids=["lines", "bars"])
def screen(request):
    screen = Screen(request.param)
    yield screen
    screen.shown.ended()


def test_a_terminal_has_bars_and_a_log_has_lines():
    assert isinstance(progress_on(Console(file=io.StringIO(), force_terminal=False)), LineProgress)
    bars = progress_on(Console(file=io.StringIO(), force_terminal=True))
    bars.ended()
    assert isinstance(bars, BarProgress)


@pytest.mark.parametrize(
    ("device", "compiled", "expected"),
    [
        ("cpu", None, "loading the compressor onto cpu"),
        ("cpu", True, "loading the compressor onto cpu, and compiling its layers"),
        ("cuda:1", None, "loading the compressor onto cuda:1, and compiling its layers"),
        ("cuda:1", False, "loading the compressor onto cuda:1"),
        ("auto", None, "loading the compressor"),
    ],
)
def test_loading(device, compiled, expected):
    screen = io.StringIO()
    LineProgress(Console(file=screen, width=200)).loading(device, compiled)
    assert screen.getvalue().strip().endswith(expected)


def test_a_build_as_it_is_shown(screen):
    shown = screen.shown
    shown.planning(2)
    shown.planned_records(1200)
    shown.loading("cuda", True)
    shown.calibrating("int8")
    shown.started(5, 1, {1: 10, 2: 10, 3: 10, 4: 10}, "this process, cpu")
    for number in (1, 2):
        screen.now += 20
        shown.finished_shard(number, 300, 4000, 2_000_000)
    shown.failed_shard(3, RuntimeError("no luck"), 1, False)
    shown.failed_shard(3, RuntimeError("no luck"), 3, True)
    shown.lost_worker("w1", "it was silent")
    shown.alone(4)
    shown.quarantined(4, "doc-7", "too strange")
    shown.waiting_for_store(OSError("no answer"), 8)
    shown.lost_listener("EventLog", OSError("disk full"))
    shown.committed(2)
    screen.now += 20
    shown.finished_shard(4, 300, 4000, 2_000_000)
    shown.indexing("made", 0, 900)
    screen.now += 20
    shown.indexing("made", 450, 900)
    shown.stopping()
    shown.ended()
    for words in (
        "making the search index",
        "this process, cpu",
        "900 documents",
        "6.0 MB",
        "4/5",
        "2 failed attempts",
        "1 worker lost",
        "1 document quarantined",
        "left",
        "RuntimeError: no luck",
        "tried again",
        "given up",
        "worker w1 was lost: it was silent",
        "its documents are tried one by one",
        "document 'doc-7' of shard 4 cannot be compressed: too strange",
        "is tried again in 8 s: OSError: no answer",
        "EventLog failed and reports nothing more",
        "stopping",
    ):
        assert words in screen.said, words


def test_lines_move_within_a_shard():
    screen = Screen(LineProgress)
    screen.shown.started(2, 0, {0: 1000, 1: 1000}, "here")
    for second in range(31):
        screen.look(("w0", "compressing", 0, second, 10 * second, second / 100), at=second)
    lines = screen.said.splitlines()
    assert len(lines) == 4
    assert (
        "0/2 shards · 30 documents in this run · 10 tokens/s · 0 bytes · 1 compressing · about 0:02:50 left"
        in lines[-1]
    )


def test_the_last_line_has_the_totals():
    screen = Screen(LineProgress)
    screen.shown.started(2, 1, {1: 1000}, "here")
    screen.look(("w0", "compressing", 1, 5, 50), at=1.0)
    screen.now = 10.0
    screen.shown.finished_shard(1, 20, 300, 4000)
    screen.shown.ended()
    assert "2/2 shards · 20 documents in this run · 30 tokens/s · 4.0 kB" in screen.said.splitlines()[-1]


def test_no_time_is_named_before_there_is_a_speed(screen):
    screen.shown.started(3, 0, {0: 10, 1: 10, 2: 10}, "here")
    screen.now = 20.0
    screen.shown.finished_shard(0, 1, 1, 1)
    screen.look(("w0", "starting", None, 0, 0), at=40.0)
    assert "left" not in screen.said


def test_bars_have_a_line_for_each_of_a_few_workers():
    screen = Screen(BarProgress)
    screen.shown.started(9, 1, dict.fromkeys(range(1, 9), 1000), "here")
    for second in range(11):
        screen.look(
            ("gpu-0", "compressing", 1, 2 * second, 100 * second, second / 100),
            ("gpu-1", "starting", None, 0, 0),
            at=second,
        )
    drawn = " ".join(screen.redraw().split())
    assert "20 documents in this run · 100 tokens/s" in drawn
    assert "gpu-0 compressing shard 1, 10% 20 documents 100 tokens/s" in drawn
    assert "gpu-1 starting 0 documents 0 tokens/s" in drawn
    screen.shown.ended()


def test_bars_count_many_workers():
    screen = Screen(BarProgress)
    screen.shown.started(99, 0, dict.fromkeys(range(99), 1000), "here")
    screen.look(*((f"w{n}", "waiting" if n else "reading", None, 0, 0) for n in range(SHOWN_WORKERS + 1)), at=1)
    drawn = screen.redraw()
    assert "workers: 1 reading, 8 waiting" in drawn
    assert "w3" not in drawn
    screen.shown.ended()


def test_bars_fit_a_narrow_terminal():
    screen = Screen(BarProgress, width=40)
    screen.shown.started(2, 0, {0: 1000, 1: 1000}, "here")
    for second in range(5):
        screen.look(("a-worker-with-a-long-name", "compressing", 0, second, second, second / 10), at=second)
    lines = screen.redraw().rpartition("\x1b[2K")[2].splitlines()
    assert [len(line) for line in lines] == [40, 40, 40]
    screen.shown.ended()


def test_a_shard_that_turns_out_damaged_when_it_is_committed_counts_once(screen):
    screen.shown.started(2, 0, {0: 10, 1: 10}, "here")
    for number in (0, 1):
        screen.shown.finished_shard(number, 1, 1, 1)
    screen.shown.failed_shard(1, RuntimeError("damaged"), 1, False)
    assert (screen.shown.done, screen.shown.uncommitted) == (1, 1)
    screen.shown.finished_shard(1, 1, 1, 1)
    assert (screen.shown.done, screen.shown.uncommitted) == (2, 2)


def test_what_is_said_may_look_like_markup(screen):
    screen.shown.failed_shard(0, ValueError("[bold]x[/nothing]"), 1, False)
    assert "[bold]x[/nothing]" in screen.said
